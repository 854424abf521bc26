"""A bounded random sample of each label of a gallery, so that memory grows with the labels and not with the gallery.

Parts are read by Ray Data tasks, or one after the other where no Ray is used. A task reads some thousand rows at a
time, as Ray Data's own reading of Parquet holds blocks of whole files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from cluster.progress import ProgressCounter, progress
from cluster.session import in_process
from retrieval.artifacts import Gallery
from retrieval.artifacts.gallery import gallery_schema
from retrieval.errors import UserError
from retrieval.folder import Folder

Read = Callable[..., Iterator[pa.Table]]
_ROWS_AT_ONCE = 4096
_CHOSEN = pa.schema(
    [("id", pa.string()), ("label", pa.string()), ("order", pa.string()), ("part", pa.string()), ("row", pa.int64())]
)
_VECTORS = ["label", "vlm", "vision"]


def sample_rows(gallery: Gallery, labels: set[str], per_label: int, seed: int) -> pa.Table:
    """Draw at most ``per_label`` random rows (label, vlm, vision) of each label, sorted by label.

    The sample is the rows whose ids have the smallest hashes, so it does not depend on how the gallery is cut. It is
    chosen by ids and labels alone; of vectors, only the row groups are read that have rows of it.

    Raises:
        UserError: two rows have one id, and one of them would be drawn (``duplicate-id``).
    """
    with progress("sampling the gallery", gallery.manifest.rows) as counter:
        chosen = _CHOSEN.empty_table()
        wanted = pa.array(sorted(labels), pa.string())
        # One more than is drawn: it may be a copy of the last, and then which is drawn would depend on the cut.
        for part in _over_parts(gallery, gallery.parts(), _choose, wanted, per_label + 1, seed, counter):
            chosen = _smallest(pa.concat_tables([chosen, part.cast(_CHOSEN)]), per_label + 1)
        if not chosen.num_rows:
            return gallery_schema(0, 0).empty_table().select(_VECTORS)
        ids = chosen["id"].to_pylist()
        if len(set(ids)) < len(ids):
            raise UserError(
                f"the gallery {gallery.uri} has rows of the same id; embed it again from a source without copies",
                code="duplicate-id",
                field="gallery",
            )
        chosen = _smallest(chosen, per_label)
        parts = chosen["part"].unique().to_pylist()
        found = list(_over_parts(gallery, parts, _fetch, chosen.select(["part", "row"]).combine_chunks()))
    rows = pa.concat_tables(found).sort_by("id")
    chosen = chosen.sort_by("id")
    rows = rows.append_column("label", chosen["label"]).append_column("order", chosen["order"])
    rows = rows.sort_by([("label", "ascending"), ("order", "ascending")])
    return rows.select(_VECTORS).combine_chunks()


def _over_parts(
    gallery: Gallery, names: Sequence[str], read: Callable[..., Iterator[pa.Table]], shared: Any, *more: Any
) -> Iterator[pa.Table]:
    """Yield the tables that ``read(folder, part, shared, *more)`` yields for each part named, without empty ones.

    Args:
        shared: is kept in the object store once, and mapped by the tasks instead of being sent to each.
    """
    if in_process():
        tables = (table for part in names for table in read(gallery.folder, part, shared, *more))
    else:
        parts = ray.data.from_items([{"part": name} for name in names])
        # The reference is in a list, as Ray would replace one that is an argument by a copy of its value.
        arguments = [read, gallery.folder, [ray.put(shared)], more]
        mapped = parts.map_batches(_in_task, fn_args=arguments, batch_format="pyarrow")
        tables = mapped.iter_batches(batch_size=None, batch_format="pyarrow")
    yield from (table for table in tables if table.num_rows)


def _in_task(parts: pa.Table, read: Read, folder: Folder, shared: list[ray.ObjectRef], more: Any) -> Iterator[pa.Table]:
    for part in parts["part"].to_pylist():
        yield from read(folder, part, ray.get(shared[0]), *more)


def _choose(
    folder: Folder, part: str, labels: pa.Array, per_label: int, seed: int, counter: ProgressCounter
) -> Iterator[pa.Table]:
    key = f"{seed}".encode()
    kept, at = _CHOSEN.empty_table(), 0
    for rows in folder.tables(part, rows=_ROWS_AT_ONCE, columns=["id", "label"]):
        counter.add(rows.num_rows)
        rows = rows.append_column("row", pa.array(np.arange(at, at + rows.num_rows)))
        at += rows.num_rows
        rows = rows.filter(pc.is_in(rows["label"], labels))
        order = [hashlib.blake2b(i.encode(), digest_size=8, key=key).hexdigest() for i in rows["id"].to_pylist()]
        rows = rows.append_column("order", pa.array(order, pa.string()))
        rows = rows.append_column("part", pa.array([part] * rows.num_rows, pa.string()))
        kept = _smallest(pa.concat_tables([kept, rows.select(_CHOSEN.names).cast(_CHOSEN)]), per_label)
    yield kept


def _fetch(folder: Folder, part: str, chosen: pa.Table) -> Iterator[pa.Table]:
    rows = chosen["row"].filter(pc.equal(chosen["part"], part)).to_numpy()
    yield folder.take(part, np.sort(rows), ["id", "vlm", "vision"])


def _smallest(rows: pa.Table, per_label: int) -> pa.Table:
    """The rows with the smallest ``order`` of each label, sorted by label and order."""
    rows = rows.sort_by([("label", "ascending"), ("order", "ascending")])
    labels = rows["label"].to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]]) if len(labels) else np.array([], np.int64)
    place = np.arange(len(labels)) - np.repeat(starts, np.diff(np.r_[starts, len(labels)]))
    return rows.filter(pa.array(place < per_label))
