"""How many threads FAISS uses within a task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.cores import usable_cores


@contextmanager
def faiss_threads(cpus: float) -> Iterator[None]:
    """As many threads for FAISS as the task has CPUs: Ray gives a worker one, whatever it was promised."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(max(1, min(int(cpus), usable_cores())))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
