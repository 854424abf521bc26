"""Measuring the efforts of a shard as it is built: the least at each λ with which it finds what an exact search finds.

Which effort that takes depends on the data and on λ. Q queries, D = D1 + D2 dimensions (VLM, vision encoder).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.fusion import fused_query, unit
from retrieval.index.effort import LAMBDA_GRID
from retrieval.index.evidence_queries import evidence_queries
from retrieval.index.kinds import has_effort, inner, is_ivf
from retrieval.index.shard import Shard
from retrieval.index.threads import in_threads
from retrieval.metrics import neighbour_recall

RECALL_AT: Final = (10, 100)
"""Depths at which recall is measured."""
RECALL_TARGET: Final = 0.97
"""Of sampled queries, at build; above the 0.95 that is promised, since real queries differ from them."""
_QUERIES: Final = 100
_COMPILED: Final = 32
"""Queries of each kind that are made of evidence, at each λ."""
_NEIGHBOURS: Final = 10


def measured_efforts(
    shard: Shard, seed: int, share: float = 1.0, texts: Mapping[float, NDArray[np.float32]] = MappingProxyType({})
) -> list[int]:
    """Return for each λ of LAMBDA_GRID the smallest effort with which queries reach RECALL_TARGET.

    Efforts are powers of two, and must reach the target at each depth of RECALL_AT, for queries of evidence too.

    Args:
        shard: whose own efforts are not used.
        seed: of the sample of queries.
        share: of the rows that were cut into shards at random with this one, which is about its share of the best
            rows as well: it is searched as deep as that, and to the least of RECALL_AT.
        texts: joint queries (Q, D) by λ that must reach the target as well as those that are made of the rows.

    Returns:
        nprobe or efSearch; none for a shard without rows, or of a kind that has neither.
    """
    if not len(shard) or not has_effort(shard.index):
        return []
    lowest, highest = (8, inner(shard.index).nlist) if is_ivf(shard.index) else (32, 4096)
    rng = np.random.default_rng(seed)
    queries = sample_queries(shard, rng.choice(np.flatnonzero(shard.alive), _QUERIES), rng)
    depths = {max(min(RECALL_AT), math.ceil(depth * share)) for depth in RECALL_AT}
    deepest = max(depths)

    def exact(query: NDArray[np.float32]) -> NDArray[np.int64]:
        return in_threads(partial(shard.exact, k=deepest), query).rows

    asked = [[queries_QD] for queries_QD in queries]
    for weight, groups in zip(LAMBDA_GRID, asked, strict=True):
        groups += [texts[weight]] if weight in texts else []
    # All of them at once: an exact search takes its time to read the rows, however few it is asked for.
    truths = _each(exact, asked)
    compiled = [
        # Of texts, which are rather what is searched for, where there are some.
        list(evidence_queries(shard, groups[-1][:_COMPILED], rows[-1][:_COMPILED], weight).values())
        for weight, groups, rows in zip(LAMBDA_GRID, asked, truths, strict=True)
    ]
    of_compiled = _each(exact, compiled)

    def recall(query: NDArray[np.float32], truth: NDArray[np.int64], depth: int, effort: int) -> float:
        found = in_threads(partial(shard.search, k=depth, effort=effort), query).rows
        return neighbour_recall(found, truth[:, :depth])

    efforts = []
    for groups, rows, more, more_rows in zip(asked, truths, compiled, of_compiled, strict=True):
        checks = [(query, truth, depth) for query, truth in zip(groups, rows, strict=True) for depth in depths]
        # Of evidence the farther rows decide: nearer ones are found rather more often.
        checks += [(query, truth, deepest) for query, truth in zip(more, more_rows, strict=True)]
        effort = lowest
        while effort < highest and any(recall(*check, effort) < RECALL_TARGET for check in checks):
            effort *= 2
        efforts.append(min(effort, highest))
    return efforts


def _each(
    ask: Callable[[NDArray[np.float32]], NDArray[np.int64]], asked: Sequence[Sequence[NDArray[np.float32]]]
) -> list[list[NDArray[np.int64]]]:
    """Return what ``ask`` answers to the groups of queries of each λ, having been asked once."""
    groups = [group for groups in asked for group in groups]
    if not groups:
        return [[] for _ in asked]
    answers = iter(np.split(ask(np.concatenate(groups)), np.cumsum([len(group) for group in groups])[:-1]))
    return [[next(answers) for _ in groups] for groups in asked]


def sample_queries(shard: Shard, rows: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """Return queries to measure recall with, one from each of these rows: for each λ of LAMBDA_GRID float32 (Q, D).

    A query asks for a category and lies off the gallery: each half is the mean of those of the row's ten nearest
    (itself among them), with noise of the same norm. How such queries compare with real ones is in
    docs/index-kinds.md.
    """
    near = in_threads(partial(shard.exact, k=_NEIGHBOURS), shard.vectors[rows].astype(np.float32)).rows
    means = shard.vectors[near].astype(np.float32).mean(axis=1)
    text, visual = (
        unit(unit(half) + unit(rng.standard_normal(half.shape))) for half in np.split(means, [shard.vlm_dim], axis=1)
    )
    return [fused_query(text, visual, weight) for weight in LAMBDA_GRID]
