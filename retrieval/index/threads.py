"""Many queries at once: a part of them in each thread that FAISS may use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.index.hits import Hits

# Fewer queries in a thread are not worth it: FAISS multiplies small batches slower.
_LEAST: Final = 32


def in_threads(ask: Callable[[NDArray[np.float32]], Hits], query_QD: NDArray[np.float32]) -> Hits:
    """Return what ``ask`` finds for these queries, asked for a part of them in each of FAISS's threads, in which FAISS
    then has one. Left to FAISS, all but one of them are idle while exact scores are made of its candidates.

    Args:
        ask: ``Shard.search`` or ``exact`` of some queries (Q, D).
        query_QD: at least one.
    """
    threads = min(faiss.omp_get_max_threads(), len(query_QD) // _LEAST)
    if threads < 2:
        return ask(query_QD)
    with ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        parts = list(pool.map(ask, np.array_split(query_QD, threads)))
    return Hits(**{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Hits)})
