"""FAISS on a GPU finds what it finds on CPUs."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest

from benchmarks.gpu.search import gpu_faiss
from retrieval.fusion import unit
from retrieval.index.train import train

# The types that come with FAISS lack what only its builds for GPUs have.
_FAISS: Any = faiss


@pytest.fixture(scope="module", autouse=True)
def _faiss_for_gpus() -> None:
    if reason := gpu_faiss():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def rows_ND() -> np.ndarray:
    return unit(np.random.default_rng(0).standard_normal((20_000, 64), np.float32))


def test_lists_are_as_good_as_those_of_cpus(rows_ND: np.ndarray) -> None:
    def mean_score(gpus: int) -> float:
        quantiser = train(rows_ND, "IVF64,SQ8", gpus=gpus).quantizer
        return float(quantiser.search(rows_ND, 1)[0].mean())

    assert mean_score(1) == pytest.approx(mean_score(0), rel=0.02)


def test_flat_search_finds_the_same_rows(rows_ND: np.ndarray) -> None:
    flat = faiss.IndexFlatIP(64)
    flat.add(rows_ND)
    on_gpu = _FAISS.index_cpu_to_gpu(_FAISS.StandardGpuResources(), 0, flat)
    expected, places = flat.search(rows_ND[:100], 10)
    found, others = on_gpu.search(rows_ND[:100], 10)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert (places == others).mean() > 0.99
