"""What runs on a machine with a GPU needs no Ray: the benchmark, and the tests of the mark ``gpu``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.figures import Figure, table

ROOT = Path(__file__).parents[3]
WITHOUT_RAY = "import runpy, sys; sys.modules['ray'] = None; sys.argv = sys.argv[1:]; "
"""Whoever imports Ray after this gets a ModuleNotFoundError."""


def run_without_ray(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = f"{WITHOUT_RAY} runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-W", "ignore", "-c", script, module, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_benchmark_measures_tiny_models_on_a_cpu(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run_without_ray("benchmarks.gpu", "--size", "tiny", "--json", str(file))
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert report["machine"]["torch"]
    assert report["size"] == "tiny"
    figures = {figure["what"]: figure for figure in report["figures"]}
    measured = {what for what, figure in figures.items() if figure["ours"]}
    for what in measured:
        assert figures[what]["ratio"] > 0
        assert "channels last" in what or 0 < figures[what]["limit"] < 1
        assert f"| {what} |" in done.stdout
    if not torch.cuda.is_available():
        encoders = {"tiny SigLIP 2 and DINOv2", "tiny CLIP and DINOv2"}
        generators = {"tiny Stable Diffusion, 2 steps", "tiny Stable Diffusion, channels last"}
        assert measured == encoders | generators | {"training, batches of 16"}
        for what in encoders:
            assert min(figures[what]["details"]["least_cosine_to_a_cpu"].values()) > 0.99
        for what in figures.keys() - measured:
            assert "FAISS" in figures[what]["reason"] or "GPUs" in figures[what]["reason"]


def test_the_tests_of_a_gpu_can_be_collected() -> None:
    done = run_without_ray("pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_gpu_models.py" in done.stdout
    assert "deselected" not in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_true_sizes_are_left_to_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu"])
    with pytest.raises(SystemExit, match="no CUDA device"):
        main()


def test_a_figure_that_was_not_measured_says_why() -> None:
    common: dict[str, Any] = {"unit": "rows/s", "peer_name": "a loop", "wanted": 0.9}
    measured = Figure("first", **common, ours=1200.0, peer=1500.0, limit=0.25, peak=2**30)
    made = table([measured, Figure("second", **common, reason="no FAISS")])
    assert made.splitlines()[2] == "| first | 1,200 rows/s | 1,500, a loop | 0.80 | 0.90 | 25% | 1.0 GiB |"
    assert made.splitlines()[3].startswith("| second | not measured: no FAISS |")
