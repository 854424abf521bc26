"""A shard from tables that are read one after another, without ever holding its vectors.

Memory is the compressed index (while it grows, up to twice), the row table (twice while it is sorted), one table and
blocks of some thousand rows. The exact vectors go straight to their places in a mapped file. N rows, D = D1 + D2
dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.errors import DamagedError, UserError
from retrieval.index.files import VECTORS, vector_text, write_shard
from retrieval.index.kinds import fitted_factory
from retrieval.index.shard import Shard
from retrieval.index.train import load_trained, train, training_sample
from retrieval.index.tuning import measured_efforts
from retrieval.sources.metadata import with_common_types
from retrieval.timing import timed

# Rows are expanded to float32 this many at a time.
BLOCK_ROWS: Final = 16_384


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
    texts: Mapping[float, NDArray[np.float32]] = MappingProxyType({}),
    added: Callable[[int], object] = lambda count: None,
    spent: MutableMapping[str, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """Write a shard's four files into a folder; of rows with the same id the first is kept.

    How many rows were dropped is ``duplicates`` in shard.json.

    Args:
        folder: where to write; made if it is missing.
        rows: columns id and any others; vlm and vision are left out if they are there.
        vectors: columns id, vlm and vision (float16 lists of D1 and D2): the same rows in the same order, in tables of
            any sizes. Gone through when ``rows`` has been.
        vlm_dim: D1.
        factory: the kind of ``trained``; without one, a FAISS factory string or ``auto``, fitted to the rows.
        trained: file of ``save_trained``, of which the shard becomes a filled copy: shards of one trained index can be
            merged. Without it the shard trains on its own rows.
        seed: of the training sample, the k-means and the tuning queries.
        share: of the rows that were cut into shards with this one; see ``tuning.measured_efforts``.
        texts: see there.
        added: called with the number of rows of each block that was added to the compressed index.
        spent: is given the seconds of ``place`` (reading, and the exact vectors), ``train``, ``add``, ``tune`` and
            ``write``.

    Returns:
        {file name: {"bytes": int, "sha256": hex}} of all four files, for the manifest of an index.

    Raises:
        UserError: a row has no id (code ``missing``, field ``id``) or a half that is not of unit norm (``not-unit``,
            field ``vlm`` or ``vision``), or no index of this kind can be made (as ``kinds.new_index``).
        DamagedError: the tables have vectors of other dimensions or rows than they should, or the trained index cannot
            be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spent = {} if spent is None else spent
    with timed(spent, "place"):
        table, places = _row_table(rows)
    first, vectors = _peeked(vectors)
    dim = sum(_dims(first))
    factory = factory if trained else fitted_factory(factory, table.num_rows, dim)
    index = load_trained(trained, factory, dim) if trained else None  # refuses before anything is written
    placed = np.lib.format.open_memmap(folder / VECTORS, mode="w+", dtype=np.float16, shape=(table.num_rows, dim))
    with timed(spent, "place"):
        _place_vectors(vectors, placed, table["id"].combine_chunks(), places, vlm_dim)
        placed.flush()
    if index is None:
        with timed(spent, "train"):
            index = train(training_sample(placed, factory, seed), factory, seed=seed)
    with timed(spent, "add"):
        fill(index, placed, added)
    with timed(spent, "tune"):
        efforts = measured_efforts(Shard(index, placed, table, vlm_dim=vlm_dim, factory=factory), seed, share, texts)
    content = {
        "rows": table.num_rows,
        "dim": dim,
        "vlm_dim": vlm_dim,
        "factory": factory,
        "efforts": efforts,
        "duplicates": len(places) - table.num_rows,
        "mean": vector_text(mean_row(placed)),
    }
    with timed(spent, "write"):
        return write_shard(folder, index, table, content)


def fill(
    index: faiss.Index, vectors_ND: NDArray[np.float16], added: Callable[[int], object] = lambda count: None
) -> None:
    """Add all rows to a trained index, in blocks; ``added`` is called with the number of rows of each."""
    for start in range(0, len(vectors_ND), BLOCK_ROWS):
        block = vectors_ND[start : start + BLOCK_ROWS].astype(np.float32)
        index.add(block)
        added(len(block))


def mean_row(vectors_ND: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return the mean of the joint rows, float32 (D,), a block of them at a time."""
    total_D = np.zeros(vectors_ND.shape[1])
    for start in range(0, len(vectors_ND), BLOCK_ROWS):
        total_D += vectors_ND[start : start + BLOCK_ROWS].sum(axis=0, dtype=np.float64)
    return (total_D / max(len(vectors_ND), 1)).astype(np.float32)


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
        raise UserError(f"{missing} of {unsorted.num_rows} ids are missing", code="missing", field="id")
    names = unsorted["id"].combine_chunks()
    # By code point: Arrow sorts by UTF-8 bytes, which is the same order, and stably, so that equal ids keep theirs.
    order = pc.sort_indices(names).to_numpy().astype(np.int64)
    first = ~_repeated(names.take(pa.array(order)))
    places = np.full(len(order), -1, dtype=np.int64)
    places[order[first]] = np.arange(np.count_nonzero(first))
    columns = ["id", *(name for name in unsorted.column_names if name != "id")]
    return unsorted.select(columns).take(pa.array(order[first])), places


def _repeated(values: pa.Array) -> NDArray[np.bool_]:
    """bool (N,): whether each of these sorted ids is that of the row before."""
    if len(values) < 2:
        return np.zeros(len(values), dtype=np.bool_)
    same = pc.equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    return np.concatenate([[False], same])


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
            raise DamagedError(
                f"a shard of (vlm, vision) vectors of {expected} dimensions got rows of {_dims(table)}", field="vision"
            )
        of = places[start : start + table.num_rows]
        start += table.num_rows
        kept = np.flatnonzero(of >= 0)
        if len(of) < table.num_rows or not table["id"].take(pa.array(kept)).combine_chunks().equals(
            ids.take(pa.array(of[kept]))
        ):
            raise DamagedError(
                "the vectors that a shard is built from are not those of its rows, in their order", field="id"
            )
        joint = np.concatenate([_matrix(table["vlm"]), _matrix(table["vision"])], axis=1)
        _check_unit_halves(joint, vlm_dim, table["id"])
        vectors[of[kept]] = joint[kept]
    if start != len(places):
        raise DamagedError(f"a shard of {len(places)} rows got only {start} vectors", field="id")


def _check_unit_halves(joint_ND: NDArray[np.float16], vlm_dim: int, ids: pa.Array | pa.ChunkedArray) -> None:
    wide = joint_ND.astype(np.float32)
    for half, name in ((wide[:, :vlm_dim], "vlm"), (wide[:, vlm_dim:], "vision")):
        norms = np.linalg.norm(half, axis=1)
        bad = np.flatnonzero(~(np.abs(norms - 1) < 0.01))  # also where the norm is NaN
        if bad.size:
            raise UserError(
                f"the {name} vector of row {ids[int(bad[0])].as_py()!r} has norm {norms[bad[0]]:.4g}, "
                "both halves of a joint row must have norm 1",
                code="not-unit",
                field=name,
            )


def _matrix(column: pa.ChunkedArray) -> NDArray[np.float16]:
    """(N, D) of a column of fixed-size lists; a missing list becomes NaN, which `_check_unit_halves` names."""
    size = column.type.list_size
    chunks = [np.empty((0, size), dtype=np.float16)]
    for chunk in column.chunks:
        if chunk.null_count:
            chunk = pc.fill_null(chunk, pa.scalar([float("nan")] * size, chunk.type))
        chunks.append(chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), size))
    return np.concatenate(chunks)
