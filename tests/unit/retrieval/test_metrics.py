"""Average precision by hand and against ranx, exact ranks against the full matrix, bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest
from errors import refused

from retrieval.metrics import (
    average_precision,
    bootstrap_mean,
    count_better,
    neighbour_recall,
    paired_bootstrap,
    precision_at,
)


@pytest.mark.parametrize(
    ("ranks", "n_positive", "trapezoid", "step"),
    [
        # one hit, first: the whole area
        ([0], 1, 1.0, 1.0),
        # one hit, second: precision is 0/1 before and 1/2 at it
        ([1], 1, (0 / 1 + 1 / 2) / 2, 1 / 2),
        # hits first and third: (1 + 1)/2 and (1/2 + 2/3)/2, over two
        ([0, 2], 2, ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2, (1 + 2 / 3) / 2),
        # the same with a third positive that was never found
        ([0, 2], 3, ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 3, (1 + 2 / 3) / 3),
        # second, fourth and fifth of five
        (
            [1, 3, 4],
            3,
            ((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2 + (2 / 4 + 3 / 5) / 2) / 3,
            (1 / 2 + 2 / 4 + 3 / 5) / 3,
        ),
        ([], 2, 0.0, 0.0),
    ],
)
def test_average_precision_by_hand(ranks: list[int], n_positive: int, trapezoid: float, step: float) -> None:
    assert average_precision(ranks, n_positive) == pytest.approx(trapezoid, abs=1e-12)
    assert average_precision(ranks, n_positive, "step") == pytest.approx(step, abs=1e-12)


def test_average_precision_known_figures() -> None:
    assert round(average_precision([0, 2], 2), 4) == 0.7917
    assert round(average_precision([0, 2], 2, "step"), 4) == 0.8333
    assert average_precision([1], 1) == 0.25


def test_order_of_ranks_does_not_matter() -> None:
    assert average_precision([7, 0, 3], 5) == average_precision([0, 3, 7], 5)


@pytest.mark.parametrize(
    ("ranks", "n_positive", "field"),
    [([0], 0, "n_positive"), ([0, 1], 1, "ranks"), ([-1], 1, "ranks"), ([2, 2], 3, "ranks")],
)
def test_impossible_ranks_are_refused(ranks: list[int], n_positive: int, field: str) -> None:
    with refused("out-of-range", field):
        average_precision(ranks, n_positive)


def test_unknown_method_is_named() -> None:
    with refused("unknown", "method"):
        average_precision([0], 1, "area")  # type: ignore[arg-type]


@pytest.mark.slow  # numba compiles ranx on first use
def test_step_average_precision_agrees_with_ranx() -> None:
    # The metric alone, on (id, relevance) and (id, score) pairs: ranx.evaluate would compile for a minute.
    theirs = pytest.importorskip("ranx.metrics").average_precision
    rng = np.random.default_rng(0)
    for _ in range(20):
        n_rows, n_positive = int(rng.integers(5, 200)), int(rng.integers(1, 5))
        ranks = np.sort(rng.choice(n_rows, size=n_positive, replace=False))
        run = np.stack([np.arange(n_rows), 1 - np.arange(n_rows) / n_rows], axis=1)
        relevant = np.stack([ranks, np.ones(n_positive)], axis=1).astype(np.float64)
        (expected,) = theirs(relevant[None], run[None], 0, 1)
        assert average_precision(ranks, n_positive, "step") == pytest.approx(expected, abs=1e-9)


def test_precision_at_k() -> None:
    ranks = [0, 2, 9]
    assert precision_at(ranks, 3) == pytest.approx(2 / 3)
    assert precision_at(ranks, 10) == pytest.approx(3 / 10)
    with refused("out-of-range", "k"):
        precision_at(ranks, 0)


def test_neighbour_recall_counts_shared_ids() -> None:
    assert neighbour_recall([["a", "b"], ["c", "d"]], [["b", "x"], ["d", "c"]]) == pytest.approx(0.75)
    for exact in ([[]], [], [["a"], ["b"]]):
        with pytest.raises(AssertionError):
            neighbour_recall([["a"]], exact)


def plain_ranks(scores_QN: np.ndarray, ids: list[str], positives: list[np.ndarray]) -> list[list[int]]:
    """The full matrix, sorted by Python."""
    ranks = []
    for scores, rows in zip(scores_QN, positives, strict=True):
        order = sorted(range(len(ids)), key=lambda row: (-scores[row], ids[row]))
        ranks.append(sorted(order.index(row) for row in rows))
    return ranks


@pytest.mark.parametrize("block", [1, 7, 64, 300, 1000])
def test_ranks_by_blocks_equal_the_full_matrix_with_ties(block: int) -> None:
    rng = np.random.default_rng(1)
    # One decimal and both signs, so that most scores tie, and -0.0 beside 0.0.
    scores = np.round(rng.uniform(-1, 1, (5, 300)), 1).astype(np.float32)
    assert np.signbit(scores[scores == 0]).any()
    assert not np.signbit(scores[scores == 0]).all()
    ids = [f"image {number}" for number in rng.permutation(300)]  # "image 10" < "image 9"
    positives = [rng.choice(300, size=size, replace=False) for size in (1, 2, 10, 300, 0)]
    positive_scores = [scores[q, rows] for q, rows in enumerate(positives)]
    positive_ids = [[ids[row] for row in rows] for rows in positives]
    counts = [
        count_better(scores[:, at : at + block], ids[at : at + block], positive_scores, positive_ids)
        for at in range(0, 300, block)
    ]
    ranks = [sorted(sum(of_blocks).tolist()) for of_blocks in zip(*counts, strict=True)]
    assert ranks == plain_ranks(scores, ids, positives)


def test_counts_stay_in_the_order_of_the_positives() -> None:
    (counts,) = count_better([[3.0, 2.0, 1.0]], ["a", "b", "c"], [[1.0, 3.0]], [["c", "a"]])
    assert counts.tolist() == [2, 0]
    assert counts.dtype == np.int64


def test_count_better_refuses_what_has_no_order() -> None:
    with pytest.raises(AssertionError, match="NaN"):
        count_better([[np.nan]], ["a"], [[1.0]], [["a"]])
    with pytest.raises(AssertionError):
        count_better([[1.0]], ["a", "b"], [[1.0]], [["a"]])


def test_bootstrap_interval_covers_the_mean_like_the_normal_one() -> None:
    values = np.random.default_rng(2).normal(0.3, 1, size=400)
    interval = bootstrap_mean(values)
    half = 1.96 * values.std() / 20
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_paired_bootstrap_sees_a_small_steady_gain_among_large_differences() -> None:
    rng = np.random.default_rng(3)
    base = rng.uniform(0, 1, size=100)
    better = base + 0.02 + rng.normal(0, 0.02, size=100)
    interval = paired_bootstrap(better, base)
    assert 0 < interval.low < interval.mean < interval.high < 0.04
    assert interval == paired_bootstrap(better, base, seed=0)
    assert paired_bootstrap(base, base).low == paired_bootstrap(base, base).high == 0


def test_bootstrap_of_many_queries_is_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).uniform(size=1000)
    monkeypatch.setattr("retrieval.metrics._DRAWS_AT_ONCE", 3000)
    interval = bootstrap_mean(values, resamples=100)
    assert interval.low < interval.mean < interval.high


def test_bootstrap_refuses_what_it_cannot_compare() -> None:
    with refused("wrong-shape", "values"):
        paired_bootstrap([1.0, 2.0], [1.0])
    with refused("not-finite", "values"):
        bootstrap_mean([])
    with refused("not-finite", "values"):
        bootstrap_mean([np.nan])
