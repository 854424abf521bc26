# make demo       the main job, from rendering a gallery to a table of results
# make test       the tests; make test-all adds those that take minutes each
# make test-gpu   the tests that need a GPU, with what Python and packages there are (docs/gpu.md)
# All install first, once. PYTHON=python3.12 make ... picks another interpreter for the virtual environment.
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
PYTEST := $(BIN)/python -m pytest -ra
WITH_RAY := ray or service or faults

.PHONY: demo test test-unit test-ray test-long test-all test-gpu lint install clean
.NOTPARALLEL:

demo: $(INSTALLED)
	@echo "== mindseye demo: rendering, embedding, indexing, imagining, training, evaluating, serving"
	@$(BIN)/mindseye demo

test: test-unit test-ray

test-unit: $(INSTALLED)
	@echo "== tests, 1 of 2: unit tests, two at a time"
	@$(PYTEST) -n 2 --dist worksteal -m "not ($(WITH_RAY) or long)"

test-ray: $(INSTALLED)
	@echo "== tests, 2 of 2: with Ray, services and faults, one at a time"
	@$(PYTEST) -m "($(WITH_RAY)) and not long"

test-all: test test-long

test-long: $(INSTALLED)
	@echo "== tests that take minutes each"
	@$(PYTEST) -m long

# Installs nothing: PYTHON=… names the environment of a machine with a GPU, which may be one without Ray.
test-gpu:
	@echo "== tests that need a CUDA device"
	@$(if $(findstring command,$(origin PYTHON)),$(PYTHON),$(BIN)/python) -m pytest -ra tests/gpu

lint: $(INSTALLED)
	@echo "== ruff"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "== mypy"
	@$(BIN)/mypy

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make install: $(PYTHON) is missing or older than 3.11; set PYTHON=/path/to/python3.11 or newer"; exit 1; }
	@echo "== creating the virtual environment .venv"
	@$(PYTHON) -m venv .venv || { echo "make install: could not create .venv; is the venv module installed?"; exit 1; }
	@echo "== installing mindseye and its pinned dependencies (several GB, some minutes on the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --constraint constraints.txt --editable '.[dev]' \
	  | sed -u -n 's/^Collecting \([^ ]*\).*/   \1/p; s/^Installing collected.*/   installing what was downloaded/p; /^Successfully/s/ installed .*/ installed/p' \
	  ; test $${PIPESTATUS[0]} -eq 0 || { echo "make install: pip failed, see above; run make install again once that is mended"; exit 1; }
	@touch $(INSTALLED)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
