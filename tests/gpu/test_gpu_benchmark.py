"""The benchmark measures all of its parts on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.gpu.__main__ import PARTS, figures_of
from benchmarks.gpu.search import gpu_faiss
from benchmarks.gpu.sizes import size_of


@pytest.mark.parametrize("part", PARTS)
def test_every_figure_is_measured(tmp_path: Path, part: str) -> None:
    if part == "search" and (reason := gpu_faiss()):
        pytest.skip(reason)
    figures = list(figures_of(part, size_of("tiny"), tmp_path, torch.device("cuda")))
    assert figures
    for figure in figures:
        assert figure.reason is None
        assert figure.ratio
        assert figure.peak or part in ("search", "compiled") or "channels last" in figure.what
