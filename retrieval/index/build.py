"""A shard from tables that are read one after another, without ever holding its vectors.

Memory is the compressed index (while it grows, up to twice), the row table (twice while it is sorted), one table and
blocks of some thousand rows. The exact vectors go straight to their places in a mapped file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.index.files import VECTORS, check_index_header, read_index
from retrieval.index.kinds import fitted_factory, new_index, train, training_rows
from retrieval.index.shard import Shard, check_unit_halves, fill, id_order, repeated, training_sample
from retrieval.sources.metadata import with_common_types

__all__ = ["build_shard", "load_trained", "save_trained", "train", "training_rows"]


def build_shard(
    folder: Path,
    rows: Iterable[pa.Table],
    vectors: Iterable[pa.Table],
    *,
    vlm_dim: int,
    factory: str,
    trained: Path | None,
    seed: int = 0,
    share: float = 1.0,
    added: Callable[[int], object] = lambda count: None,
) -> dict[str, dict[str, Any]]:
    """Write a shard's files into `folder` and return their records, as `Shard.build` and `save` would.

    Of rows with the same id the first is kept; how many were dropped is `duplicates` in shard.json.

    Args:
        rows: columns id and any others; vlm and vision are left out if they are there.
        vectors: columns id, vlm and vision (float16 lists of D1 and D2): the same rows in the same order, in tables of
            any sizes. Gone through when `rows` has been.
        vlm_dim: D1.
        factory: the kind of `trained`; without one, a FAISS factory string or `auto`, fitted to the rows.
        trained: file of `save_trained`, of which the shard becomes a filled copy: shards of one trained index can be
            merged. Without it the shard trains on its own rows.
        seed: of the training sample, the k-means and the tuning queries.
        share: of the rows that were cut into shards with this one; see `Shard.measure_efforts`.
        added: is told how many rows were added to the compressed index, block after block.

    Raises:
        ValueError: a row without an id or without unit halves, halves of other dimensions, tables that differ between
            the two, or a trained index of another kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table, places = _row_table(rows)
    first, vectors = _peeked(vectors)
    dim = sum(_dims(first))
    factory = factory if trained else fitted_factory(factory, table.num_rows, dim)
    index = load_trained(trained, factory, dim) if trained else None  # refuses before anything is written
    placed = np.lib.format.open_memmap(folder / VECTORS, mode="w+", dtype=np.float16, shape=(table.num_rows, dim))
    _place_vectors(vectors, placed, table["id"].combine_chunks(), places, vlm_dim)
    placed.flush()
    if index is None:
        index = train(training_sample(placed, factory, seed), factory, seed=seed)
    fill(index, placed, added)
    shard = Shard(index, placed, table, vlm_dim=vlm_dim, factory=factory)
    shard.measure_efforts(seed, share)
    return shard.save_beside_vectors(folder, duplicates=len(places) - table.num_rows)


def save_trained(index: faiss.Index, path: Path) -> None:
    """Write what `train` returned."""
    faiss.write_index(index, str(path))


def load_trained(path: Path, factory: str, dim: int) -> faiss.Index:
    """What `save_trained` wrote; ValueError if the file is damaged, filled, untrained, or of another kind or D."""
    check_index_header(path, 0, dim, factory)
    index = read_index(path, factory)
    if not index.is_trained:
        raise ValueError(f"{path} is not trained")
    asked, found = (_traits(one) for one in (new_index(factory, dim), index))
    if asked != found:
        raise ValueError(f"{path} holds an index of {found}, {factory} has {asked}")
    return index


def _traits(index: faiss.Index) -> str:
    lists = f"{index.nlist} lists, " if hasattr(index, "nlist") else ""
    return f"{lists}{index.sa_code_size()} bytes a code"


def _peeked(tables: Iterable[pa.Table]) -> tuple[pa.Table, Iterable[pa.Table]]:
    """The first of the tables, and all of them."""
    rest = iter(tables)
    first = next(rest)
    return first, chain([first], rest)


def _dims(table: pa.Table) -> tuple[int, ...]:
    return tuple(table.schema.field(name).type.list_size for name in ("vlm", "vision"))


def _row_table(tables: Iterable[pa.Table]) -> tuple[pa.Table, NDArray[np.int64]]:
    """The row table in ascending id order; each row's place in it, -1 for repeated ids."""
    parts = [table.select([name for name in table.column_names if name not in ("vlm", "vision")]) for table in tables]
    unsorted = pa.concat_tables(with_common_types(parts), promote_options="default").combine_chunks()
    parts.clear()
    if missing := unsorted["id"].null_count:
        raise ValueError(f"{missing} of {unsorted.num_rows} ids are missing")
    names = unsorted["id"].combine_chunks()
    order = id_order(names)
    first = ~repeated(names.take(pa.array(order)))
    places = np.full(len(order), -1, dtype=np.int64)
    places[order[first]] = np.arange(np.count_nonzero(first))
    columns = ["id", *(name for name in unsorted.column_names if name != "id")]
    return unsorted.select(columns).take(pa.array(order[first])), places


def _place_vectors(
    tables: Iterable[pa.Table],
    vectors: NDArray[np.float16],
    ids: pa.Array,
    places: NDArray[np.int64],
    vlm_dim: int,
) -> None:
    """Bring each row's vectors to its place."""
    start, expected = 0, (vlm_dim, vectors.shape[1] - vlm_dim)
    for table in tables:
        if _dims(table) != expected:
            raise ValueError(f"a shard of (vlm, vision) vectors of {expected} dimensions got rows of {_dims(table)}")
        of = places[start : start + table.num_rows]
        start += table.num_rows
        kept = np.flatnonzero(of >= 0)
        if len(of) < table.num_rows or not table["id"].take(pa.array(kept)).combine_chunks().equals(
            ids.take(pa.array(of[kept]))
        ):
            raise ValueError("the vectors that a shard is built from are not those of its rows, in their order")
        joint = np.concatenate([_matrix(table["vlm"]), _matrix(table["vision"])], axis=1)
        check_unit_halves(joint, vlm_dim, table["id"])
        vectors[of[kept]] = joint[kept]
    if start != len(places):
        raise ValueError(f"a shard of {len(places)} rows got only {start} vectors")


def _matrix(column: pa.ChunkedArray) -> NDArray[np.float16]:
    """(N, D) of a column of fixed-size lists; a missing list becomes NaN, which `check_unit_halves` names."""
    size = column.type.list_size
    chunks = [np.empty((0, size), dtype=np.float16)]
    for chunk in column.chunks:
        if chunk.null_count:
            chunk = pc.fill_null(chunk, pa.scalar([float("nan")] * size, chunk.type))
        chunks.append(chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), size))
    return np.concatenate(chunks)
