"""Imagined images of many queries, pooled in a task: PyTorch takes half a gigabyte, which a driver can do without."""

from __future__ import annotations

import numpy as np

from pipelines.running import current_executor
from retrieval.artifacts import TrainedAggregator


def pooled(features_QKD2: np.ndarray, mask_QK: np.ndarray, aggregator: TrainedAggregator | None = None) -> np.ndarray:
    """Pool the images of each query by an aggregator, or without one as their mean, as ``retrieval.query.pool``."""
    return current_executor().run(_pooled, features_QKD2, mask_QK, aggregator).get()


def _pooled(features_QKD2: np.ndarray, mask_QK: np.ndarray, aggregator: TrainedAggregator | None) -> np.ndarray:
    from retrieval.query import pool

    return pool(features_QKD2, mask_QK, aggregator.network() if aggregator else None)
