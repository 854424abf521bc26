"""The plain reference of a shard: built in memory in one go, and searched by sorting all scores in Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retrieval.fusion import fused_query, unit
from retrieval.index.build import fill
from retrieval.index.files import VECTORS, write_shard
from retrieval.index.hits import Hits
from retrieval.index.kinds import fitted_factory
from retrieval.index.shard import Shard
from retrieval.index.train import train, training_sample
from retrieval.index.tuning import measured_efforts

D1, D2 = 8, 12
"""Dimensions of the halves of what ``joint`` and ``queries`` make."""


def joint(rows: int, seed: int = 0) -> np.ndarray:
    """Random joint rows [c ; d], float16 (N, D1 + D2)."""
    rng = np.random.default_rng(seed)
    halves = [unit(rng.standard_normal((rows, dim))) for dim in (D1, D2)]
    return np.concatenate(halves, axis=1).astype(np.float16)


def with_twins(rows: int, seed: int = 0) -> np.ndarray:
    """Joint rows of which two thirds are copies of another, so that most cuts go through a tie."""
    vectors, rng = joint(rows, seed), np.random.default_rng(seed + 1)
    copies = rng.permutation(rows)[: 2 * rows // 3]
    vectors[copies] = vectors[rng.integers(0, max(rows // 20, 1), size=len(copies))]
    return vectors


def names(rows: int, seed: int = 0) -> list[str]:
    """Ids whose order is neither that of insertion nor numeric, some of them beyond ASCII."""
    return [f"{'ä' if n % 3 else 'x'}/{n}.jpg" for n in np.random.default_rng(seed).permutation(rows)]


def queries(count: int = 4, weight: float = 0.4, seed: int = 9) -> np.ndarray:
    """Random joint queries, float32 (Q, D1 + D2)."""
    rng = np.random.default_rng(seed)
    return fused_query(unit(rng.standard_normal((count, D1))), unit(rng.standard_normal((count, D2))), weight)


def plain_search(
    ids: Sequence[str], vectors_ND: np.ndarray, query_QD: np.ndarray, k: int, removed: set[str] | None = None
) -> list[list[str]]:
    """All float64 scores of the rows that are left, rounded to float32, sorted by Python."""
    left = [n for n in range(len(ids)) if ids[n] not in (removed or ())]
    on_grid = np.rint(query_QD.astype(np.float64) * 2**24) / 2**24
    scores = (on_grid @ vectors_ND.astype(np.float64).T).astype(np.float32)
    return [[ids[n] for n in sorted(left, key=lambda n: (-row[n], ids[n]))[:k]] for row in scores]


def build(
    ids: Sequence[str],
    joint_ND: np.ndarray,
    *,
    vlm_dim: int = D1,
    factory: str = "auto",
    rows: pa.Table | None = None,
    seed: int = 0,
) -> Shard:
    """A shard of different ids, the same whatever their order; ``rows`` are further columns, in the order of ids."""
    order = np.array(sorted(range(len(ids)), key=lambda n: ids[n]), dtype=np.int64)
    columns = {"id": pa.array(ids, pa.string())}
    if rows is not None:
        columns |= {name: rows[name] for name in rows.column_names if name != "id"}
    table = pa.table(columns).take(pa.array(order))
    vectors = joint_ND.astype(np.float16)[order]
    factory = fitted_factory(factory, len(vectors), vectors.shape[1])
    index = train(training_sample(vectors, factory, seed), factory, seed=seed)
    fill(index, vectors)
    efforts = measured_efforts(Shard(index, vectors, table, vlm_dim=vlm_dim, factory=factory), seed)
    return Shard(index, vectors, table, vlm_dim=vlm_dim, factory=factory, efforts=efforts)


def save(shard: Shard, folder: Path) -> dict[str, Any]:
    """Write a shard that was built in memory; returns the records of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / VECTORS, shard.vectors, allow_pickle=False)
    content = {
        "rows": len(shard.vectors),
        "dim": shard.dim,
        "vlm_dim": shard.vlm_dim,
        "factory": shard.factory,
        "efforts": shard.efforts.tolist(),
        "duplicates": 0,
    }
    return write_shard(folder, shard.index, shard.rows, content)


def search_to_depth(shard: Shard, query_QD: np.ndarray, k: int, depth: int, *, effort: int | None = None) -> Hits:
    """What ``search`` finds with so few (or so many) candidates scored exactly; at least 2k, so that it sees ties."""
    query = shard._checked(query_QD)
    k = min(k, len(shard))
    return shard._hits(query, shard._best_rows(query, k, max(2 * k, depth), effort))
