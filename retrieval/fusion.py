"""The fused query and its score: text and vision in one inner product.

CLETIR (arXiv 2509.00177) ranks gallery image x by (1 - λ)·⟨t, c_x⟩ + λ·⟨v, d_x⟩, which is ⟨[(1 - λ)t ; λv],
[c_x ; d_x]⟩: λ lives in the query alone, so one gallery of joint rows [c ; d] serves every λ.

Scores here have no rounding before the last step, so that ties are ties: the same row gets the same score in
any block, shard, BLAS library or number of threads. Queries and rows are taken to the grid of multiples of
2⁻²⁴, where every float16 in [-1, 1] already lies. A product of two such numbers is a multiple of 2⁻⁴⁸, and as
long as ‖q‖·‖x‖ ≤ 32 every partial sum stays below 2⁵, that is within the 53 bits of a float64: the sum is
exact in whatever order it is taken, and is rounded to float32 once. Shapes: Q queries, N rows, D = D1 + D2
dimensions (D1 VLM, D2 vision).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.errors import UserError

GRID = 2.0**-24
DEFAULT_WEIGHT = 0.5
"""λ where neither a person nor an aggregator gives one."""


def unit(x: ArrayLike) -> NDArray[np.float32]:
    """Scale rows (..., D) to unit norm, in float64, and return them as float32.

    Raises:
        UserError: a row is zero or not finite (code ``no-direction``); the first is named.
    """
    rows = np.asarray(x, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        raise UserError(
            f"row {bad[0]} of {norms.size} is zero or not finite and cannot be scaled to unit norm "
            f"({bad.size} such rows)",
            code="no-direction",
            field="rows",
        )
    return (rows / norms).astype(np.float32)


def check_weight(weight: ArrayLike) -> NDArray[np.float64]:
    """Return λ as float64, scalar or (Q,).

    Raises:
        UserError: it is not a number, finite, with 0 ≤ λ ≤ 1 (code ``out-of-range``, field ``weight``).
    """
    value = np.asarray(weight)
    if value.dtype.kind not in "fiu" or value.ndim > 1 or not np.all((value >= 0) & (value <= 1)):
        raise UserError(
            f"the fusion weight λ must be a number from 0 (text alone) to 1 (images alone), not {weight!r}",
            code="out-of-range",
            field="weight",
        )
    return value.astype(np.float64)


def fused_query(text_QD1: ArrayLike, visual_QD2: ArrayLike, weight: ArrayLike) -> NDArray[np.float32]:
    """Fuse unit rows t and v to joint queries [(1 - λ)t ; λv] (CLETIR).

    Args:
        text_QD1: t, or one of them (D1,).
        visual_QD2: v, or one of them (D2,).
        weight: λ, a scalar or (Q,).

    Returns:
        float32 (Q, D1 + D2).

    Raises:
        UserError: numbers of rows and weights differ (code ``wrong-shape``), or as ``check_weight``.
    """
    text = np.atleast_2d(np.asarray(text_QD1, dtype=np.float64))
    visual = np.atleast_2d(np.asarray(visual_QD2, dtype=np.float64))
    lam = check_weight(weight)
    if len(text) != len(visual) or (lam.ndim and len(lam) != len(text)):
        raise UserError(
            f"{len(text)} text vectors, {len(visual)} visual vectors and weights of shape {lam.shape} do not pair up",
            code="wrong-shape",
            field="visual",
        )
    lam = lam.reshape(-1, 1)
    return np.concatenate([(1 - lam) * text, lam * visual], axis=1).astype(np.float32)


def on_grid(x: ArrayLike) -> NDArray[np.float64]:
    """Return x in float64, rounded to multiples of 2⁻²⁴; float16, and float32 from 1/2 on, lie on them already."""
    values = np.asarray(x)
    if values.dtype == np.float16:
        return values.astype(np.float64)
    return np.rint(values.astype(np.float64) / GRID) * GRID


def products(query_QD: ArrayLike, rows_ND: ArrayLike) -> NDArray[np.float64]:
    """Return inner products, float64 (Q, N), without rounding error, for ‖q‖·‖x‖ ≤ 32 (see above)."""
    return on_grid(query_QD) @ on_grid(rows_ND).T


def score(
    text_QD1: ArrayLike, visual_QD2: ArrayLike, weight: ArrayLike, vlm_ND1: ArrayLike, vision_ND2: ArrayLike
) -> NDArray[np.float32]:
    """Score every row for every query: (1 - λ)·⟨t, c⟩ + λ·⟨v, d⟩, to the bit what ``Shard.search`` gives.

    Args:
        text_QD1: t.
        visual_QD2: v.
        weight: λ, a scalar or (Q,).
        vlm_ND1: c of the gallery's rows, float16 or float32.
        vision_ND2: d of the same rows.

    Returns:
        float32 (Q, N).

    Raises:
        UserError: dimensions differ (code ``wrong-shape``), or as ``fused_query``.
    """
    query = fused_query(text_QD1, visual_QD2, weight)
    vlm, vision = np.asarray(vlm_ND1), np.asarray(vision_ND2)
    if query.shape[1] != vlm.shape[1] + vision.shape[1]:
        raise UserError(
            f"the query has {query.shape[1]} dimensions (text and visual together), "
            f"the gallery {vlm.shape[1]} (vlm) + {vision.shape[1]} (vision)",
            code="wrong-shape",
            field="query",
        )
    split = vlm.shape[1]
    return (products(query[:, :split], vlm) + products(query[:, split:], vision)).astype(np.float32)
