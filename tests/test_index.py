"""A gallery to an index: shards that answer as one, versions, and what refuses to be built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic import D1, D2, directions, write_gallery

from cluster.profile import Profile
from cluster.session import session
from pipelines.index import build_index, shard_of
from retrieval.artifacts import Gallery, Index
from retrieval.fusion import fused_query, unit
from retrieval.hits import Hits, merge_topk
from retrieval.shard import Shard
from retrieval.shard_files import LAMBDA_GRID, verify

pytestmark = pytest.mark.timeout(300)  # starts of workers take long on a busy machine

ROWS = 300
SHARDS = (1, 2, 7)


def with_twins() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Ids and vectors of which two thirds are copies of one of fifteen rows, so that most cuts go through a tie."""
    rng = np.random.default_rng(0)
    vlm, vision = directions(ROWS, D1, rng), directions(ROWS, D2, rng)
    copies, originals = rng.permutation(ROWS)[: 2 * ROWS // 3], rng.integers(0, 15, 2 * ROWS // 3)
    vlm[copies], vision[copies] = vlm[originals], vision[originals]
    return [f"{rng.integers(2**32):08x}-{i}" for i in range(ROWS)], vlm, vision


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    ids, vlm, vision = with_twins()
    return write_gallery(tmp_path_factory.mktemp("twins"), vlm, vision, ids=ids, labels=["a", None] * (ROWS // 2))


@pytest.fixture(scope="module")
def root(gallery: Gallery, profile: Profile, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where three versions lie, of 1, 2 and 7 shards."""
    root = tmp_path_factory.mktemp("index")
    for count in SHARDS:
        build_index(gallery, str(root), profile, shards=count)
    return root


def search(index: Index, query_QD: np.ndarray, k: int) -> Hits:
    return merge_topk([shard.search(query_QD, k) for shard in index.shards()], k)


@pytest.mark.ray
@pytest.mark.parametrize(("version", "shards"), enumerate(SHARDS, 1))
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_sharded_search_equals_unsharded_to_the_bit(root: Path, version: int, shards: int, weight: float) -> None:
    ids, vlm, vision = with_twins()
    whole = Shard.build(ids, np.concatenate([vlm, vision], axis=1).astype(np.float16), vlm_dim=D1)
    index = Index.open(root / f"{version:06d}")
    assert len(index.manifest.shards) == shards
    rng = np.random.default_rng(7)
    queries = fused_query(directions(5, D1, rng), directions(5, D2, rng), weight)
    queries[0] = fused_query(vlm[3], vision[3], weight)  # its twins score highest
    for k in (1, 10, 40):
        found, exact = search(index, queries, k), whole.search(queries, k)
        np.testing.assert_array_equal(found.ids, exact.ids)
        for part in ("scores", "text_part", "visual_part"):
            np.testing.assert_array_equal(getattr(found, part), getattr(exact, part))
    assert len(set(search(index, queries[:1], 10).scores[0])) == 1


@pytest.mark.ray
def test_versions_are_numbered_and_the_newest_is_opened(root: Path, gallery: Gallery) -> None:
    assert sorted(path.name for path in root.iterdir()) == ["000001", "000002", "000003"]
    newest = Index.open(root)
    assert newest.version == "000003"
    assert [record.name for record in newest.manifest.shards] == [f"shard-{i:05d}" for i in range(7)]
    assert newest.manifest.rows == ROWS == sum(record.rows for record in newest.manifest.shards)
    assert newest.manifest.gallery == gallery.uri
    assert newest.manifest.models == gallery.manifest.models
    assert newest.manifest.recall == {str(weight): 1.0 for weight in LAMBDA_GRID}


@pytest.mark.ray
def test_every_row_lies_whole_in_the_shard_of_its_id(root: Path, gallery: Gallery) -> None:
    index = Index.open(root)
    expected = {row["id"]: row for table in gallery.tables() for row in table.to_pylist()}
    for number, shard in enumerate(index.shards()):
        assert verify(root / index.version / index.manifest.shards[number].name) is None
        for row, vector in zip(shard.rows.to_pylist(), shard.vectors, strict=True):
            given = expected.pop(row["id"])
            assert shard_of(row["id"], 7) == number
            assert row == {name: given[name] for name in ("id", "path", "label", "width", "height")}
            np.testing.assert_array_equal(vector, given["vlm"] + given["vision"])
    assert not expected


@pytest.mark.ray
def test_order_of_the_gallery_does_not_matter(root: Path, profile: Profile, tmp_path: Path) -> None:
    ids, vlm, vision = with_twins()
    turned = slice(None, None, -1)
    labels = (["a", None] * (ROWS // 2))[turned]
    gallery = write_gallery(tmp_path / "g", vlm[turned], vision[turned], ids=ids[turned], labels=labels, parts=5)
    index = build_index(gallery, str(tmp_path / "index"), profile, shards=2)
    same = Index.open(root / "000002")
    for name in ("vectors.npy", "index.faiss"):
        assert [r.files[name] for r in index.manifest.shards] == [r.files[name] for r in same.manifest.shards]


@pytest.mark.ray
def test_quantised_index_recalls_the_neighbours_at_every_weight(
    profile: Profile, tmp_path: Path, ray_session: None
) -> None:
    rng = np.random.default_rng(0)
    of_class = rng.integers(60, size=6000)
    vlm, vision = (unit(directions(60, dim, rng)[of_class] + 0.8 * directions(6000, dim, rng)) for dim in (24, 32))
    gallery = write_gallery(tmp_path / "gallery", vlm, vision)
    index = build_index(gallery, str(tmp_path / "index"), profile, shards=2, factory="IVF64,SQ8")
    assert {record.factory for record in index.manifest.shards} == {"IVF64,SQ8"}
    assert set(index.manifest.recall) == {str(weight) for weight in LAMBDA_GRID}
    assert min(index.manifest.recall.values()) >= 0.95
    # Not only by its own word, and for queries other than its own.
    queries = unit(directions(100, 24, rng) + vlm[:100]), unit(directions(100, 32, rng) + vision[:100])
    for weight in LAMBDA_GRID:
        joint = fused_query(*queries, weight)
        found = search(index, joint, 10).ids
        exact = merge_topk([shard.exact(joint, 10) for shard in index.shards()], 10).ids
        assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)]) >= 0.95


def test_fewer_than_one_shard_is_refused(gallery: Gallery, profile: Profile, tmp_path: Path) -> None:
    for shards in (0, -1):
        with pytest.raises(ValueError, match=f"needs at least one shard, {shards} were asked for"):
            build_index(gallery, str(tmp_path), profile, shards=shards)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("factory", ["nonsense", "IVF10,PQ7", "Flat,RFlat"])
def test_unfit_factory_is_refused_before_anything_is_written(
    gallery: Gallery, profile: Profile, tmp_path: Path, factory: str
) -> None:
    with pytest.raises(ValueError, match=f"index factory '{factory}'"):
        build_index(gallery, str(tmp_path), profile, factory=factory)
    assert not list(tmp_path.iterdir())


@pytest.mark.ray
def test_lost_rows_are_an_error_and_nothing_is_published(profile: Profile, tmp_path: Path, ray_session: None) -> None:
    rng = np.random.default_rng(0)
    gallery = write_gallery(tmp_path / "gallery", directions(20, D1, rng), directions(20, D2, rng), rows=21)
    with pytest.raises(RuntimeError, match=r"20 rows arrived in the shards of 21 in .*gallery"):
        build_index(gallery, str(tmp_path / "index"), profile)
    with pytest.raises(ValueError, match="there is no index"):
        Index.open(tmp_path / "index")


@pytest.mark.ray
def test_error_of_a_worker_reaches_the_user_as_one_plain_message(
    profile: Profile, tmp_path: Path, ray_session: None
) -> None:
    rng = np.random.default_rng(0)
    gallery = write_gallery(tmp_path, directions(4, D1, rng), directions(4, D2, rng), ids=["a", "b", "b", "c"])
    with pytest.raises(ValueError, match="ids must differ, 'b' comes more than once") as caught, session():
        build_index(gallery, str(tmp_path / "index"), profile, shards=1)
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)
