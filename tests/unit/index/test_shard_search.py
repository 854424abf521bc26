"""One shard against a plain full sort: exact scores, ties, several shards, approximate kinds, threads, refusals."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from errors import refused
from plain_shard import D1, D2, build, joint, names, plain_search, queries, save, search_to_depth, with_twins

from retrieval.fusion import fused_query, score, unit
from retrieval.index.effort import LAMBDA_GRID
from retrieval.index.hits import merge_topk
from retrieval.index.shard import Shard
from retrieval.metrics import neighbour_recall


@pytest.mark.parametrize("k", [1, 10, 100, 299, 300, 10**9])
def test_flat_shard_equals_a_full_sort_with_ties(k: int) -> None:
    ids, vectors = names(300), with_twins(300)
    shard = build(ids, vectors)
    assert shard.factory == "Flat"
    hits = shard.search(queries(), k)
    expected = plain_search(ids, vectors, queries(), k)
    assert hits.ids.tolist() == expected
    assert shard.exact(queries(), k).ids.tolist() == expected


@pytest.mark.parametrize("shards", [1, 2, 7])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_sharded_search_equals_unsharded_to_the_bit(shards: int, weight: float) -> None:
    ids, vectors = names(700), with_twins(700)
    whole = build(ids, vectors)
    home = np.random.default_rng(3).integers(shards, size=700)
    parts = [build([ids[n] for n in np.flatnonzero(home == s)], vectors[home == s]) for s in range(shards)]
    for k in (1, 10, 50):
        query = queries(weight=weight)
        merged = merge_topk([part.search(query, k) for part in parts], k)
        alone = whole.search(query, k)
        np.testing.assert_array_equal(merged.ids, alone.ids)
        for part in ("scores", "text_part", "visual_part"):
            np.testing.assert_array_equal(getattr(merged, part), getattr(alone, part))
        for found, shard, row in zip(merged.ids.flat, merged.shards.flat, merged.rows.flat, strict=True):
            assert parts[shard].rows["id"][int(row)].as_py() == found


def test_more_twins_than_candidates_still_come_out_by_id() -> None:
    vectors = joint(2000)
    vectors[100:1900] = vectors[100]
    ids = names(2000)
    query = vectors[100][None].astype(np.float32) / 2
    for factory in ("Flat", "IVF16,SQ8", "IVF16,Flat", "SQ8"):
        shard = build(ids, vectors, factory=factory)
        assert shard.search(query, 10).ids.tolist() == [sorted(ids[100:1900])[:10]], factory


def test_scores_and_parts_are_those_of_the_formula() -> None:
    ids, vectors = names(50), joint(50)
    rng = np.random.default_rng(5)
    text, visual = unit(rng.standard_normal((2, D1))), unit(rng.standard_normal((2, D2)))
    hits = build(ids, vectors).search(fused_query(text, visual, 0.3), 50)
    scores = score(text, visual, 0.3, vectors[:, :D1], vectors[:, D1:])
    for q in range(2):
        place = [ids.index(name) for name in hits.ids[q]]
        np.testing.assert_array_equal(hits.scores[q], scores[q, place])
        np.testing.assert_allclose(hits.text_part[q], 0.7 * vectors[place, :D1] @ text[q], atol=1e-3)
        np.testing.assert_allclose(hits.visual_part[q], 0.3 * vectors[place, D1:] @ visual[q], atol=1e-3)
    np.testing.assert_allclose(hits.text_part + hits.visual_part, hits.scores, atol=1e-6)
    assert (np.diff(hits.scores, axis=1) <= 0).all()
    assert hits.scores.dtype == hits.text_part.dtype == np.float32


def test_k_beyond_what_the_lists_hold_is_filled_up_exactly() -> None:
    shard = build(names(2000), joint(2000), factory="IVF32,Flat")
    hits = shard.search(queries(), 1500, effort=1)
    np.testing.assert_array_equal(hits.ids, shard.exact(queries(), 1500).ids)
    assert (hits.rows >= 0).all()


@pytest.mark.parametrize("factory", ["IVF64,SQ8", "HNSW8"])
def test_concurrent_searches_with_different_effort_do_not_meet(factory: str) -> None:
    shard = build(names(5000), joint(5000), factory=factory)
    query = queries(64, 0.5)
    efforts = [1, 64]
    alone = [search_to_depth(shard, query, 5, 10, effort=effort).ids for effort in efforts]
    assert (alone[0] != alone[1]).any() or factory == "HNSW8"
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(20):
            if (search_to_depth(shard, query, 5, 10, effort=efforts[n]).ids != alone[n]).any():
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n % 2,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("factory", ["auto", "IVF16,SQ8", "HNSW16", "PQ4"])
def test_empty_shard(factory: str, tmp_path: Path) -> None:
    shard = build([], joint(0), factory=factory)
    save(shard, tmp_path)
    for one in (shard, Shard.open(tmp_path)):
        hits = one.search(queries(3), 5)
        assert len(one) == 0
        assert hits.ids.shape == hits.scores.shape == (3, 0)
    full = build(names(30), joint(30)).search(queries(3), 5)
    np.testing.assert_array_equal(merge_topk([hits, full], 5).ids, full.ids)


def test_no_queries_give_no_hits() -> None:
    assert build(names(30), joint(30)).search(queries()[:0], 5).ids.shape == (0, 5)


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16,SQ8", "HNSW16", "SQ8", "PCA20,IVF16,SQ8", "OPQ4,IVF16,SQ8"])
def test_approximate_indexes_find_most_and_score_exactly(factory: str, tmp_path: Path) -> None:
    ids, vectors = names(2000), joint(2000)
    shard = build(ids, vectors, factory=factory)
    assert shard.factory == factory
    for weight in LAMBDA_GRID:
        query = queries(50, weight)
        found, exact = shard.search(query, 10), shard.exact(query, 10)
        assert neighbour_recall(found.ids, exact.ids) >= 0.95, weight
        for q in range(50):
            known = dict(zip(exact.ids[q], exact.scores[q], strict=True))
            for name, value in zip(found.ids[q], found.scores[q], strict=True):
                assert known.get(name, value) == value
    save(shard, tmp_path)
    loaded = Shard.open(tmp_path)
    np.testing.assert_array_equal(loaded.search(queries(), 10).ids, shard.search(queries(), 10).ids)


def test_product_quantiser_is_rescored() -> None:
    shard = build(names(10_000), joint(10_000), factory="PQ4")
    assert shard.factory == "PQ4"
    query = queries(50, 0.5)
    assert neighbour_recall(shard.search(query, 10).ids, shard.exact(query, 10).ids) >= 0.95
    coarse = search_to_depth(shard, query, 10, 20)
    assert neighbour_recall(coarse.ids, shard.exact(query, 10).ids) < 0.95


def test_queries_that_do_not_fit_are_refused() -> None:
    shard = build(names(30), joint(30))
    for k in (0, -1):
        with refused("out-of-range", "k"):
            shard.search(queries(), k)
        with refused("out-of-range", "k"):
            merge_topk([shard.search(queries(), 1)], k)
        with refused("out-of-range", "effort"):
            shard.search(queries(), 5, effort=k)
    with refused("wrong-shape", "query") as error:
        shard.search(queries()[:, :-1], 5)
    assert "(4, 19), this shard has 20 dimensions (8 vlm + 12 vision)" in str(error.value)
    with refused("out-of-range", "query"):
        shard.search(queries() * np.nan, 5)
