"""Rows of equal bytes, counted by range of their hashes: as a plain set counts them, in bounded memory."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelines.batch_contents
import pipelines.hash_ranges
from cluster.session import session
from pipelines.batch_contents import duplicates_in
from pipelines.executor import Shared
from pipelines.hash_ranges import count_distinct, repeated
from pipelines.local_executor import LocalExecutor
from retrieval.artifacts.manifests import PartRecord
from retrieval.folder import Folder

pytestmark = pytest.mark.usefixtures("in_process")
ENDS = st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1])


def shared(runs: list[list[int]]) -> list[Shared[np.ndarray]]:
    return [LocalExecutor().share(np.sort(np.array(run, np.uint64))) for run in runs]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(ENDS | st.integers(0, 2**64 - 1), max_size=30), max_size=5), st.integers(4, 40))
def test_any_number_of_ranges_finds_what_a_set_does(runs: list[list[int]], rows_of_range: int) -> None:
    counts = Counter(value for run in runs for value in run)
    rows = counts.total()
    with pytest.MonkeyPatch.context() as patch, session("none"):
        patch.setattr(pipelines.hash_ranges, "RANGE_ROWS", rows_of_range)
        assert count_distinct(shared(runs), rows) == len(counts)
        again = repeated(shared(runs), rows)
    assert again.dtype == np.uint64
    assert again.tolist() == sorted(value for value, count in counts.items() if count > 1)


def written(folder: Folder, contents: list[int], parts: int) -> list[PartRecord]:
    """Parts of a gallery with these contents."""
    records = []
    for number, some in enumerate(np.array_split(np.array(contents, np.uint64), parts)):
        ids = [f"{content:016x}-{number:08x}" for content in some.tolist()]
        folder.write_table(f"{number}.parquet", pa.table({"id": ids, "path": ids}))
        records.append(PartRecord(name=f"{number}.parquet", rows=len(some)))
    return records


@pytest.mark.parametrize("rows_of_run", [1, 300, 2**20])
def test_rows_of_equal_bytes_are_counted(rows_of_run: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.batch_contents, "RUN_ROWS", rows_of_run)
    monkeypatch.setattr(pipelines.hash_ranges, "RANGE_ROWS", 100)
    contents = np.random.default_rng(0).integers(0, 700, 1000).tolist()
    parts = written(Folder(tmp_path), contents, 7)
    assert duplicates_in(Folder(tmp_path), parts) == 1000 - len(set(contents))


def test_a_range_holds_its_own_hashes_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 bytes a row while it gathers them, however many times there is the same image."""
    monkeypatch.setattr(pipelines.hash_ranges, "RANGE_ROWS", 100_000)
    rng = np.random.default_rng(0)
    runs = [np.sort(rng.integers(0, 2**64, 100_000, np.uint64)) for _ in range(16)]
    runs += [np.zeros(100_000, np.uint64)] * 16
    given_runs = [LocalExecutor().share(run) for run in runs]
    tracemalloc.start()
    try:
        found = count_distinct(given_runs, 100_000 * 32)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == len(np.unique(np.concatenate(runs)))
    assert peak < 4_000_000  # all would be 26 MB
