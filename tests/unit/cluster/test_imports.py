"""What hides our packages from workers, and what is done about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.imports import ours_first, shadows

ROOT = Path(__file__).parents[3]


def test_folders_and_modules_of_our_names_are_found_and_ours_are_not(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "training.py").touch()
    (tmp_path / "servings").mkdir()
    assert shadows([tmp_path, ROOT, tmp_path]) == [tmp_path / "cluster", tmp_path / "training.py"]


def test_workers_start_as_ever_where_nothing_hides_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "mindseye")])
    assert ours_first() is None
    (tmp_path / "cluster").mkdir()
    assert ours_first()


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from ray import cloudpickle
from cluster.imports import ours_first
print(cloudpickle.dumps(ours_first()["worker_process_setup_hook"]).hex())
"""
WORKER = """
import pickle, sys
sys.path.append({root!r})
hook = pickle.loads(bytes.fromhex(sys.argv[1]))
hook()
import cluster, training.loss
print(cluster.__file__, {here!r} in sys.path)
"""


def test_the_hook_reaches_a_worker_that_cannot_import_ours_yet(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "__init__.py").write_text("raise ImportError('not ours')")
    (tmp_path / "training").mkdir()

    def python(code: str, *arguments: str) -> str:
        script = tmp_path / "script.py"
        script.write_text(code.format(root=str(ROOT), here=str(tmp_path)))
        command = [sys.executable, str(script), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    hook = python(SCRIPT)
    assert python(WORKER, hook) == f"{ROOT}/cluster/__init__.py True"
