"""Which rows of a write are written for good, in the files of Ray Data's checkpoint.

A file ``NAME.pending.parquet`` of row numbers is written first, then the data, in files whose names begin with NAME,
then the former is renamed to ``NAME.parquet``. So a job that begins on Ray is resumed without it, and the reverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa

from pipelines.executor import Checkpoint, Each, Executor, Shared, Sink
from retrieval.folder import Folder
from retrieval.sources.known import is_in_sorted

SUFFIX, PENDING = ".parquet", ".pending.parquet"


def count_written(folder: Folder) -> int:
    """Return how many rows are written for good."""
    return sum(folder.count_rows(noted(folder)))


def written(folder: Folder, column: str, files: Sequence[str]) -> np.ndarray:
    """Return the rows that are written for good, int64, sorted: 8 bytes of memory for each.

    Args:
        folder, column: of the checkpoint.
        files: the ``noted`` ones.
    """
    ends = np.cumsum([0, *folder.count_rows(files)])
    rows = np.empty(ends[-1], np.int64)

    def read(number: int) -> None:
        rows[ends[number] : ends[number + 1]] = folder.read_table(files[number], [column])[column].to_numpy()

    with ThreadPoolExecutor(16) as pool:  # on an object store, what costs time is waiting
        list(pool.map(read, range(len(files))))
    rows.sort()
    return rows


def noted(folder: Folder) -> list[str]:
    """Return the files in which rows are noted that are written for good."""
    return [name for name in folder.files(suffix=SUFFIX) if not name.endswith(PENDING)]


def clean_pending(checkpoint: Folder, data: Folder) -> None:
    """Delete what interrupted writes have half written, so that nothing is there twice."""
    pending = checkpoint.files(suffix=PENDING)
    if not pending:
        return
    names = tuple(name.removesuffix(PENDING) for name in pending)
    for file in data.files():
        if file.startswith(names):
            data.delete(file)
    for file in pending:
        checkpoint.delete(file)


def write_noted(rows: pa.Table, name: str, sink: Sink, checkpoint: Checkpoint) -> None:
    """Write rows to a sink, and note that they are written."""
    folder, column = checkpoint
    folder.write_table(f"{name}{PENDING}", rows.select([column]))
    sink.write(rows, name)
    folder.filesystem.move(f"{folder.path}/{name}{PENDING}", f"{folder.path}/{name}{SUFFIX}")


def unwritten(executor: Executor, checkpoint: Checkpoint) -> tuple[Each, ...]:
    """Return the stage that leaves out what is written for good by now, and none if nothing is."""
    # Listed here, as a result that is lost with its node is made again later, when more is written.
    files = noted(checkpoint.folder)
    if not files:
        return ()
    done = executor.run(written, *checkpoint, files)
    return (Each(partial(without, column=checkpoint.column, done=done)),)


def without(rows: pa.Table, column: str, done: Shared[np.ndarray]) -> pa.Table:
    """Return the rows that are not among those ``written``, which are sorted."""
    return rows.filter(pa.array(~is_in_sorted(done.get(), rows[column].to_numpy())))
