"""The second stage against a version in loops; and what does not depend on threads, depth or order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from errors import refused
from tiny_artifacts import Collection

from retrieval.finder import Answer, Finder
from retrieval.fusion import fused_query, unit
from retrieval.query import QueryEncoder
from retrieval.rankings import Scored
from retrieval.second_stage import BETA, MAX_DEPTH, NEIGHBOURS, checked_depth, neighbours, put_in_order

TEXT = "a red striped star"
D1, D2 = 6, 10


def candidates(rows: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """t, v and joint rows [c ; d], float16, that lie near to one another."""
    rng = np.random.default_rng(seed)
    vlm, vision = (unit(rng.normal(size=(rows + 1, dim)) + 1.0) for dim in (D1, D2))
    return vlm[0], vision[0], np.hstack([vlm[1:], vision[1:]]).astype(np.float16)


def plain(t: np.ndarray, v: np.ndarray, lam: float, joint: np.ndarray, count: int, beta: float) -> np.ndarray:
    roots = np.array([np.sqrt(1 - lam)] * len(t) + [np.sqrt(lam)] * len(v))
    query, rows = roots * np.concatenate([t, v]).astype(float), [roots * row.astype(float) for row in joint]
    blends = []
    for row in rows:
        near = sorted(range(len(rows)), key=lambda j: -float(row @ rows[j]))[: count + 1]
        weights = [beta * max(float(row @ rows[j]), 0) for j in near]
        total = row + sum(weight * rows[j] for weight, j in zip(weights, near, strict=True))
        blends.append(total / (1 + sum(weights)))
    best = sorted(blends, key=lambda blend: -float(query @ blend))[: count + 1]
    return np.array([(query @ blend + np.max(best, axis=0) @ blend) / 2 for blend in blends])


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("rows", "count"), [(60, 9), (5, 9), (1, 9), (30, 1)])
def test_neighbours_are_scored_as_the_formula_says(rows: int, count: int, lam: float) -> None:
    t, v, joint = candidates(rows)
    ours = neighbours(fused_query(t, v, lam)[0], lam, joint, D1, count=count, beta=0.4)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, plain(t, v, lam, joint, count, 0.4), atol=1e-6)


def test_without_weight_of_neighbours_the_order_is_that_of_the_first_stage_and_of_the_best() -> None:
    t, v, joint = candidates(1)
    query_D = fused_query(t, v, 0.5)[0]
    [alone] = neighbours(query_D, 0.5, joint, D1, beta=0.0)
    half = joint[0].astype(float) / np.sqrt(2)
    assert alone == pytest.approx((query_D @ joint[0].astype(float) + half @ half) / 2, abs=1e-6)
    assert neighbours(query_D, 0.5, joint[:0], D1).shape == (0,)


def test_equal_rows_have_equal_scores_in_any_order() -> None:
    """To the bit: no inner product depends on how a BLAS library adds."""
    t, v, joint = candidates(40)
    joint = joint[[*range(40), 7, 7, 23]]
    query_D = fused_query(t, v, 0.4)[0]
    scores = neighbours(query_D, 0.4, joint, D1)
    assert scores[7] == scores[40] == scores[41]
    assert scores[23] == scores[42]
    order = np.random.default_rng(1).permutation(len(joint))
    np.testing.assert_array_equal(neighbours(query_D, 0.4, np.asfortranarray(joint[order]), D1), scores[order])


def test_rows_beyond_the_depth_stay_behind_and_equals_ascend_by_id() -> None:
    ranking = [Scored(name, 1.0 - place, 0.5, 0.5) for place, name in enumerate("dbace")]
    again = put_in_order(ranking, np.array([0.1, 0.3, 0.3], np.float32))
    assert [row.id for row in again] == ["a", "b", "d", "c", "e"]
    assert [row.rerank_score is None for row in again] == [False, False, False, True, True]
    assert {row.id: row.score for row in again} == {row.id: row.score for row in ranking}


@pytest.fixture(scope="module")
def finder(query_encoder: QueryEncoder, collection: Collection) -> Finder:
    return Finder(query_encoder, collection.index)


def by_hand(finder: Finder, collection: Collection, depth: int, **how: Any) -> list[str]:
    """The ids that a search should find with the second stage, from one without it."""
    first = finder.search(TEXT, 24, images=2, **how)
    numbers = [collection.ids.index(found.id) for found in first][:depth]
    joint = np.hstack([collection.vlm_ND1, collection.vision_ND2])[numbers]
    [query] = finder.encoder.encode([TEXT], 2)
    mean = unit(query.vision_KD2.mean(axis=0))
    scores = plain(query.vlm_D1, mean, first.weight, joint, NEIGHBOURS, BETA)
    return [first.results[i].id for i in np.argsort(-scores)] + [found.id for found in first][depth:]


@pytest.mark.parametrize("how", [{}, {"mode": "text"}, {"mode": "visual"}, {"weight": 0.3, "fuse": "max"}])
@pytest.mark.parametrize("depth", [1, 7, 400])
def test_a_search_with_neighbours_ranks_its_first_results_again(
    finder: Finder, collection: Collection, depth: int, how: dict[str, Any]
) -> None:
    expected = by_hand(finder, collection, depth, **how)
    for k in (3, 24):
        answer: Answer = finder.search(TEXT, k, images=2, rerank="neighbours", depth=depth, **how)
        assert [found.id for found in answer] == expected[:k]
        assert answer.reranked == "neighbours"
        assert [found.rerank_score is None for found in answer] == [place >= depth for place in range(k)]
    first = finder.search(TEXT, 24, images=2, **how)
    assert first.reranked is None
    parts = {found.id: (found.score, found.text_part, found.visual_part) for found in first}
    assert parts == {found.id: (found.score, found.text_part, found.visual_part) for found in answer}
    brought = dict(zip([found.id for found in first], first.shares, strict=True))
    assert brought == dict(zip([found.id for found in answer], answer.shares, strict=True))


def test_a_depth_out_of_range_is_refused(finder: Finder) -> None:
    assert checked_depth(MAX_DEPTH) == MAX_DEPTH
    for depth in (0, -1, MAX_DEPTH + 1):
        with refused("out-of-range", "depth"):
            finder.search(TEXT, depth=depth)
    with refused("unknown", "rerank"):
        finder.search(TEXT, rerank="judged")  # type: ignore[arg-type]
