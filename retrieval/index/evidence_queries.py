"""Queries made of evidence, to measure an index with: they lie elsewhere than those that ask for a category.

What is against something takes away what its rows have in common, so those that are left lie in more lists: where .97
of the hundred best of category-like queries were found, it was .78 of those of the same less one of their results
(docs/evidence.md). Q queries, D joint dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.evidence import AGAINST, Encoded, compiled
from retrieval.fusion import unit
from retrieval.index.shard import Shard

KINDS: Final[dict[str, tuple[tuple[str, float], ...]]] = {
    "row": (("best", 1.0),),
    "signed": (("query", 1.0), ("other", AGAINST)),
    "mixed": (("query", 1.0), ("best", 1.0), ("other", AGAINST)),
}
"""Of what each kind of query is made, with which weights: of a query that asks for a category, the best row that it
finds, and another of its results.
"""
RESULTS: Final = 10
"""The other row is the last of so many."""


def evidence_queries(
    shard: Shard, query_QD: NDArray[np.float32], rows_Qk: NDArray[np.int64], weight: float
) -> dict[str, NDArray[np.float32]]:
    """Make queries of each of KINDS, float32 (Q, D), as a search makes them (``retrieval.evidence``).

    Args:
        shard: that has the rows.
        query_QD: joint queries at λ, each of which asks for a category.
        rows_Qk: what they find in the shard, best first, at least one row each.
        weight: λ.
    """
    best, other = (shard.vectors[rows_Qk[:, place]] for place in (0, min(RESULTS, rows_Qk.shape[1]) - 1))
    halves = {"query": _halves(query_QD, shard.vlm_dim), "best": _halves(best, shard.vlm_dim)}
    halves["other"] = _halves(other, shard.vlm_dim)
    return {
        kind: np.concatenate([_compiled(pieces, halves, q, weight) for q in range(len(query_QD))])
        for kind, pieces in KINDS.items()
    }


def _compiled(
    pieces: Sequence[tuple[str, float]], halves: dict[str, list[NDArray[np.float32]]], q: int, weight: float
) -> NDArray[np.float32]:
    weights_E = np.array([weight for _, weight in pieces])
    vlm_ED1, vision_ED2 = (np.stack([halves[name][half][q] for name, _ in pieces]) for half in (0, 1))
    # At λ = 1 a query of texts has no text half; what is left of the others' does not count.
    return compiled(Encoded(weights_E, vlm_ED1, vision_ED2), weight)[0]


def _halves(joint_QD: NDArray, split: int) -> list[NDArray[np.float32]]:
    """Unit halves of joint vectors; a half that is zero, as one of a query at λ = 0 or 1 is, stays so."""
    halves = []
    for half in np.split(joint_QD.astype(np.float32), [split], axis=1):
        scaled = np.zeros_like(half)
        there = half.any(axis=1)
        if there.any():
            scaled[there] = unit(half[there])
        halves.append(scaled)
    return halves
