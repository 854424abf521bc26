"""Average precision by hand and against ranx, exact ranks against the full matrix, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from errors import refused

from retrieval.metrics import (
    MEASURES,
    average_precision,
    average_precision_at,
    bootstrap_mean,
    count_better,
    cumulative_hits,
    hit_at,
    id_places,
    ndcg_at,
    neighbour_recall,
    paired_bootstrap,
    precision_at,
    recall_at,
    without_junk,
)


def counted(scores_QN: Any, ids_N: Any, positive_scores: Any, positive_ids: Sequence[Any]) -> list[Any]:
    """Count with the ids of positives as they are."""
    wanted = sorted({id for of_query in positive_ids for id in of_query})
    places_N, places_U = id_places(ids_N, wanted)
    return count_better(
        scores_QN, places_N, positive_scores, [places_U[[wanted.index(id) for id in ids]] for ids in positive_ids]
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


@pytest.fixture(scope="module")
def theirs() -> Any:
    """ranx's metrics, interpreted: compiled, they would take a minute before the first figure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_DISABLE_JIT", "1")  # which is read at the first import
        return pytest.importorskip("ranx.metrics")


def area_by_trapezoids(hit: list[bool], n_positive: int) -> float:
    """The area under precision by recall, hit by hit, by the points of the curve."""
    area, found = 0.0, 0
    recall, precision = 0.0, 1.0
    for place, right in enumerate(hit, 1):
        found += right
        now = found / n_positive, found / place
        area += (now[0] - recall) * (now[1] + precision) / 2
        recall, precision = now
    return area


def test_a_thousand_random_rankings_measure_as_ranx_does(theirs: Any) -> None:
    """Scores that tie, junk, relevant rows that the gallery lacks, rankings without a hit among the first k."""
    rng = np.random.default_rng(0)
    no_hit = tied = lacking = 0
    for case in range(1000):
        rows = int(rng.integers(2, 60))
        ids = [f"{number}" for number in rng.permutation(rows)]
        scores = np.round(rng.uniform(-1, 1, rows), int(rng.integers(0, 3))).astype(np.float32)
        wanted = rng.permutation(rows)[: int(rng.integers(1, rows + 1))]
        relevant, junk = np.split(wanted, [int(rng.integers(1, len(wanted) + 1))])
        lacks = int(rng.integers(0, 3))
        n_positive = len(relevant) + lacks
        k = int(rng.choice([1, 3, 10, 100]))

        marked = np.concatenate([relevant, junk])
        is_junk = np.arange(len(marked)) >= len(relevant)
        (places,) = counted(scores[None], ids, [scores[marked]], [[ids[row] for row in marked]])
        hits = without_junk(places, is_junk)

        order = sorted(set(range(rows)) - set(junk), key=lambda row: (-scores[row], ids[row]))
        run = np.array([[row, -place] for place, row in enumerate(order)], float)[None]
        qrels = np.array([[row, 1] for row in [*relevant, *range(rows, rows + lacks)]], float)[None]
        of_k = run[:, :k]
        ours_and_theirs = {
            "step": (average_precision(hits, n_positive, "step"), theirs.average_precision(qrels, run, 0, 1)[0]),
            "recall": (recall_at(hits, n_positive, k), theirs.recall(qrels, run, k, 1)[0]),
            "precision": (precision_at(hits, k), theirs.precision(qrels, run, k, 1)[0]),
            "ndcg": (ndcg_at(hits, n_positive, k), theirs.ndcg(qrels, run, k, 1)[0]),
            "hit": (hit_at(hits, k), theirs.hit_rate(qrels, run, k, 1)[0]),
            # ranx divides by all relevant rows.
            "at k": (
                average_precision_at(hits, n_positive, k) * min(k, n_positive) / n_positive,
                theirs.average_precision(qrels, of_k, 0, 1)[0],
            ),
            "trapezoid": (
                average_precision(hits, n_positive),
                area_by_trapezoids([row in set(relevant) for row in order], n_positive),
            ),
        }
        for name, (ours, expected) in ours_and_theirs.items():
            assert ours == pytest.approx(expected, abs=1e-9), (case, name)
        no_hit += not hit_at(hits, k)
        tied += len(set(scores.tolist())) < rows
        lacking += lacks > 0
    assert min(no_hit, tied, lacking) > 100


def test_queries_without_a_relevant_row_have_no_measure() -> None:
    for measure in MEASURES.values():
        if measure not in (MEASURES["precision_at_10"], MEASURES["hit_at_1"], MEASURES["hit_at_10"]):
            with refused("out-of-range", "n_positive"):
                measure(np.array([], np.int64), 0)
        assert measure(np.array([], np.int64), 3) == 0


def test_average_precision_at_k_by_hand() -> None:
    # CIRCO's script: five relevant rows, of which the first, third and sixth of the ranking are three.
    ranks = [0, 2, 5]
    assert average_precision_at(ranks, 5, 5) == pytest.approx((1 / 1 + 2 / 3) / 5)
    assert average_precision_at(ranks, 5, 10) == pytest.approx((1 / 1 + 2 / 3 + 3 / 6) / 5)
    assert average_precision_at(ranks, 5, 1) == 1.0  # the best that a first row can be
    assert average_precision_at(ranks, 5, 2) == pytest.approx((1 / 1) / 2)


def test_precision_of_revisited_oxford_ends_at_the_last_relevant_row() -> None:
    assert precision_at([0, 2], 10, shortened=True) == pytest.approx(2 / 3)
    assert precision_at([0, 2, 20], 10, shortened=True) == pytest.approx(2 / 10)
    assert precision_at([], 10, shortened=True) == 0


def test_ndcg_by_hand() -> None:
    ideal = 1 / np.log2(2) + 1 / np.log2(3)
    assert ndcg_at([0, 1], 2, 10) == 1
    assert ndcg_at([1, 3], 2, 10) == pytest.approx((1 / np.log2(3) + 1 / np.log2(5)) / ideal)
    assert ndcg_at([1, 3], 2, 2) == pytest.approx((1 / np.log2(3)) / ideal)
    assert ndcg_at([0], 7, 1) == 1


def test_hits_over_rounds_stay_found() -> None:
    never = np.inf
    ranks_QR = [[12, 4, 30], [never, never, 9], [0, 50, 60], [10, 10, 10]]
    assert cumulative_hits(ranks_QR, 10).tolist() == [0.25, 0.5, 0.75]
    with refused("out-of-range", "k"):
        cumulative_hits(ranks_QR, 0)
    with refused("empty", "ranks"):
        cumulative_hits(np.zeros((0, 3)), 10)


@pytest.mark.parametrize("k", [0, -1])
def test_a_cut_below_one_is_refused(k: int) -> None:
    for measure in (average_precision_at, recall_at, ndcg_at):
        with refused("out-of-range", "k"):
            measure([0], 1, k)
    for at in (precision_at, hit_at):
        with refused("out-of-range", "k"):
            at([0], k)


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
        counted(scores[:, at : at + block], ids[at : at + block], positive_scores, positive_ids)
        for at in range(0, 300, block)
    ]
    ranks = [sorted(sum(of_blocks).tolist()) for of_blocks in zip(*counts, strict=True)]
    assert ranks == plain_ranks(scores, ids, positives)


def test_counts_stay_in_the_order_of_the_positives() -> None:
    (counts,) = counted([[3.0, 2.0, 1.0]], ["a", "b", "c"], [[1.0, 3.0]], [["c", "a"]])
    assert counts.tolist() == [2, 0]
    assert counts.dtype == np.int64


def test_count_better_refuses_what_has_no_order() -> None:
    with pytest.raises(AssertionError, match="NaN"):
        count_better([[np.nan]], [0], [[1.0]], [[0]])
    with pytest.raises(AssertionError):
        count_better([[1.0]], [0, 1], [[1.0]], [[0]])


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
