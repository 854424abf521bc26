"""Findings of several shards become one: against a plain sort of all rows, with ties inside shards and between them."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.index.hits import Hits, merge_topk


def part(rng: np.random.Generator, queries: int, k: int, *, levels: int, names: int) -> Hits:
    """What a shard finds: ``levels`` different scores and ``names`` different ids, sorted as a shard sorts."""
    scores = (rng.integers(levels, size=(queries, k)) / 8).astype(np.float32)
    ids = rng.integers(names, size=(queries, k)).astype(str).astype(object)
    order = np.array([sorted(range(k), key=lambda n: (-scores[q, n], ids[q, n])) for q in range(queries)], dtype=int)
    order = order.reshape(queries, k)
    rows = rng.integers(10**9, size=(queries, k))
    scores, ids = np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
    return Hits(ids, rows, scores, scores / 2, scores / 2, np.zeros(scores.shape, dtype=np.int32))


@pytest.mark.parametrize("levels", [1, 3, 10**6])
@pytest.mark.parametrize("widths", [(5,), (5, 5), (30, 1, 7), (0, 4), (20,) * 40])
@pytest.mark.parametrize("k", [1, 5, 6, 100])
def test_merging_equals_a_plain_sort_of_everything(widths: tuple[int, ...], levels: int, k: int) -> None:
    rng = np.random.default_rng(len(widths) * levels + k)
    parts = [part(rng, 6, width, levels=levels, names=10**6) for width in widths]
    merged = merge_topk(parts, k)
    for q in range(6):
        everything = [
            (-one.scores[q, n], one.ids[q, n], number, one.rows[q, n], one.text_part[q, n])
            for number, one in enumerate(parts)
            for n in range(one.scores.shape[1])
        ]
        expected = sorted(everything)[:k]
        columns = (-merged.scores, merged.ids, merged.shards, merged.rows, merged.text_part)
        assert list(zip(*(column[q] for column in columns), strict=True)) == expected


def test_ids_are_compared_as_strings_and_only_where_scores_are_equal() -> None:
    class Untouched(str):
        def __lt__(self, other: object) -> bool:
            raise AssertionError("compared")

    def one(*found: tuple[float, str]) -> Hits:
        scores = np.array([[score for score, _ in found]], dtype=np.float32)
        ids = np.empty(scores.shape, dtype=object)
        ids[0] = [id for _, id in found]
        return Hits(ids, np.zeros(scores.shape, int), scores, scores, scores, np.zeros(scores.shape, np.int32))

    tied = [one((0.5, "é"), (0.25, "b")), one((0.5, "z"), (0.25, "a")), one((0.5, "10"), (0.5, "9"))]
    assert merge_topk(tied, 5).ids.tolist() == [["10", "9", "z", "é", "a"]]
    apart = [one((0.5, Untouched("b")), (0.25, Untouched("a"))), one((0.4, Untouched("c")), (0.3, Untouched("d")))]
    assert merge_topk(apart, 3).ids.tolist() == [["b", "c", "d"]]
