"""Rows of a gallery as tasks read them, and by what is known of them: vectors by ids, ids by labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.executor import Shared
from pipelines.running import current_executor
from retrieval.artifacts import Gallery
from retrieval.artifacts.columns import matrix
from retrieval.folder import Folder

ROWS_READ = 8192
"""At once, where few of their vectors are used."""
_RUNS, _ROWS_PER_RUN = 16, 65_536
"""A gallery is read in so many tasks, or more where each would have more rows than that."""


class Run(NamedTuple):
    """What one task reads."""

    folder: Folder
    parts: list[str]
    rows: int
    """At once, at most."""

    def blocks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield all of it; parts that are smaller than a block are joined."""
        held: list[pa.Table] = []
        for part in self.parts:
            for table in self.folder.tables(part, columns, rows=self.rows):
                if held and sum(map(len, held)) + len(table) > self.rows:
                    yield pa.concat_tables(held)
                    held = []
                held.append(table)
        if held:
            yield pa.concat_tables(held)


def runs(gallery: Gallery, rows: int) -> list[Run]:
    """Return what the tasks read that together read a gallery.

    Args:
        rows: that a task has in memory at once.
    """
    parts = gallery.parts()
    count = min(len(parts), max(_RUNS, gallery.manifest.rows // _ROWS_PER_RUN))
    bounds = [i * len(parts) // count for i in range(count + 1)]
    return [Run(gallery.folder, parts[start:end], rows) for start, end in pairwise(bounds)]


def vectors_of(gallery: Gallery, ids: Collection[str]) -> dict[str, np.ndarray]:
    """Return [c ; d] of rows, float16 (D,), by their ids; ids that the gallery lacks are missing."""
    if not ids:
        return {}
    executor = current_executor()
    wanted = executor.share(pa.array(sorted(set(ids)), pa.string()))
    found: dict[str, np.ndarray] = {}
    for some in executor.as_completed(_vectors, [(run, wanted) for run in runs(gallery, ROWS_READ)]):
        found |= some
    return found


def ids_of_labels(gallery: Gallery, labels: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the ids of the rows of each label, sorted; labels that the gallery lacks are missing."""
    wanted, found = pa.array(sorted(set(labels)), pa.string()), defaultdict(list)
    for table in gallery.tables(["id", "label"]) if len(wanted) else ():
        rows = table.filter(pc.is_in(table["label"], wanted))
        for id, label in zip(rows["id"].to_pylist(), rows["label"].to_pylist(), strict=True):
            found[label].append(id)
    return {label: tuple(sorted(ids)) for label, ids in found.items()}


def _vectors(run: Run, shared: Shared[pa.Array]) -> dict[str, np.ndarray]:
    wanted = shared.get()
    found: dict[str, np.ndarray] = {}
    for part in run.parts:
        known = run.folder.read_table(part, ["id"])["id"]
        if not pc.any(pc.is_in(known, wanted)).as_py():
            continue
        for table in run.folder.tables(part, ["id", "vlm", "vision"], rows=run.rows):
            rows = table.filter(pc.is_in(table["id"], wanted))
            joint_ND = np.concatenate([matrix(rows["vlm"]), matrix(rows["vision"])], axis=1)
            found |= dict(zip(rows["id"].to_pylist(), joint_ND, strict=True))
    return found
