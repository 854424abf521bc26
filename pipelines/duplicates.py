"""Images that a gallery has more than once: the same bytes, or vectors that are nearly the same.

Near duplicates are found through the index itself: each row asks, by its vision vector alone (λ = 1), for the rows
that lie closest. So a pair can be missed where the index misses a neighbour, or where a row has more than
``NEIGHBOURS`` of them; groups are joined through any of their pairs.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import ray

from cluster.profile import IndexSettings
from cluster.progress import ProgressCounter, progress
from retrieval.artifacts import Index
from retrieval.index.files import ROWS
from retrieval.index.shard import Shard

NEIGHBOURS = 20
_BLOCK = 1024
PAIRS = pa.schema([("id", pa.string()), ("of", pa.string()), ("cosine", pa.float32())])


def exact_duplicates(index: Index) -> pa.Table:
    """Return the rows whose bytes a row of a smaller id has as well: ``id``, ``of``, ``cosine`` (1)."""
    # An id begins with the hash of the bytes, so equal ones are neighbours in order.
    ids = np.sort(np.concatenate([_alive(index, number) for number in range(len(index.manifest.shards))]))
    contents = np.array([id.split("-")[0] for id in ids], dtype=object)
    first = np.r_[True, contents[1:] != contents[:-1]]
    of = ids[np.maximum.accumulate(np.where(first, np.arange(len(ids)), 0))]
    again = ~first
    return pa.table({"id": ids[again], "of": of[again], "cosine": np.ones(again.sum(), np.float32)}, schema=PAIRS)


def check_cosine(cosine: float) -> None:
    """Refuse what is no cosine of duplicates.

    Raises:
        ValueError: it is not above 0 and at most 1.
    """
    if not 0 < cosine <= 1:
        raise ValueError(
            f"the cosine from which images count as duplicates must be above 0 and at most 1, not {cosine}"
        )


def near_duplicates(index: Index, cosine: float, settings: IndexSettings) -> pa.Table:
    """Return the rows that lie within a cosine of others, each with the row of smallest id in its group: ``id``,
    ``of``, ``cosine`` (the closest one found).

    Raises:
        ValueError: ``cosine`` is not above 0 and at most 1.
    """
    check_cosine(cosine)
    shards = len(index.manifest.shards)
    with progress("looking for near duplicates in each shard", index.manifest.rows * shards) as counter:
        look = _pairs_of_shard.options(num_cpus=settings.cpus)
        tasks = [look.remote(index, number, cosine, counter) for number in range(shards)]
        pairs = pa.concat_tables([PAIRS.empty_table(), *ray.get(tasks)])
    return _grouped(pairs)


def _alive(index: Index, number: int) -> np.ndarray:
    ids = index.shard_folder(number).read_table(ROWS, ["id"])["id"]
    kept = pa.compute.invert(pa.compute.is_in(ids, index.removed_ids(number).combine_chunks()))
    return ids.filter(kept).to_numpy(zero_copy_only=False)


@ray.remote
def _pairs_of_shard(index: Index, number: int, cosine: float, counter: ProgressCounter) -> pa.Table:
    asking = index.shard(number)
    alive = np.flatnonzero(asking.alive)
    blocks = [alive[start : start + _BLOCK] for start in range(0, len(alive), _BLOCK)]
    found = [PAIRS.empty_table()]
    for other in range(len(index.manifest.shards)):
        shard = asking if other == number else index.shard(other)  # the last one goes when this is open
        for rows_B in blocks:
            found.append(_pairs(asking, rows_B, shard, cosine))
            counter.add(len(rows_B))
    return pa.concat_tables(found)


def _pairs(asking: Shard, rows_B: np.ndarray, shard: Shard, cosine: float) -> pa.Table:
    query_BD = asking.vectors[rows_B].astype(np.float32)
    query_BD[:, : asking.vlm_dim] = 0
    ids = asking.rows["id"].to_numpy(zero_copy_only=False)[rows_B]
    hits = shard.search(query_BD, NEIGHBOURS)
    near = (hits.scores >= cosine) & (hits.ids != ids[:, None])
    which, _ = np.nonzero(near)
    return pa.table({"id": ids[which], "of": hits.ids[near], "cosine": hits.scores[near]}, schema=PAIRS)


def _grouped(pairs: pa.Table) -> pa.Table:
    """Join rows that any pairs connect; all of a group but its smallest id, with that one."""
    names = np.unique(np.concatenate([pairs[column].to_numpy(zero_copy_only=False) for column in ("id", "of")]))
    a, b = (np.searchsorted(names, pairs[column].to_numpy(zero_copy_only=False)) for column in ("id", "of"))
    head = np.arange(len(names))
    while True:  # each round, everyone takes the smallest head that a neighbour has
        lower = head.copy()
        np.minimum.at(lower, a, head[b])
        np.minimum.at(lower, b, head[a])
        lower = np.minimum(lower, lower[lower])  # and that one's own, so that a long chain takes few rounds
        if (lower == head).all():
            break
        head = lower
    closest = np.zeros(len(names), np.float32)
    np.maximum.at(closest, a, pairs["cosine"].to_numpy())
    again = head != np.arange(len(names))
    return pa.table({"id": names[again], "of": names[head[again]], "cosine": closest[again]}, schema=PAIRS)
