"""Calls and maps over tables in this process: blocks, batches, retries, and a write that is resumed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from cluster.profile import Stage
from cluster.progress import progress
from pipelines.checkpoint import count_written, noted, unwritten, written
from pipelines.executor import Checkpoint, Each, Files, TableFiles, Workers
from pipelines.local_executor import LocalExecutor
from pipelines.running import current_executor
from retrieval.folder import Folder

pytestmark = pytest.mark.usefixtures("in_process")
ONE = Stage(max_actors=1, batch=8)


class Place(NamedTuple):
    """Tables of 250 numbered rows in two files, and where to write what is made of them."""

    folder: Folder
    source: Files
    sink: TableFiles
    checkpoint: Checkpoint

    def rows(self) -> list[int]:
        tables = [self.sink.folder.read_table(name) for name in self.sink.folder.files()]
        return sorted(pa.concat_tables(tables)["input"].to_pylist())

    def written(self) -> np.ndarray:
        return written(*self.checkpoint, noted(self.checkpoint.folder))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    folder = Folder(tmp_path)
    for name, numbers in (("a", range(100)), ("b", range(100, 250))):
        folder.write_table(f"in/{name}.parquet", pa.table({"input": np.array(numbers), "other": ["x"] * len(numbers)}))
    source = Files(folder / "in", ["a.parquet", "b.parquet"], block=64)
    return Place(folder, source, TableFiles(folder / "out"), Checkpoint(folder / "checkpoint", "input"))


def doubled(rows: pa.Table) -> pa.Table:
    return rows.append_column("double", pa.array(2 * rows["input"].to_numpy()))


class Worker:
    made = 0

    def __init__(self, sizes: list[int]) -> None:
        Worker.made += 1
        self.sizes = sizes

    def __call__(self, rows: pa.Table) -> pa.Table:
        self.sizes.append(rows.num_rows)
        return rows


def test_it_runs_jobs_in_a_session_of_this_process() -> None:
    assert isinstance(current_executor(), LocalExecutor)


def test_tables_pass_the_stages_in_the_rows_that_each_wants(place: Place) -> None:
    sizes: list[int] = []
    Worker.made = 0
    source = Files(place.folder / "in", ["a.parquet"], ["input"])
    stages = Each(doubled, 30), Workers(Worker, (sizes,), ONE)
    found = pa.concat_tables(current_executor().tables(source, *stages))
    assert found.column_names == ["input", "double"]
    assert found["double"].to_pylist() == list(range(0, 200, 2))
    assert Worker.made == 1
    assert sizes == [8] * 12 + [4]


def test_tables_without_a_row_are_not_passed_on() -> None:
    tables = [pa.table({"input": [1, 2]}), pa.table({"input": [3]})]
    kept = Each(lambda rows: rows.filter(pa.array([value > 2 for value in rows["input"].to_pylist()])))
    assert [table["input"].to_pylist() for table in current_executor().tables(tables, kept)] == [[3]]


def test_a_write_leaves_a_file_and_a_note_for_each_block(place: Place) -> None:
    current_executor().write(place.source, Each(doubled, 8), sink=place.sink, checkpoint=place.checkpoint)
    assert place.rows() == place.written().tolist() == list(range(250))
    assert len(place.sink.folder.files()) == 4
    assert place.checkpoint.folder.files() == place.sink.folder.files()


def test_rows_that_are_written_are_counted_without_holding_them(place: Place) -> None:
    folder, rows = place.checkpoint.folder, 200_000
    numbers = np.random.default_rng(0).permutation(rows)
    for part, some in enumerate(np.array_split(numbers, 20)):
        folder.write_table(f"{part}.parquet", pa.table({"input": some}))
    folder.write_table("half.pending.parquet", pa.table({"input": [rows]}))
    tracemalloc.start()
    try:
        assert count_written(folder) == rows
        counted = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        found = place.written()
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, np.arange(rows))
    assert counted < rows  # bytes
    assert held < 8 * rows + 1_500_000


@pytest.mark.parametrize("noted", [False, True], ids=["while it writes", "before it is noted"])
def test_a_write_that_was_interrupted_is_resumed(place: Place, noted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    executor, done = current_executor(), []

    class Interrupted(TableFiles):
        def write(self, rows: pa.Table, name: str) -> None:
            if len(done) == 2:
                if noted:
                    super().write(rows, name)
                raise KeyboardInterrupt
            super().write(rows, name)
            done.append(rows.num_rows)

    with pytest.raises(KeyboardInterrupt):
        executor.write(place.source, sink=Interrupted(place.sink.folder), checkpoint=place.checkpoint)
    assert len(place.written()) == sum(done) == 128
    seen: list[int] = []
    executor.write(place.source, Workers(Worker, (seen,), ONE), sink=place.sink, checkpoint=place.checkpoint)
    assert sum(seen) == 250 - 128
    assert place.rows() == place.written().tolist() == list(range(250))


class Lost(NamedTuple):
    """A result that is made again whenever it is read, as one is that was lost with its node."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def get(self) -> Any:
        return self.function(*self.arguments)


def test_what_is_written_while_a_write_is_resumed_is_not_left_out_of_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, numbers = LocalExecutor(), pa.table({"input": range(20)})
    monkeypatch.setattr(LocalExecutor, "run", lambda _, function, *arguments: Lost(function, arguments))
    assert unwritten(executor, place.checkpoint) == ()
    place.checkpoint.folder.write_table("before.parquet", numbers.slice(0, 5))
    [stage] = unwritten(executor, place.checkpoint)
    for name in ("since", "since.pending"):
        place.checkpoint.folder.write_table(f"{name}.parquet", numbers.slice(5, 5))
    assert stage.function(numbers)["input"].to_pylist() == list(range(5, 20))


def test_a_write_without_a_checkpoint_has_a_file_for_each_table(place: Place) -> None:
    tables = [pa.table({"input": [i]}) for i in range(3)]
    current_executor().write(tables, Each(doubled), sink=place.sink)
    assert place.rows() == [0, 1, 2]
    assert len(place.sink.folder.files()) == 3


def test_calls_are_retried_after_the_errors_that_they_may_have() -> None:
    failing = iter([OSError("away"), OSError("away"), None, ValueError("a bug")])

    def call(number: int) -> int:
        error = next(failing)
        if error:
            raise error
        return number

    executor = current_executor()
    assert executor.map(call, [(7,)], retry_on=[OSError]) == [7]
    with pytest.raises(ValueError, match="a bug"):
        executor.map(call, [(8,)], retry_on=[OSError])


def test_calls_are_given_shared_values_and_answer_in_order() -> None:
    executor = current_executor()
    shared = executor.share(np.arange(3))
    assert executor.map(lambda value, by: by * value.get().sum(), [(shared, 1), (shared, 2)]) == [3, 6]
    assert list(executor.as_completed(lambda value: value, [(1,), (2,)])) == [1, 2]
    assert list(executor.stream(lambda count: iter(range(count)), [(2,), (3,)], ahead=1)) == [0, 1, 0, 1, 2]
    assert executor.run(partial(sum, [1, 2])).get() == 3


def test_progress_counts_without_ray(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("counting", 5) as counter:
        counter.add(3, read=0.5)
        counter.add(2, read=0.25, write=1)
        counter.flush()
        assert (counter.done(), counter.seconds()) == (5, {"read": 0.75, "write": 1})
