"""Effort: how far an approximate search looks (nprobe or efSearch), by the fusion weight λ that its query carries.

At λ = 0 the vision half of the clustering is noise, at λ = 1 the text half is, so each λ needs an effort of its own.
``tuning`` measures them when a shard is built.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

LAMBDA_GRID: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The λ at which efforts and recall are measured."""


def effort_of_each(query_QD: NDArray[np.float32], vlm_dim: int, efforts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the effort of each query: the more careful of the two measured ones around its λ.

    Args:
        query_QD: joint queries [(1 - λ)t ; λv].
        vlm_dim: D1, where t ends and v begins.
        efforts: int64 (5,), measured at ``LAMBDA_GRID``.

    Returns:
        int64 (Q,).
    """
    text, visual = (np.linalg.norm(half, axis=1) for half in np.split(query_QD, [vlm_dim], axis=1))
    # t and v are unit vectors, so the halves have norms 1 - λ and λ. For a zero query any λ will do.
    lam = visual / np.maximum(text + visual, np.finfo(np.float32).tiny)
    place = np.round(lam * (len(LAMBDA_GRID) - 1), 3)
    return np.maximum(efforts[np.floor(place).astype(int)], efforts[np.ceil(place).astype(int)])
