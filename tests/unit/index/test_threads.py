"""Many queries, asked for in each thread that FAISS may use, find what they find together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import fields
from functools import partial

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from plain_shard import D1, build, names

from retrieval.fusion import unit
from retrieval.index.hits import Hits
from retrieval.index.threads import in_threads


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    yield
    faiss.omp_set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("queries", [63, 64, 65])
def test_each_thread_has_a_part_of_many_queries(queries: int) -> None:
    rng = np.random.default_rng(0)
    halves = [unit(rng.standard_normal((300, D1))) for _ in range(2)]
    shard = build(names(300), np.concatenate(halves, axis=1), factory="IVF4,SQ8")
    query = rng.standard_normal((queries, shard.dim)).astype(np.float32) / 8
    asked: list[tuple[int, int, int]] = []

    def ask(way: partial[Hits], some: NDArray[np.float32]) -> Hits:
        asked.append((threading.get_ident(), len(some), faiss.omp_get_max_threads()))
        return way(some)

    for way in (partial(shard.search, k=7), partial(shard.exact, k=7)):
        asked.clear()
        found, together = in_threads(partial(ask, way), query), way(query)
        for field in fields(Hits):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(together, field.name))
        sizes = [32, queries - 32] if queries >= 64 else [queries]
        assert sorted(size for _, size, _ in asked) == sizes
        assert {threads for *_, threads in asked} == {1 if queries >= 64 else 2}
        assert threading.get_ident() in {thread for thread, *_ in asked} or queries >= 64
    assert faiss.omp_get_max_threads() == 2
