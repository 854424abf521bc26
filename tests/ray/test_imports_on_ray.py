"""Workers of a job that is started beside a folder named as one of our packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import ray
from cluster.ports import free_port
from cluster.session import session

def place():
    import cluster, training.loss
    return cluster.__file__

with session("local"):
    port = ray.remote(num_cpus=0)(free_port)
    print(ray.get([ray.remote(num_cpus=0)(place).remote(), port.remote()]))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_workers_import_our_packages_and_not_those_of_the_current_directory(tmp_path: Path) -> None:
    home, script = tmp_path / "home", tmp_path / "script.py"
    for package in ("cluster", "training"):
        (home / package).mkdir(parents=True)
        (home / package / "__init__.py").write_text("raise ImportError('not ours')")
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"'{ROOT}/cluster/__init__.py'" in done.stdout
