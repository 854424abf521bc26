"""Measured efforts: each λ gets what its queries need, and no more than a shard's share of the rows asks for."""

from __future__ import annotations

import numpy as np
import pytest
from plain_shard import D1, build, names

from retrieval.fusion import fused_query, unit
from retrieval.index.effort import LAMBDA_GRID
from retrieval.index.tuning import measured_efforts
from retrieval.metrics import neighbour_recall


def test_measured_efforts_belong_to_each_weight() -> None:
    """Only the vision half has clusters: text queries must look into many lists, visual ones into few."""
    rng = np.random.default_rng(0)
    text = unit(rng.standard_normal((6000, D1)))
    centres = unit(rng.standard_normal((40, 64)))
    vision = unit(centres[rng.integers(40, size=6000)] + 0.02 * rng.standard_normal((6000, 64)))
    vectors = np.concatenate([text, vision], axis=1)
    shard = build(names(6000), vectors, factory="IVF100,SQ8")
    assert shard.efforts.shape == (5,)
    assert shard.efforts[0] >= 4 * shard.efforts[-1]


DIM = 64


def clustered(rows: int, classes: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joint rows of classes known to both halves, and text and visual queries that lie off the gallery."""
    rng = np.random.default_rng(seed)

    def around(centres: np.ndarray, labels: np.ndarray, noise: float) -> np.ndarray:
        return unit(centres[labels] + noise * unit(rng.standard_normal((len(labels), centres.shape[1]))))

    centres = [unit(rng.standard_normal((classes, DIM))) for _ in range(2)]
    labels, asked = rng.integers(classes, size=rows), rng.integers(classes, size=100)
    vectors = np.concatenate([around(c, labels, spread) for c in centres], axis=1).astype(np.float16)
    return vectors, around(centres[0], asked, 2.0), around(centres[1], asked, 1.0)


@pytest.mark.slow
def test_auto_index_of_sixty_thousand_rows_keeps_its_recall_at_every_weight() -> None:
    vectors, text, visual = clustered(60_000, classes=300, spread=2.0, seed=0)
    shard = build([f"{n:06d}" for n in range(60_000)], vectors, vlm_dim=DIM)
    assert shard.factory == "IVF976,SQ8"
    for weight in (*LAMBDA_GRID, 0.1, 0.4, 0.9):
        query = fused_query(text, visual, weight)
        found, exact = shard.search(query, 10), shard.exact(query, 10)
        assert neighbour_recall(found.ids, exact.ids) >= 0.95, (weight, shard.efforts)


def test_small_share_of_an_index_is_not_searched_as_deep() -> None:
    """Classes of 20 rows: the hundred best of this shard alone are mostly noise, the hundred best of the index not."""
    vectors, *_ = clustered(6000, classes=300, spread=1.0, seed=0)
    shard = build(names(6000), vectors, vlm_dim=DIM, factory="IVF150,SQ8")
    whole, some = shard.efforts, np.array(measured_efforts(shard, 0, share=0.1))
    assert (some <= whole).all()
    assert some.sum() < whole.sum() / 2
