"""Which rows of a write are written for good, in the files of Ray Data's checkpoint.

A file ``NAME.pending.parquet`` of row numbers is written first, then the data, in files whose names begin with NAME,
then the former is renamed to ``NAME.parquet``. So a job that begins on Ray is resumed without it, and the reverse.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from pipelines.executor import Checkpoint, Shared, Sink
from retrieval.folder import Folder

SUFFIX, PENDING = ".parquet", ".pending.parquet"


def written(folder: Folder, column: str) -> np.ndarray:
    """Return the rows that are written for good, int64, sorted: 8 bytes of memory for each."""
    files = [name for name in folder.files(suffix=SUFFIX) if not name.endswith(PENDING)]
    with ThreadPoolExecutor(16) as pool:  # on an object store, what costs time is waiting
        tables = list(pool.map(folder.read_table, files))
    return np.sort(np.concatenate([np.empty(0, np.int64), *(table[column].to_numpy() for table in tables)]))


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


def without(rows: pa.Table, column: str, done: Shared[np.ndarray]) -> pa.Table:
    """Return the rows that are not among those ``written``, which are sorted and not none."""
    known, numbers = done.get(), rows[column].to_numpy()
    places = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
    return rows.filter(pa.array(known[places] != numbers))
