"""The environment of the process is set in one place, and what is set already stays."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ray.serve._private import constants

from cluster.imports import PACKAGES
from cluster.ray_env import DEFAULTS, NODE, NODE_ENV, differing

ROOT = Path(__file__).parents[3]
SETS = re.compile(r"environ\[[^\]]+\]\s*=[^=]|environ\.(setdefault|update|pop)|putenv")


def test_nothing_else_sets_an_environment_variable() -> None:
    """But for the name of a network interface, which only the node itself knows."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert [file.name for file in files if SETS.search(file.read_text(encoding="utf-8"))] == ["ray_env.py", "gloo.py"]


@pytest.mark.parametrize("given", [None, "mine"])
def test_a_default_is_set_before_ray_is_imported_and_yields_to_what_is_set(given: str | None) -> None:
    name = "RAY_USAGE_STATS_ENABLED"
    environment = {} if given is None else {name: given}
    code = f"import cluster, os, sys; print(os.environ[{name!r}], 'ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [given or DEFAULTS[name], "False"]


def test_the_tests_run_in_the_mode_that_is_shipped() -> None:
    longer = {name for name in DEFAULTS if name.startswith("RAY_SERVE_PROXY_")}  # a busy machine is no fault
    assert {name: os.environ[name] for name in DEFAULTS.keys() - longer} == {
        name: value for name, value in DEFAULTS.items() if name not in longer
    }
    assert constants.RAY_SERVE_THROUGHPUT_OPTIMIZED
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_shell_reads_the_file_as_we_do() -> None:
    script = f"set -a; . {NODE_ENV}; set +a; env -0"
    done = subprocess.run(["sh", "-c", script], env={}, capture_output=True, text=True, check=True)
    read = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
    assert read.items() >= NODE.items()
    assert all(re.fullmatch(r"[\w.]+", value) for value in NODE.values()), "docker takes quotes as part of the value"


def test_a_node_asks_for_the_token_and_a_process_of_ours_leaves_that_to_ray() -> None:
    assert NODE == {"RAY_AUTH_MODE": "token", **DEFAULTS}


def test_what_a_node_lacks_or_has_otherwise_is_found() -> None:
    name = "RAY_SERVE_THROUGHPUT_OPTIMIZED"
    assert differing(NODE | {"HOME": "/"}) == {}
    assert differing(NODE | {name: "0"}) == {name: ("0", "1")}
    assert differing({}) == {name: (None, value) for name, value in NODE.items()}
