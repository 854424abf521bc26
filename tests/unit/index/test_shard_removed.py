"""Removed rows are never found: each kind of index against a plain list without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.fusion import fused_query, unit
from retrieval.index.effort import LAMBDA_GRID
from retrieval.index.shard import SearchParams, Shard

D1, D2 = 8, 12
ROWS = 800
KINDS = [
    "Flat", "SQ8", "SQ4", "SQfp16", "PQ4x4", "PQ4x4fs", "RaBitQ", "RR20,RaBitQ", "RaBitQfs",
    "IVF8,Flat", "IVF8,SQ8", "IVF8,SQ4", "IVF8,SQfp16", "IVF8,PQ4x4", "IVF8,PQ4x4fs", "IVF8,RaBitQ", "IVF8,RaBitQfs",
    "RR20,IVF8,RaBitQ", "PCA10,IVF8,SQ8", "HNSW8", "HNSW8,SQ8",
]  # fmt: skip
NAMES = [f"{'ä' if n % 3 else 'x'}/{n}" for n in np.random.default_rng(0).permutation(ROWS)]


def joint() -> np.ndarray:
    """Vectors of which half are copies of another row, so that most cuts go through a tie."""
    rng = np.random.default_rng(1)
    vectors = np.concatenate([unit(rng.standard_normal((ROWS, dim))) for dim in (D1, D2)], axis=1).astype(np.float16)
    copies = rng.permutation(ROWS)[: ROWS // 2]
    vectors[copies] = vectors[rng.integers(0, 40, size=len(copies))]
    return vectors


VECTORS = joint()


def queries(weight: float) -> np.ndarray:
    rng = np.random.default_rng(2)
    return fused_query(unit(rng.standard_normal((3, D1))), unit(rng.standard_normal((3, D2))), weight)


def plain_search(removed: set[str], query: np.ndarray, k: int) -> list[list[str]]:
    """All float64 scores of the rows that are left, rounded to float32, sorted by Python."""
    left = [n for n in range(ROWS) if NAMES[n] not in removed]
    on_grid = np.rint(query.astype(np.float64) * 2**24) / 2**24
    scores = (on_grid @ VECTORS.astype(np.float64).T).astype(np.float32)
    return [[NAMES[n] for n in sorted(left, key=lambda n: (-row[n], NAMES[n]))[:k]] for row in scores]


@pytest.fixture(scope="module", params=KINDS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param.replace(",", "-"))
    shard = Shard.build(NAMES, VECTORS, vlm_dim=D1, factory=request.param)
    assert shard.factory == request.param
    shard.save(folder)
    return folder


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    count=st.sampled_from([1, 100, ROWS // 2, ROWS - 5, ROWS - 1]),
    seed=st.integers(0, 2**16),
    k=st.sampled_from([1, 3, 10, 200, 10**9]),
    weight=st.sampled_from([*LAMBDA_GRID, 0.1]),
    mmap=st.booleans(),
)
def test_what_is_left_is_found_as_if_the_others_had_never_been(
    saved: Path, count: int, seed: int, k: int, weight: float, mmap: bool
) -> None:
    removed = set(np.random.default_rng(seed).choice(NAMES, count, replace=False).tolist())
    shard = Shard.load(saved, mmap=mmap, removed=removed)
    query = queries(weight)
    expected = plain_search(removed, query, k)
    assert len(shard) == ROWS - count
    assert shard.exact(query, k).ids.tolist() == expected
    if count <= ROWS // 2 and "HNSW" not in shard.factory:
        # An index that looks at all rows but the least likely one finds the same: all candidates are scored exactly.
        everywhere = shard.search(query, k, params=SearchParams(nprobe=8), rescore=ROWS - count - 1)
        assert everywhere.ids.tolist() == expected
    for params in (None, SearchParams(nprobe=1, ef_search=1)):
        hits = shard.search(query, k, params=params)
        assert hits.ids.shape == (3, min(k, ROWS - count))
        assert not removed & set(hits.ids.ravel().tolist())
        assert all(len(set(row)) == len(row) for row in hits.ids.tolist())


def test_all_removed(saved: Path) -> None:
    shard = Shard.load(saved, removed=NAMES)
    assert len(shard) == 0
    assert len(shard.rows) == len(shard.vectors) == ROWS
    for hits in (shard.search(queries(0.5), 5), shard.exact(queries(0.5), 5)):
        assert hits.ids.shape == (3, 0)


def test_removed_ids_of_other_shards_do_not_matter(saved: Path) -> None:
    whole = Shard.load(saved)
    for removed in ([], ["of", "another"], pa.array(["elsewhere"]), pa.chunked_array([["a"], ["b"]]), pa.array([])):
        shard = Shard.load(saved, removed=removed)
        assert len(shard) == ROWS
        assert shard.alive.all()
        np.testing.assert_array_equal(shard.search(queries(0.3), 10).ids, whole.search(queries(0.3), 10).ids)


@pytest.mark.parametrize("factory", ["Flat", "IVF8,SQ8", "PQ4x4", "HNSW8"])
def test_a_removed_twin_leaves_its_place_to_the_next_id(factory: str, tmp_path: Path) -> None:
    vectors = VECTORS.copy()
    vectors[100:700] = vectors[100]
    Shard.build(NAMES, vectors, vlm_dim=D1, factory=factory).save(tmp_path)
    twins = sorted(NAMES[100:700])
    shard = Shard.load(tmp_path, removed=[*twins[:3], *twins[6:8]])
    query = vectors[100][None].astype(np.float32) / 2
    for hits in (shard.search(query, 5), shard.exact(query, 5)):
        assert hits.ids.tolist() == [[*twins[3:6], *twins[8:10]]]
