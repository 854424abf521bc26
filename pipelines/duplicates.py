"""Images that a gallery has more than once: the same bytes, or vectors that are nearly the same.

Near duplicates are found through the index itself: each row searches, by its vision vector alone (λ = 1), for the rows
that lie closest. So a pair can be missed where the index misses a neighbour, or where a row has more than
``NEIGHBOURS`` of them; groups are joined through any of their pairs.

Shapes: N rows, B rows of a block, P pairs, D joint dimensions.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cluster.profile import IndexSettings
from cluster.progress import ProgressCounter, progress
from pipelines.executor import Shared
from pipelines.hash_ranges import content_hashes, is_first, repeated
from pipelines.running import current_executor
from retrieval.artifacts import Index
from retrieval.errors import UserError
from retrieval.index.shard import Shard
from retrieval.sources.known import is_in_sorted

NEIGHBOURS = 20
_BLOCK = 1024
PAIRS = pa.schema([("id", pa.string()), ("of", pa.string()), ("cosine", pa.float32())])


def exact_duplicates(index: Index) -> pa.Table:
    """Find the rows whose bytes a row of a smaller id has as well.

    Returns:
        ``id``, ``of`` (the smallest id with the same bytes), ``cosine`` (1).
    """
    executor, shards = current_executor(), range(len(index.manifest.shards))
    hashes = executor.map_shared(_hashes_of_shard, [(index, number) for number in shards])
    wanted = executor.share(repeated(hashes, index.manifest.rows))
    found = executor.map(_ids_of_contents, [(index, number, wanted) for number in shards])
    # An id begins with the hash of the bytes, so equal ones are neighbours in order.
    ids = np.sort(pa.chunked_array(found, pa.string()).to_numpy())
    contents = np.array([id.split("-")[0] for id in ids], dtype=object)
    first = is_first(contents)
    of = ids[np.maximum.accumulate(np.where(first, np.arange(len(ids)), 0))]
    again = ~first
    return pa.table({"id": ids[again], "of": of[again], "cosine": np.ones(again.sum(), np.float32)}, schema=PAIRS)


def _hashes_of_shard(index: Index, number: int) -> np.ndarray:
    return np.sort(content_hashes(index.live_rows(number, ["id"])["id"]))


def _ids_of_contents(index: Index, number: int, hashes: Shared[np.ndarray]) -> pa.Array:
    ids, wanted = index.live_rows(number, ["id"])["id"], hashes.get()
    return ids.filter(pa.array(is_in_sorted(wanted, content_hashes(ids)))).combine_chunks()


def check_cosine(cosine: float) -> None:
    """Refuse what is no cosine of duplicates.

    Raises:
        UserError: it is not above 0 and at most 1 (``out-of-range``).
    """
    if not 0 < cosine <= 1:
        raise UserError(
            f"the cosine from which images count as duplicates must be above 0 and at most 1, not {cosine}",
            code="out-of-range",
            field="cosine",
        )


def near_duplicates(index: Index, cosine: float, settings: IndexSettings) -> pa.Table:
    """Find the rows that lie within a cosine of others.

    Args:
        index: the index to search.
        cosine: least cosine of two vision vectors, above 0 and at most 1.
        settings: of the profile; each shard is searched with its CPUs.

    Returns:
        ``id``, ``of`` (the smallest id of its group), ``cosine`` (the closest one that was found).

    Raises:
        UserError: ``cosine`` is out of range.
    """
    check_cosine(cosine)
    shards = range(len(index.manifest.shards))
    with progress("looking for near duplicates in each shard", index.manifest.rows * len(shards)) as counter:
        calls = [(index, number, cosine, counter) for number in shards]
        found = current_executor().map(_pairs_of_shard, calls, place=settings.resized(settings.cpus))
    return _grouped(pa.concat_tables([PAIRS.empty_table(), *found]))


def _pairs_of_shard(index: Index, number: int, cosine: float, counter: ProgressCounter) -> pa.Table:
    """Search every shard for the rows of one."""
    asking = index.shard(number)
    alive = np.flatnonzero(asking.alive)
    blocks = [alive[start : start + _BLOCK] for start in range(0, len(alive), _BLOCK)]
    found = [PAIRS.empty_table()]
    for other in range(len(index.manifest.shards)):
        shard = asking if other == number else index.shard(other)  # and the previous one is closed
        for rows_B in blocks:
            found.append(_pairs(asking, rows_B, shard, cosine))
            counter.add(len(rows_B))
    return pa.concat_tables(found)


def _pairs(asking: Shard, rows_B: np.ndarray, shard: Shard, cosine: float) -> pa.Table:
    query_BD = asking.vectors[rows_B].astype(np.float32)
    query_BD[:, : asking.vlm_dim] = 0
    ids_B = asking.rows["id"].to_numpy(zero_copy_only=False)[rows_B]
    hits = shard.search(query_BD, NEIGHBOURS)
    near = (hits.scores >= cosine) & (hits.ids != ids_B[:, None])
    which, _ = np.nonzero(near)
    return pa.table({"id": ids_B[which], "of": hits.ids[near], "cosine": hits.scores[near]}, schema=PAIRS)


def _grouped(pairs: pa.Table) -> pa.Table:
    """Join rows that any pairs connect; return all of a group but its smallest id, with that one."""
    columns = [pairs[column].to_numpy(zero_copy_only=False) for column in ("id", "of")]
    names_N, places = np.unique(np.concatenate(columns), return_inverse=True)
    id_P, of_P = np.split(places, 2)
    graph = coo_array((np.ones(len(id_P), bool), (id_P, of_P)), shape=(len(names_N), len(names_N)))
    _, group_N = connected_components(graph, directed=False)
    # Names are sorted, so the first of a group is the smallest.
    _, first = np.unique(group_N, return_index=True)
    head_N = first[group_N]
    closest_N = np.zeros(len(names_N), np.float32)
    np.maximum.at(closest_N, places, np.tile(pairs["cosine"].to_numpy(), 2))
    again = head_N != np.arange(len(names_N))
    return pa.table({"id": names_N[again], "of": names_N[head_N[again]], "cosine": closest_N[again]}, schema=PAIRS)
