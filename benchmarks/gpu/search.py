"""FAISS on a GPU against FAISS on the CPUs of the same machine: k-means, filling an index, flat search."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import faiss
import numpy as np
import torch

from benchmarks.gpu.figures import Figure
from benchmarks.gpu.measure import seconds_of
from benchmarks.gpu.sizes import Size
from retrieval.fusion import unit
from retrieval.index.train import train, training_rows

K = 100
WANTED = 1.0
# The types that come with FAISS lack what only its builds for GPUs have.
_FAISS: Any = faiss


def gpu_faiss() -> str | None:
    """Return why FAISS cannot use a GPU here, or None if it can."""
    if not hasattr(faiss, "StandardGpuResources"):
        return f"FAISS {faiss.__version__} is a build for CPUs: docs/gpu.md says which one to install"
    if not faiss.get_num_gpus():
        return f"FAISS {faiss.__version__} is a build for GPUs, and sees none"
    return None


def measure(size: Size) -> Iterator[Figure]:
    """Measure what building and searching an index have FAISS do."""
    shape = size.search
    rng = np.random.default_rng(0)
    rows_ND = unit(rng.standard_normal((shape["rows"], shape["dim"]), np.float32))
    queries_QD = unit(rng.standard_normal((shape["queries"], shape["dim"]), np.float32))
    factory = f"IVF{shape['lists']},SQ8"
    reason, cpu = gpu_faiss(), torch.device("cpu")
    sample_ND = rows_ND[: training_rows(factory)]
    trained = train(sample_ND, factory, gpus=0 if reason else 1)
    flat = faiss.IndexFlatIP(shape["dim"])
    flat.add(rows_ND)

    def compared(what: str, unit_name: str, count: int, ours: Any, peer: Any, **details: Any) -> Figure:
        common: dict[str, Any] = {
            "what": f"FAISS, {what}",
            "unit": unit_name,
            "peer_name": "its CPUs",
            "wanted": WANTED,
        }
        peers = count / seconds_of(peer, cpu)
        if reason:
            return Figure(**common, reason=reason, details={"on_the_cpus": round(peers)})
        ours()  # the first call allocates
        return Figure(**common, ours=count / seconds_of(ours, cpu), peer=peers, details=details)

    yield compared(
        f"k-means of {shape['lists']} lists",
        "rows/s",
        len(sample_ND),
        partial(train, sample_ND, factory, gpus=1),
        partial(train, sample_ND, factory),
    )
    yield compared(
        f"filling {factory}",
        "rows/s",
        len(rows_ND),
        partial(_fill_on_gpu, trained, rows_ND),
        partial(_fill, trained, rows_ND),
    )
    on_gpu = None if reason else _FAISS.index_cpu_to_gpu(_FAISS.StandardGpuResources(), 0, flat)
    agree = None if on_gpu is None else float((on_gpu.search(queries_QD, 1)[1] == flat.search(queries_QD, 1)[1]).mean())
    yield compared(
        f"flat search of {len(rows_ND):,} rows",
        "queries/s",
        len(queries_QD),
        on_gpu and partial(on_gpu.search, queries_QD, K),
        partial(flat.search, queries_QD, K),
        same_best=agree,
    )


def _fill(trained: faiss.Index, rows_ND: np.ndarray) -> faiss.Index:
    index = faiss.clone_index(trained)
    index.add(rows_ND)
    return index


def _fill_on_gpu(trained: faiss.Index, rows_ND: np.ndarray) -> faiss.Index:
    """Filled on the GPU and brought back, as what is written is searched on CPUs."""
    index = _FAISS.index_cpu_to_gpu(_FAISS.StandardGpuResources(), 0, trained)
    index.add(rows_ND)
    return _FAISS.index_gpu_to_cpu(index)
