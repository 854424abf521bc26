"""What a search finds, and how the findings of several shards become one."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
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


def merge_topk(parts: Sequence[Hits], k: int) -> Hits:
    """Return the k best of what several shards, at least one, found for the same queries; ties by ascending id.

    Raises:
        UserError: k is below 1.
    """
    assert parts, "no shard answered, there is nothing to merge"
    numbered = [np.full(part.rows.shape, number, dtype=np.int32) for number, part in enumerate(parts)]
    ids = np.concatenate([part.ids for part in parts], axis=1)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    _, id_order = np.unique(ids, return_inverse=True)
    best = np.lexsort((id_order.reshape(ids.shape), -scores), axis=1)[:, : checked_k(k)]

    def pick(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.take_along_axis(np.concatenate(arrays, axis=1), best, axis=1)

    return Hits(
        ids=pick([ids]),
        rows=pick([part.rows for part in parts]),
        scores=pick([scores]),
        text_part=pick([part.text_part for part in parts]),
        visual_part=pick([part.visual_part for part in parts]),
        shards=pick(numbered),
    )


def checked_k(k: int) -> int:
    """Return k as it was given.

    Raises:
        UserError: it is below 1 (code ``out-of-range``, field ``k``).
    """
    if operator.index(k) < 1:
        raise UserError(f"k must be at least 1, not {k}", code="out-of-range", field="k")
    return operator.index(k)
