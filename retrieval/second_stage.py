"""The second stage: the best candidates of a search, ranked again by how they lie among one another.

``neighbours`` is the reranking of SuperGlobal (Shao et al., "Global Features are All You Need for Image Retrieval and
Reranking", ICCV 2023), on rows whose inner product with the query is our fused score:

    x̃ = [√(1-λ) c ; √λ d],  q̃ = [√(1-λ) t ; √λ v],  ⟨q̃, x̃⟩ = (1-λ)⟨t, c⟩ + λ⟨v, d⟩

Each candidate is blended with its nearest candidates, with similarity as weight; the elementwise maximum of the best
blends is a second query; and the mean of both queries' scores of the blend is the new score. Nothing is trained, and
the index is not asked again. M candidates, D = D1 + D2 dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import UserError
from retrieval.fusion import on_grid
from retrieval.rankings import Scored

Rerank = Literal["none", "neighbours"]
DEPTH = 100
"""M, how many candidates are ranked again. Chosen on fitting categories with the next two: docs/evidence.md."""
NEIGHBOURS = 9
"""K: a blend is made of a candidate, its K neighbours and itself; the second query of the K + 1 best blends."""
BETA = 0.6
"""β, the weight of neighbours in a blend."""
MAX_DEPTH = 1000
"""Time and memory grow with the square of the depth."""


def checked_depth(depth: int) -> int:
    """Return the depth as it was given.

    Raises:
        UserError: it is below 1 or above MAX_DEPTH (code ``out-of-range``, field ``depth``).
    """
    if not 1 <= depth <= MAX_DEPTH:
        message = f"the depth is a number of candidates from 1 to {MAX_DEPTH}, not {depth!r}"
        raise UserError(message, code="out-of-range", field="depth")
    return depth


def put_in_order(ranking: Sequence[Scored], scores_M: NDArray[np.float32]) -> list[Scored]:
    """Return a ranking with its first M rows in the order of new scores, equal ones by ascending id.

    Args:
        ranking: of M rows or more.
        scores_M: of its first M.
    """
    order = sorted(zip(scores_M.tolist(), ranking, strict=False), key=lambda one: (-one[0], one[1].id))
    return [*(row._replace(rerank_score=score) for score, row in order), *ranking[len(order) :]]


def neighbours(
    query_D: NDArray[np.float32],
    weight: float,
    joint_MD: NDArray[np.float16],
    vlm_dim: int,
    *,
    count: int = NEIGHBOURS,
    beta: float = BETA,
) -> NDArray[np.float32]:
    """Score candidates by the query and by the best of them, each blended with its neighbours (see above).

    To the bit the same with any BLAS library and number of threads: inner products are of numbers on the grid of
    ``retrieval.fusion``, which is exact, and all else is elementwise.

    Args:
        query_D: the joint query [(1-λ)t ; λv].
        weight: λ.
        joint_MD: rows [c ; d] of the candidates, best first.
        vlm_dim: D1.
        count: K.
        beta: β.

    Returns:
        float32 (M,), comparable within this call alone.
    """
    if not len(joint_MD):
        return np.zeros(0, np.float32)
    roots_D = np.sqrt(np.repeat([1 - weight, weight], [vlm_dim, joint_MD.shape[1] - vlm_dim]))
    rows_MD = on_grid(roots_D * joint_MD)
    q_D = on_grid(np.divide(query_D, roots_D, out=np.zeros(len(roots_D)), where=roots_D > 0))
    alike_MM = rows_MD @ rows_MD.T
    near_MK = np.argsort(-alike_MM, axis=1, kind="stable")[:, : count + 1]
    share_MK = beta * np.maximum(np.take_along_axis(alike_MM, near_MK, axis=1), 0)
    total_M = 1 + share_MK.sum(axis=1)

    def blended(scores_M: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each candidate's blend scores, of what the candidates score."""
        return (scores_M + (share_MK * scores_M[near_MK]).sum(axis=1)) / total_M

    by_query_M = blended(rows_MD @ q_D)
    best = np.argsort(-by_query_M, kind="stable")[: count + 1]
    blends_BD = (rows_MD[best] + (share_MK[best, :, None] * rows_MD[near_MK[best]]).sum(axis=1)) / total_M[best, None]
    by_best_M = blended(rows_MD @ on_grid(blends_BD.max(axis=0)))
    return ((by_query_M + by_best_M) / 2).astype(np.float32)
