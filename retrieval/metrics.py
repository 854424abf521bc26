"""Accuracy of rankings: average precision and measures at k, exact ranks by blocks, recall of a search, bootstrap.

docs/measures.md says which definition each is, and which benchmarks report it.

A rank is the 0-based place of a relevant row (a hit) in the full ranking of the gallery, best score first,
equal scores by ascending id. Shapes: Q queries, N gallery rows, P positives of a query.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.errors import UserError

Method = Literal["trapezoid", "step"]
Ints = NDArray[np.int64]
Rows = Sequence[Sequence[object]] | NDArray[Any]

# Bootstrap draws are made in blocks of at most this many indices (8 bytes each).
_DRAWS_AT_ONCE = 2_000_000


def average_precision(ranks: ArrayLike, n_positive: int, method: Method = "trapezoid") -> float:
    """Return the average precision of one query, in [0, 1].

    ``trapezoid`` is the area under the precision–recall curve by trapezoids, as in the Revisited Oxford protocol
    (Radenović et al., CVPR 2018) that CLETIR reports: the j-th hit (0-based) at rank r adds the mean of the precision
    just before it, j / r (1 where r = 0), and just after it, (j + 1) / (r + 1), over n_positive. ``step`` is the usual
    sum of (j + 1) / (r + 1) over n_positive.

    Args:
        ranks: 0-based ranks of the hits, in any order; positives that were never found are simply missing.
        n_positive: how many relevant rows the gallery has, found or not; at least 1.
        method: ``trapezoid`` or ``step``.

    Raises:
        UserError: n_positive is below 1, ranks are negative, repeated or more than n_positive (code
            ``out-of-range``), or the method is unknown (``unknown``).
    """
    hits = np.sort(np.asarray(ranks, dtype=np.int64).ravel())
    if n_positive < 1:
        message = f"a query needs at least one relevant row to be measured, n_positive is {n_positive}"
        raise UserError(message, code="out-of-range", field="n_positive")
    if hits.size > n_positive or (hits.size and hits[0] < 0) or np.any(np.diff(hits) == 0):
        raise UserError(
            f"ranks must be different numbers from 0, n_positive={n_positive} at most, "
            f"got {hits.size}: {hits[:10].tolist()}…",
            code="out-of-range",
            field="ranks",
        )
    before = np.arange(hits.size)
    after = (before + 1) / (hits + 1)
    if method == "step":
        return float(after.sum() / n_positive)
    if method == "trapezoid":
        ahead = np.where(hits == 0, 1.0, before / np.maximum(hits, 1))
        return float((ahead + after).sum() / 2 / n_positive)
    message = f"average precision has the methods 'trapezoid' and 'step', not {method!r}"
    raise UserError(message, code="unknown", field="method")


def average_precision_at(ranks: ArrayLike, n_positive: int, k: int) -> float:
    """Return the average precision of the first k, in [0, 1]: step precisions at its hits, over min(k, n_positive).

    So a perfect first k is 1. CIRCO (Baldrati et al., ICCV 2023), INQUIRE (Vendrow et al., NeurIPS 2024) and ILIAS
    (Kordopatis-Zilos et al., CVPR 2025) divide like this; others divide by n_positive, or by the hits among the k.

    Raises:
        UserError: k or n_positive is below 1 (code ``out-of-range``).
    """
    hits = np.sort(_first(ranks, n_positive, k))
    return float((np.arange(1, len(hits) + 1) / (hits + 1)).sum() / min(k, n_positive))


def precision_at(ranks: ArrayLike, k: int, *, shortened: bool = False) -> float:
    """Return the share of relevant rows among the first k.

    Args:
        ranks: 0-based ranks of the hits.
        k: how many rows are looked at.
        shortened: end at the last hit where that comes before k, as the script of Revisited Oxford does (mP@k): a query
            with fewer relevant rows than k can then reach 1. It needs the ranks of all relevant rows.

    Raises:
        UserError: k is below 1 (code ``out-of-range``, field ``k``).
    """
    hits = _first(ranks, 1, k)
    places = np.asarray(ranks)
    return float(len(hits) / (min(k, places.max() + 1) if shortened and places.size else k))


def recall_at(ranks: ArrayLike, n_positive: int, k: int) -> float:
    """Return the share of the relevant rows that are among the first k. Of one relevant row, it is the hit rate.

    Raises:
        UserError: k or n_positive is below 1 (code ``out-of-range``).
    """
    return float(len(_first(ranks, n_positive, k)) / n_positive)


def hit_at(ranks: ArrayLike, k: int) -> float:
    """Return 1 if any relevant row is among the first k, or else 0.

    Raises:
        UserError: k is below 1 (code ``out-of-range``, field ``k``).
    """
    return float(len(_first(ranks, 1, k)) > 0)


def ndcg_at(ranks: ArrayLike, n_positive: int, k: int) -> float:
    """Return the normalised discounted cumulative gain of the first k, of gains 1 and 0 (Järvelin & Kekäläinen 2002).

    The hit of rank r gains 1 / log2(r + 2); the sum is divided by that of min(k, n_positive) hits at the very top.

    Raises:
        UserError: k or n_positive is below 1 (code ``out-of-range``).
    """
    gain = (1 / np.log2(_first(ranks, n_positive, k) + 2)).sum()
    return float(gain / (1 / np.log2(np.arange(min(k, n_positive)) + 2)).sum())


def cumulative_hits(best_ranks_QR: ArrayLike, k: int) -> NDArray[np.float64]:
    """Return the share of queries that found a relevant row among the first k in any round so far (Hits@k of ChatIR).

    A query that has found it stays found, as a person would have stopped (Levy et al., NeurIPS 2023, section 4).

    Args:
        best_ranks_QR: of each query in each round, the least 0-based rank of a relevant row; infinite if none is found.
        k: how many rows are looked at in each round.

    Returns:
        float64 (R,), never falling.

    Raises:
        UserError: k is below 1 (code ``out-of-range``, field ``k``), or there is no query (``empty``, ``ranks``).
    """
    ranks = np.atleast_2d(np.asarray(best_ranks_QR, dtype=np.float64))
    if not len(ranks) or not ranks.size:
        raise UserError("hits over rounds need at least one query and one round", code="empty", field="ranks")
    _first([], 1, k)
    return np.logical_or.accumulate(ranks < k, axis=1).mean(axis=0)


def _first(ranks: ArrayLike, n_positive: int, k: int) -> Ints:
    """Return those of some ranks that are among the first k."""
    for name, value in (("k", k), ("n_positive", n_positive)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}", code="out-of-range", field=name)
    hits = np.asarray(ranks, dtype=np.int64)
    return hits[hits < k]


def _without_count(measure: Callable[[Ints], float]) -> Callable[[Ints, int], float]:
    return lambda ranks, n_positive: measure(ranks)


MEASURES: Mapping[str, Callable[[Ints, int], float]] = {
    "ap": average_precision,
    "ap_step": partial(average_precision, method="step"),
    **{f"ap_at_{k}": partial(average_precision_at, k=k) for k in (5, 10, 25, 50, 1000)},
    **{f"recall_at_{k}": partial(recall_at, k=k) for k in (1, 5, 10, 100)},
    "precision_at_10": _without_count(partial(precision_at, k=10)),
    **{f"ndcg_at_{k}": partial(ndcg_at, k=k) for k in (10, 50)},
    **{f"hit_at_{k}": _without_count(partial(hit_at, k=k)) for k in (1, 10)},
}
"""What an evaluation measures of each query, by column: of the ranks of its hits, and how many rows are relevant."""


def without_junk(ranks: ArrayLike, junk: ArrayLike) -> Ints:
    """Return the sorted ranks of the relevant rows in the ranking that is left when its junk is taken out.

    Args:
        ranks: (P,) 0-based ranks of relevant and junk rows in the full ranking, all different.
        junk: (P,) bool, which of them are junk.
    """
    all_ranks, is_junk = np.asarray(ranks, np.int64), np.asarray(junk, bool)
    hits = np.sort(all_ranks[~is_junk])
    return hits - np.searchsorted(np.sort(all_ranks[is_junk]), hits)


def neighbour_recall(found_Qk: Rows, exact_Qk: Rows) -> float:
    """Return the recall of an approximate search: the mean share of each query's exact top-k ids that was found.

    Args:
        found_Qk: the ids it found, a row for each query.
        exact_Qk: the true ones of the same queries, none empty.
    """
    assert len(found_Qk) == len(exact_Qk) > 0, "recall compares one row of ids for each query"
    assert all(len(exact) for exact in exact_Qk), "recall of nothing is not defined"
    shares = [len(set(found) & set(exact)) / len(exact) for found, exact in zip(found_Qk, exact_Qk, strict=True)]
    return float(np.mean(shares))


def _keys(scores: ArrayLike, id_places: ArrayLike) -> NDArray[np.uint64]:
    """One integer a row that sorts like (score descending, id ascending), to search both at once.

    IEEE floats of one sign sort like their bits, here the upper half; the place of the id is the lower.
    """
    # + 0.0 turns -0.0 into 0.0, which has other bits but must tie with it.
    bits = (np.asarray(scores, dtype=np.float32) + np.float32(0.0)).view(np.uint32)
    ascending = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return ((~ascending).astype(np.uint64) << np.uint64(32)) | np.asarray(id_places).astype(np.uint64)


def id_places(ids_N: Sequence[str] | NDArray, wanted_U: Sequence[str] | NDArray) -> tuple[Ints, Ints]:
    """Return where the ids of one block of the gallery stand among themselves, and how many of them come before each
    wanted one; compared as they are given (strings by code point).

    Args:
        ids_N: the block's ids.
        wanted_U: any ids, sorted.

    Returns:
        int64 (N,) and (U,).
    """
    ids, wanted = np.asarray(ids_N, dtype=object), np.asarray(wanted_U, dtype=object)
    order = np.argsort(ids, kind="stable")
    places = np.empty(len(ids), dtype=np.int64)
    places[order] = np.arange(len(ids))
    # The few are looked up among the many, and not the other way round.
    not_after = np.searchsorted(wanted, ids[order], side="right")
    return places, np.cumsum(np.bincount(not_after, minlength=len(wanted) + 1)[: len(wanted)])


def count_better(
    scores_QN: ArrayLike,
    places_N: ArrayLike,
    positive_scores: Sequence[ArrayLike],
    positive_places: Sequence[ArrayLike],
) -> list[Ints]:
    """Count how many rows of one block of the gallery come before each positive.

    Summed over all blocks that is its exact rank. It is the second of two passes: the first collects the
    scores of each query's positives, wherever they lie. Memory is O(Q·P + N) beside the block, so queries ×
    gallery is never held, and blocks may be counted anywhere in any order.

    Args:
        scores_QN: the block's scores, compared as float32.
        places_N: of the block's ids among themselves (``id_places``).
        positive_scores: for each query the (P,) scores of its positives in the whole gallery.
        positive_places: for each query (P,), how many ids of the block come before the id of each.

    Returns:
        For each query (P,) int64, in the order of its positives.
    """
    scores, places = np.asarray(scores_QN, dtype=np.float32), np.asarray(places_N)
    assert scores.shape == (len(positive_scores), len(places)) == (len(positive_places), len(places))
    assert not np.isnan(scores).any(), "a score is NaN, which has no rank"
    return [
        np.searchsorted(np.sort(_keys(row, places)), _keys(*of_query)).astype(np.int64)
        for row, *of_query in zip(scores, positive_scores, positive_places, strict=True)
    ]


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval, in the units of the values."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: ArrayLike, *, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95) -> Interval:
    """Return the mean of (Q,) values and its percentile bootstrap interval over queries (Efron 1979).

    Args:
        values: one for each query, finite.
        resamples: draws of Q queries.
        seed: the same gives the same interval.
        confidence: share of the draws that lie in the interval.

    Raises:
        UserError: there is no value, or one is not finite (code ``not-finite``, field ``values``).
    """
    return stratified_mean([values], resamples=resamples, seed=seed, confidence=confidence)


def stratified_mean(
    groups: Sequence[ArrayLike], *, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Return the mean of the means of some groups, such as data sets, and its percentile bootstrap interval: the values
    of each group are drawn anew, the groups stay.

    Args:
        groups: at least one, each as the values of ``bootstrap_mean``, as the others are.

    Raises:
        UserError: as ``bootstrap_mean``.
    """
    samples = [np.asarray(values, dtype=np.float64).ravel() for values in groups]
    for sample in samples:
        if not sample.size or not np.isfinite(sample).all():
            message = f"a bootstrap needs finite values of at least one query, got {sample.size} values"
            raise UserError(message, code="not-finite", field="values")
    rng = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for sample in samples:
        block = max(1, _DRAWS_AT_ONCE // sample.size)
        for start in range(0, resamples, block):
            draws = rng.integers(sample.size, size=(min(block, resamples - start), sample.size))
            means[start : start + block] += sample[draws].mean(axis=1) / len(samples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(np.mean([sample.mean() for sample in samples])), float(low), float(high))


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Return the mean of a - b over the same (Q,) queries with its interval: a is better beyond chance if low > 0.

    Raises:
        UserError: as ``bootstrap_mean``, or a and b are not of the same shape (code ``wrong-shape``).
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise UserError(
            f"a paired comparison needs the same queries on both sides, got {first.shape} and {second.shape}",
            code="wrong-shape",
            field="values",
        )
    return bootstrap_mean(first - second, resamples=resamples, seed=seed, confidence=confidence)
