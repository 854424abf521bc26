"""Small indexes are searched and trained by one thread: on a busy machine, threads wait for each other."""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)
