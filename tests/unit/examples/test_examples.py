"""The examples run, and the notebook's outputs are those of a run."""

from __future__ import annotations

import base64
import json
import re
import runpy
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from notebooks import execute
from PIL import Image

EXAMPLES = Path(__file__).parents[3] / "examples"
NOTEBOOK = EXAMPLES / "explore.ipynb"


def run(name: str, folder: Path) -> Any:
    return runpy.run_path(str(EXAMPLES / name))["main"](folder)


@pytest.mark.slow
def test_index_and_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("index_and_search.py", tmp_path)
    assert [each.label for each in found[:3]] == ["orange dotted square"] * 3
    assert found[0].path in capsys.readouterr().out
    Image.open(tmp_path / "answer.png").load()


@pytest.mark.slow
def test_imagine_and_evaluate(tmp_path: Path) -> None:
    accuracy = run("imagine_and_evaluate.py", tmp_path)
    assert accuracy["fused"] > accuracy["text"]
    assert (tmp_path / "report" / "contact-sheet.png").exists()


@pytest.mark.slow
def test_train_aggregator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 < run("train_aggregator.py", tmp_path) < 1
    assert "orange dotted square/" in capsys.readouterr().out


def outputs(notebook: dict[str, Any]) -> tuple[list[str], list[tuple[int, int]]]:
    """What the cells printed, and the sizes of their pictures."""
    printed, sizes = [], []
    for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
        printed.append("".join(output.get("text", [])))
        if png := output.get("data", {}).get("image/png"):
            with Image.open(BytesIO(base64.b64decode(png))) as image:
                sizes.append(image.size)
    return printed, sizes


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_a_run_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures may differ in their last digits from machine to machine, pictures in pixels."""
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    expected, made = outputs(notebook), outputs(execute(notebook))
    number = re.compile(r"\d\.\d+")
    assert [number.sub("#", text) for text in made[0]] == [number.sub("#", text) for text in expected[0]]
    for new, old in zip("".join(made[0]).split(), "".join(expected[0]).split(), strict=True):
        if number.fullmatch(new):
            assert float(new) == pytest.approx(float(old), abs=0.03)
    assert len(made[1]) == 3
    assert np.array(made[1]) == pytest.approx(np.array(expected[1]), rel=0.1)


def test_the_notebook_is_small_and_its_cells_are_numbered_in_order() -> None:
    assert NOTEBOOK.stat().st_size < 300_000
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
