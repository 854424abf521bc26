"""What a search finds, and how the findings of several shards become one."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import UserError


@dataclass(frozen=True, eq=False)
class Hits:
    """The k best rows of Q queries, each array (Q, k): scores descending, equal scores by ascending id.

    Attributes:
        ids: the rows' ids, strings.
        rows: their rows in the table of their shard.
        scores: float32, the sum of the two parts, rounded once.
        text_part: (1 - λ)·⟨t, c⟩.
        visual_part: λ·⟨v, d⟩.
        shards: of which shard, as its place in the list that ``merge_topk`` got; 0 before.
    """

    ids: NDArray[np.object_]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    text_part: NDArray[np.float32]
    visual_part: NDArray[np.float32]
    shards: NDArray[np.int32]

    def first(self, count: int) -> Hits:
        """Return the first so many of each query."""
        return Hits(**{field.name: getattr(self, field.name)[:, :count] for field in fields(self)})

    def of(self, query: int) -> Hits:
        """Return those of one of the queries."""
        return Hits(**{field.name: getattr(self, field.name)[query : query + 1] for field in fields(self)})


def merge_topk(parts: Sequence[Hits], k: int) -> Hits:
    """Return the k best of what several shards, at least one, found for the same queries; ties by ascending id.

    Raises:
        UserError: k is below 1.
    """
    assert parts, "no shard answered, there is nothing to merge"
    k = checked_k(k)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    if len(parts) > 1 and (below := scores.shape[1] - k) > 0:
        cut = np.partition(scores, below, axis=1)[:, below : below + 1]
        parts = [part.first(int((part.scores >= cut).sum(axis=1).max(initial=0))) for part in parts]
        scores = np.concatenate([part.scores for part in parts], axis=1)
    ids = np.concatenate([part.ids for part in parts], axis=1)
    numbered = [np.full(part.rows.shape, number, dtype=np.int32) for number, part in enumerate(parts)]
    shards = np.concatenate(numbered, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    for q, deep in _tied_between(shards, scores, order, k):
        # Ids are compared where scores are equal alone: a part has its own equals in order, and no two parts do.
        order[q, :deep] = sorted(order[q, :deep].tolist(), key=lambda at: (-scores[q, at], ids[q, at]))
    best = order[:, :k]

    def pick(*arrays: NDArray[Any]) -> NDArray[Any]:
        return np.take_along_axis(np.concatenate(arrays, axis=1), best, axis=1)

    return Hits(
        ids=pick(ids),
        rows=pick(*(part.rows for part in parts)),
        scores=pick(scores),
        text_part=pick(*(part.text_part for part in parts)),
        visual_part=pick(*(part.visual_part for part in parts)),
        shards=pick(shards),
    )


def _tied_between(
    shards: NDArray[np.int32], scores: NDArray[np.float32], order: NDArray[np.intp], k: int
) -> Iterator[tuple[int, int]]:
    """The queries with equal scores from several shards among the k best, or across the k-th; and how many rows of each
    score as much as its k-th does.
    """
    scores, shards = np.take_along_axis(scores, order, axis=1), np.take_along_axis(shards, order, axis=1)
    reaching = scores >= scores[:, :k][:, -1:]
    mixed = (scores[:, 1:] == scores[:, :-1]) & (shards[:, 1:] != shards[:, :-1]) & reaching[:, 1:]
    for q in np.flatnonzero(mixed.any(axis=1)).tolist():
        yield q, int(np.count_nonzero(reaching[q]))


def checked_k(k: int) -> int:
    """Return k as it was given.

    Raises:
        UserError: it is below 1 (code ``out-of-range``, field ``k``).
    """
    if operator.index(k) < 1:
        raise UserError(f"k must be at least 1, not {k}", code="out-of-range", field="k")
    return operator.index(k)
