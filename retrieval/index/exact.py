"""Exact scores: which rows are truly the best, ties included, from candidates or by a scan of all rows.

Scores are inner products without rounding error (see ``retrieval.fusion``). Rows lie in ascending id order, which makes
"equal scores by ascending id" the same as "by ascending row". Shapes: Q queries, N rows, D = D1 + D2 dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.fusion import products

# Rows are expanded this many at a time, to float64 where they are scanned, to float32 where they are sifted.
_BLOCK: Final = 4096
_FLOAT32_BLOCK: Final = 16_384
# Deeper than this FAISS's selection of the best takes longer than the products it saves.
_SELECTED_UP_TO: Final = 2048


def nearest(
    query_QD: NDArray[np.float32], vectors_ND: NDArray[np.float16], alive_N: NDArray[np.bool_], k: int
) -> NDArray[np.int64]:
    """Return the exact k best rows of each query, (Q, k): float32 first, which takes a tenth of the time of a scan.

    Args:
        query_QD: on the grid of ``retrieval.fusion``.
        vectors_ND: joint rows [c ; d].
        alive_N: false for rows that were removed; at least k are true.
        k: from 0.
    """
    depth, count = 2 * k, int(np.count_nonzero(alive_N))
    if not 0 < depth <= min(_SELECTED_UP_TO, count - 1):
        return scan(query_QD, vectors_ND, alive_N, k)
    scores = np.full((len(query_QD), depth), -np.inf, dtype=np.float32)
    rows = np.full((len(query_QD), depth), -1, dtype=np.int64)
    for numbers in _alive_blocks(alive_N, _FLOAT32_BLOCK):
        block = vectors_ND[numbers].astype(np.float32)
        near, places = faiss.knn(query_QD, block, min(depth, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        near, places = np.concatenate([scores, near], axis=1), np.concatenate([rows, numbers[places]], axis=1)
        keep = np.argsort(-near, axis=1)[:, :depth]
        scores, rows = np.take_along_axis(near, keep, axis=1), np.take_along_axis(places, keep, axis=1)
    best = np.empty((len(query_QD), k), dtype=np.int64)
    unsettled: list[int] = []
    for q in range(len(query_QD)):
        settled = settle(query_QD[q], vectors_ND, rows[q], scores[q], k, bounded=True)
        if settled is None:
            unsettled.append(q)
        else:
            best[q] = settled
    if unsettled:
        best[unsettled] = scan(query_QD[unsettled], vectors_ND, alive_N, k)
    return best


def scan(
    query_QD: NDArray[np.float32], vectors_ND: NDArray[np.float16], alive_N: NDArray[np.bool_], k: int
) -> NDArray[np.int64]:
    """Return the exact k best rows of each query, (Q, k), in memory O(Q·(k + block)). Arguments as ``nearest``."""
    best_scores = np.empty((len(query_QD), 0), dtype=np.float32)
    best_rows = np.empty((len(query_QD), 0), dtype=np.int64)
    for numbers in _alive_blocks(alive_N, _BLOCK):
        block = products(query_QD, vectors_ND[numbers]).astype(np.float32)
        scores = np.concatenate([best_scores, block], axis=1)
        rows = np.concatenate([best_rows, np.broadcast_to(numbers, block.shape)], axis=1)
        keep = np.empty((len(query_QD), min(k, scores.shape[1])), dtype=np.int64)
        for q, row in enumerate(scores):
            keep[q] = _best(row, k)
        best_scores = np.take_along_axis(scores, keep, axis=1)
        best_rows = np.take_along_axis(rows, keep, axis=1)
    return best_rows


def settle(
    query_D: NDArray[np.float32],
    vectors_ND: NDArray[np.float16],
    candidates_C: NDArray[np.int64],
    scores_C: NDArray[np.float32],
    k: int,
    *,
    bounded: bool,
) -> NDArray[np.int64] | None:
    """Return the k best rows among one query's candidates, or None when other rows might belong there.

    Args:
        query_D: on the grid of ``retrieval.fusion``.
        vectors_ND: joint rows [c ; d].
        candidates_C: rows, best first by approximate scores; -1 where the index found no more.
        scores_C: their approximate scores.
        k: from 0.
        bounded: the candidates are the best of all rows by float32 inner products, which bounds what others score.
    """
    rows = np.sort(candidates_C[candidates_C >= 0])
    if len(rows) < k:
        return None
    exact = products(query_D[None], vectors_ND[rows])[0].astype(np.float32)
    best = _best(exact, k)
    if len(rows) == len(candidates_C):
        # Rows beyond the last of the best by float32 inner products score at most as it did, up to the
        # rounding of such a product, below D·2⁻²⁴·‖q‖·‖x‖ (Higham, "Accuracy and Stability of Numerical
        # Algorithms", §3.1), and of the exact scores (the 2). An approximate index promises nothing, but
        # duplicates share their approximate scores too: widen while the cut runs through a tie.
        rounding = 1.02 * math.sqrt(2) * (len(query_D) + 2) * 2.0**-24 * float(np.linalg.norm(query_D))
        reachable = float(scores_C[-1]) + rounding if bounded else float(exact.min())
        if float(exact[best[-1]]) <= reachable:
            return None
    return rows[best]


def _best(scores_N: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Places of the k highest scores, highest first; equal scores by ascending place, at the cut as well."""
    if k < len(scores_N):
        cut = np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k]
        above = np.flatnonzero(scores_N > cut)
        kept = np.concatenate([above, np.flatnonzero(scores_N == cut)[: k - len(above)]])
    else:
        kept = np.arange(len(scores_N))
    return kept[np.lexsort((kept, -scores_N[kept]))]


def _alive_blocks(alive_N: NDArray[np.bool_], size: int) -> Iterator[NDArray[np.int64]]:
    """Numbers of the rows that can be found, ascending, as they lie in blocks of so many rows; none empty."""
    for start in range(0, len(alive_N), size):
        numbers = start + np.flatnonzero(alive_N[start : start + size])
        if numbers.size:
            yield numbers
