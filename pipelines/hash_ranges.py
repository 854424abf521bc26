"""How many hashes of all rows differ, and which repeat: in tasks, each for a range of the hashes.

Each row is read once: a task for each run of rows leaves its sorted hashes where it was. Then a task for each range
takes its slice of every run. The driver holds no hash, and a task those of a range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pipelines.executor import Shared
from pipelines.running import current_executor
from retrieval.sources.inputs import hashes_of

T = TypeVar("T")
RUN_ROWS = 2**20
"""Rows of a run: 8 MB of hashes."""
RANGE_ROWS = 2**25
"""Rows whose hashes fall into a range: 256 MB of hashes, twice while they are gathered."""


def content_hashes(ids: pa.ChunkedArray) -> np.ndarray:
    """Return the hashes of the contents that ids begin with, uint64 (N,)."""
    slices = (ids.slice(start, 65_536).to_pylist() for start in range(0, len(ids), 65_536))
    return np.concatenate([np.empty(0, np.uint64), *(hashes_of(id.split("-")[0] for id in each) for each in slices)])


def count_distinct(runs: Sequence[Shared[np.ndarray]], rows: int) -> int:
    """Return how many different hashes some runs have.

    Args:
        runs: sorted hashes, uint64.
        rows: of all runs.
    """
    return sum(_over_ranges(_distinct, runs, rows))


def repeated(runs: Sequence[Shared[np.ndarray]], rows: int) -> np.ndarray:
    """Return the hashes that runs have more than once, uint64, sorted; arguments as of ``count_distinct``."""
    return np.concatenate(_over_ranges(_repeated, runs, rows))


def _over_ranges(
    function: Callable[[Sequence[Shared[np.ndarray]], int, int], T], runs: Sequence[Shared[np.ndarray]], rows: int
) -> list[T]:
    count = max(math.ceil(rows / RANGE_ROWS), 1)
    bounds = [2**64 * i // count for i in range(count + 1)]
    shared = list(runs)
    return current_executor().map(function, [(shared, bounds[i], bounds[i + 1] - 1) for i in range(count)])


def _distinct(runs: Sequence[Shared[np.ndarray]], first: int, last: int) -> int:
    hashes = _gathered(runs, first, last)
    return int(is_first(hashes).sum())


def _repeated(runs: Sequence[Shared[np.ndarray]], first: int, last: int) -> np.ndarray:
    hashes = _gathered(runs, first, last)
    return np.unique(hashes[~is_first(hashes)])


def _gathered(runs: Sequence[Shared[np.ndarray]], first: int, last: int) -> np.ndarray:
    """Return the hashes from ``first`` to ``last``, sorted. Of each, a run gives at most two: an image that a gallery
    has a hundred million times is no more than another that it has twice.
    """
    pieces = [np.empty(0, np.uint64)]
    for run in runs:
        hashes = run.get()
        start = np.searchsorted(hashes, np.uint64(first), "left")
        piece = hashes[start : np.searchsorted(hashes, np.uint64(last), "right")]
        third = np.zeros(len(piece), bool)
        third[2:] = piece[2:] == piece[:-2]
        pieces.append(piece[~third])
    gathered = np.concatenate(pieces)
    gathered.sort()
    return gathered


def is_first(ordered: np.ndarray) -> np.ndarray:
    """Return of each value of a sorted array whether it is the first of its kind, bool (N,)."""
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return first
