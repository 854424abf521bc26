"""Which rows of an index and its gallery are meant, and both without them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.executor import Shared
from pipelines.running import current_executor
from retrieval.artifacts import Gallery, Index
from retrieval.artifacts.manifests import PartRecord


class Selection(NamedTuple):
    """Rows by what they are called: those that have one of these ids, paths or labels."""

    ids: Sequence[str] = ()
    paths: Sequence[str] = ()
    labels: Sequence[str] = ()

    @property
    def columns(self) -> Sequence[str]:
        """Those that ``mask`` needs."""
        return tuple(self._by_column())

    def mask(self, rows: pa.Table) -> pa.ChunkedArray:
        """Return which rows are meant, bool (N,); the table has the columns id, path and label."""
        masks = [pc.is_in(rows[column], pa.array(values, pa.string())) for column, values in self._by_column().items()]
        return pc.or_(pc.or_(masks[0], masks[1]), masks[2])

    def unknown(self, found: pa.Table) -> list[str]:
        """Return the ids, paths and labels that none of the rows that were found has."""
        names = {column: set(found[column].to_pylist()) for column in self._by_column()}
        return [value for column, values in self._by_column().items() for value in values if value not in names[column]]

    def _by_column(self) -> dict[str, Sequence[str]]:
        return {"id": self.ids, "path": self.paths, "label": self.labels}


class Replaced(NamedTuple):
    """Rows whose place new ones take: those of the same ids, and those of files of one source that have changed."""

    ids: pa.ChunkedArray
    paths: Sequence[str]
    batches: Sequence[str]
    lost: Sequence[str]
    """Batches that the index has and the gallery never committed: an addition was interrupted and started over."""

    @property
    def columns(self) -> Sequence[str]:
        """Those that ``mask`` needs."""
        return ("id", "path", "batch") if self.paths or self.lost else ("id",)

    def mask(self, rows: pa.Table) -> pa.ChunkedArray:
        """Return which rows are meant, bool (N,)."""
        same = pc.is_in(rows["id"], self.ids)
        if self.columns == ("id",):
            return same
        changed = pc.is_in(rows["path"], pa.array(self.paths, pa.string()))
        of_source = pc.is_in(rows["batch"], pa.array(self.batches, pa.string()))
        of_lost = pc.is_in(rows["batch"], pa.array(self.lost, pa.string()))
        return pc.or_(pc.or_(same, pc.and_(changed, of_source)), of_lost)


def find_rows(index: Index, selection: Selection | Replaced) -> pa.Table:
    """Return the rows of an index that are meant and not removed yet: ``shard``, and the selection's columns."""
    executor = current_executor()
    chosen = executor.share(selection)
    shards = [(index, number, chosen) for number in range(len(index.manifest.shards))]
    return pa.concat_tables(executor.map(_in_shard, shards))


def _in_shard(index: Index, number: int, chosen: Shared[Selection | Replaced]) -> pa.Table:
    selection = chosen.get()
    rows = index.live_rows(number, selection.columns)
    rows = rows.filter(selection.mask(rows))
    return rows.add_column(0, "shard", pa.array([number] * rows.num_rows, pa.int32()))


def parts_without(gallery: Gallery, parts: Sequence[PartRecord], selection: Selection | Replaced) -> list[PartRecord]:
    """Return parts without the rows that are meant: those that have one are written again, beside.

    Raises:
        DamagedError: a part is missing or not Parquet.
    """
    executor = current_executor()
    chosen = executor.share(selection)
    folder = executor.share(gallery)
    made = executor.map(_part_without, [(folder, part, chosen) for part in parts])
    return [part for part in made if part.rows]


def _part_without(shared: Shared[Gallery], part: PartRecord, chosen: Shared[Selection | Replaced]) -> PartRecord:
    gallery, selection = shared.get(), chosen.get()
    with gallery.reading(part.name):
        gone = selection.mask(gallery.folder.read_table(part.name, selection.columns)).fill_null(False).to_numpy()
    if not gone.any():
        return part
    kept = np.flatnonzero(~gone)
    if not len(kept):
        return part.model_copy(update={"rows": 0})
    place = part.name.rsplit("/", 1)[0]
    name = f"{place}/{uuid.uuid4().hex}{Gallery.EMBEDDED}"
    with gallery.reading(part.name):
        rows = gallery.folder.read_table(part.name)
    gallery.folder.write_table(name, rows.take(pa.array(kept)))
    return PartRecord(name=name, rows=len(kept))
