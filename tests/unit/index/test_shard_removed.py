"""Removed rows are never found: each kind of index against a plain list without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_shard import build, names, plain_search, queries, save, search_to_depth, with_twins

from retrieval.index.effort import LAMBDA_GRID
from retrieval.index.shard import Shard

ROWS = 800
KINDS = [
    "Flat", "SQ8", "SQ4", "SQfp16", "PQ4x4", "PQ4x4fs", "RaBitQ", "RR20,RaBitQ", "RaBitQfs",
    "IVF8,Flat", "IVF8,SQ8", "IVF8,SQ4", "IVF8,SQfp16", "IVF8,PQ4x4", "IVF8,PQ4x4fs", "IVF8,RaBitQ", "IVF8,RaBitQfs",
    "RR20,IVF8,RaBitQ", "PCA10,IVF8,SQ8", "HNSW8", "HNSW8,SQ8",
]  # fmt: skip
NAMES = names(ROWS)


VECTORS = with_twins(ROWS)


@pytest.fixture(scope="module", params=KINDS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param.replace(",", "-"))
    shard = build(NAMES, VECTORS, factory=request.param)
    assert shard.factory == request.param
    save(shard, folder)
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
    shard = Shard.open(saved, mmap=mmap, removed=removed)
    query = queries(3, weight)
    expected = plain_search(NAMES, VECTORS, query, k, removed)
    assert len(shard) == ROWS - count
    assert shard.exact(query, k).ids.tolist() == expected
    if count <= ROWS // 2 and "HNSW" not in shard.factory:
        # An index that looks at all rows but the least likely one finds the same: all candidates are scored exactly.
        everywhere = search_to_depth(shard, query, k, ROWS - count - 1, effort=8)
        assert everywhere.ids.tolist() == expected
    for effort in (None, 1):
        hits = shard.search(query, k, effort=effort)
        assert hits.ids.shape == (3, min(k, ROWS - count))
        assert not removed & set(hits.ids.ravel().tolist())
        assert all(len(set(row)) == len(row) for row in hits.ids.tolist())


def test_a_row_is_looked_up_by_its_id_unless_it_was_removed(saved: Path) -> None:
    gone = NAMES[5]
    shard = Shard.open(saved, removed=[gone])
    for name in (NAMES[0], NAMES[4], NAMES[-1]):
        row = shard.row_of(name)
        assert row is not None
        assert shard.rows["id"][row].as_py() == name
    assert [shard.row_of(name) for name in (gone, "", "zzz", NAMES[0] + "x")] == [None] * 4


def test_all_removed(saved: Path) -> None:
    shard = Shard.open(saved, removed=NAMES)
    assert len(shard) == 0
    assert len(shard.rows) == len(shard.vectors) == ROWS
    for hits in (shard.search(queries(3, 0.5), 5), shard.exact(queries(3, 0.5), 5)):
        assert hits.ids.shape == (3, 0)


def test_removed_ids_of_other_shards_do_not_matter(saved: Path) -> None:
    whole = Shard.open(saved)
    for removed in ([], ["of", "another"], pa.array(["elsewhere"]), pa.chunked_array([["a"], ["b"]]), pa.array([])):
        shard = Shard.open(saved, removed=removed)
        assert len(shard) == ROWS
        assert shard.alive.all()
        np.testing.assert_array_equal(shard.search(queries(3, 0.3), 10).ids, whole.search(queries(3, 0.3), 10).ids)


@pytest.mark.parametrize("factory", ["Flat", "IVF8,SQ8", "PQ4x4", "HNSW8"])
def test_a_removed_twin_leaves_its_place_to_the_next_id(factory: str, tmp_path: Path) -> None:
    vectors = VECTORS.copy()
    vectors[100:700] = vectors[100]
    save(build(NAMES, vectors, factory=factory), tmp_path)
    twins = sorted(NAMES[100:700])
    shard = Shard.open(tmp_path, removed=[*twins[:3], *twins[6:8]])
    query = vectors[100][None].astype(np.float32) / 2
    for hits in (shard.search(query, 5), shard.exact(query, 5)):
        assert hits.ids.tolist() == [[*twins[3:6], *twins[8:10]]]
