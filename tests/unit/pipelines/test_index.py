"""A gallery to an index: shards that answer as one, versions, and what refuses to be built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from errors import refused
from plain_shard import build
from synthetic import D1, D2, directions, write_gallery

import pipelines.quantisers
from cluster.profile import Placement, Profile
from pipelines.executor import ONE_CPU
from pipelines.index import build_index
from pipelines.local_executor import LocalExecutor, LocalShared
from pipelines.publication import worst_recall
from pipelines.shards import cut
from retrieval.artifacts import Gallery, Index
from retrieval.artifacts.manifests import PartRecord
from retrieval.fusion import fused_query, unit
from retrieval.index.effort import LAMBDA_GRID
from retrieval.index.files import verify
from retrieval.index.hits import Hits, merge_topk

pytestmark = pytest.mark.usefixtures("in_process")

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
def root(gallery: Gallery, profile: Profile, in_process: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where three versions lie, of 1, 2 and 7 shards."""
    root = tmp_path_factory.mktemp("index")
    for count in SHARDS:
        build_index(gallery, str(root), profile, shards=count)
    return root


def search(index: Index, query_QD: np.ndarray, k: int) -> Hits:
    return merge_topk([shard.search(query_QD, k) for shard in index.shards()], k)


@pytest.mark.parametrize(("version", "shards"), list(enumerate(SHARDS, 1)))
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_sharded_search_equals_unsharded_to_the_bit(root: Path, version: int, shards: int, weight: float) -> None:
    ids, vlm, vision = with_twins()
    whole = build(ids, np.concatenate([vlm, vision], axis=1).astype(np.float16), vlm_dim=D1)
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


def test_the_summary_says_how_long_each_step_took(gallery: Gallery, profile: Profile, tmp_path: Path) -> None:
    index = build_index(gallery, str(tmp_path), profile, shards=2, factory="IVF4,SQ8")
    summary = index.folder.read_json("summary.json")
    assert set(summary["spent"]) == {"texts", "sample", "sort", "train", "place", "add", "tune", "write", "recall"}
    assert all(seconds >= 0 for seconds in summary["spent"].values())
    # In one process steps follow one another; each is rounded.
    assert 0 < sum(summary["spent"].values()) <= summary["seconds"] + 0.1


def test_versions_are_numbered_and_the_newest_is_opened(root: Path, gallery: Gallery) -> None:
    assert sorted(path.name for path in root.iterdir()) == ["000001", "000002", "000003"]
    newest = Index.open(root)
    assert newest.version == "000003"
    assert [record.name for record in newest.manifest.shards] == [f"shard-{i:05d}" for i in range(7)]
    assert newest.manifest.rows == ROWS == sum(record.rows for record in newest.manifest.shards)
    assert newest.manifest.gallery == gallery.uri
    assert newest.manifest.models == gallery.manifest.models
    assert newest.manifest.recall == {depth: {str(weight): 1.0 for weight in LAMBDA_GRID} for depth in ("10", "100")}
    assert newest.manifest.sources == {"000001": "nowhere"}


def test_every_row_lies_whole_in_one_shard_and_shards_are_of_a_size(root: Path, gallery: Gallery) -> None:
    index = Index.open(root)
    expected = {row["id"]: row for table in gallery.tables() for row in table.to_pylist()}
    for number, shard in enumerate(index.shards()):
        verify(root / index.version / index.manifest.shards[number].name, index.manifest.shards[number].files)
        assert len(shard) in (ROWS // 7, ROWS // 7 + 1)
        for row, vector in zip(shard.rows.to_pylist(), shard.vectors, strict=True):
            given = expected.pop(row["id"])
            assert row == {name: given[name] for name in ("id", "path", "label", "width", "height", "batch")}
            np.testing.assert_array_equal(vector, given["vlm"] + given["vision"])
    assert not expected


def test_parts_are_cut_into_shards_of_equally_many_rows() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        parts = [PartRecord(name=f"parts/{i}", rows=int(rows)) for i, rows in enumerate(rng.integers(1, 50, 12))]
        total = sum(part.rows for part in parts)
        shards = int(rng.integers(1, min(total, 40)))
        slices = cut(parts, shards)
        sizes = [sum(piece.stop - piece.start for piece in of_shard) for of_shard in slices]
        assert len(sizes) == shards
        assert max(sizes) - min(sizes) <= 1
        taken = sorted((piece.part, row) for of in slices for piece in of for row in range(piece.start, piece.stop))
        assert taken == sorted((part.name, row) for part in parts for row in range(part.rows))
    # Neighbours in the list, which are of one category, do not all lie in one shard.
    of_first = [piece.part for piece in cut([PartRecord(name=f"parts/{i:03d}", rows=10) for i in range(100)], 4)[0]]
    assert max(int(name[-3:]) for name in of_first) > 80


def test_order_of_the_gallery_does_not_matter(root: Path, profile: Profile, tmp_path: Path) -> None:
    ids, vlm, vision = with_twins()
    turned = slice(None, None, -1)
    labels = (["a", None] * (ROWS // 2))[turned]
    gallery = write_gallery(tmp_path / "g", vlm[turned], vision[turned], ids=ids[turned], labels=labels, parts=5)
    index = build_index(gallery, str(tmp_path / "index"), profile, shards=2)
    queries = fused_query(vlm[:20], vision[:20], 0.5)
    found, same = search(index, queries, 10), search(Index.open(root / "000002"), queries, 10)
    np.testing.assert_array_equal(found.ids, same.ids)
    np.testing.assert_array_equal(found.scores, same.scores)


def leave_unpublished(gallery: Gallery, profile: Profile, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build three shards, and be killed before the version is published."""

    def killed(*_: Any, **__: Any) -> Index:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Index, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            build_index(gallery, str(target), profile, shards=3)


def test_build_that_was_killed_is_resumed_by_the_same_plan_alone(
    gallery: Gallery, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_unpublished(gallery, profile, tmp_path, monkeypatch)
    (tmp_path / "000001/shard-00001.json").unlink()  # its files may be half written
    (tmp_path / "000001/shard-00001/vectors.npy").write_bytes(b"half")
    kept = (tmp_path / "000001/shard-00000/vectors.npy").stat().st_mtime_ns
    with refused("unfinished-version", "target") as caught:
        build_index(gallery, str(tmp_path), profile, shards=2)
    assert "shards was 3, is now 2" in str(caught.value)
    assert "--overwrite" in str(caught.value)
    logged: list[str] = []
    index = build_index(gallery, str(tmp_path), profile, shards=3, log=logged.append)
    assert logged == ["resuming index version 000001: 2 of 3 shards are done"]
    assert (index.version, index.manifest.rows) == ("000001", ROWS)
    assert (tmp_path / "000001/shard-00000/vectors.npy").stat().st_mtime_ns == kept
    for number, record in enumerate(index.manifest.shards):
        verify(tmp_path / "000001" / record.name, record.files)
        assert len(index.shard(number)) == 100


@pytest.mark.parametrize("name", ["plan.json", "shard-00001.json"])
def test_a_plan_or_marker_that_is_damaged_is_named(
    name: str, gallery: Gallery, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_unpublished(gallery, profile, tmp_path, monkeypatch)
    file = tmp_path / "000001" / name
    file.write_bytes(file.read_bytes()[:-10])
    with refused("damaged", str(file)) as caught:
        build_index(gallery, str(tmp_path), profile, shards=3)
    assert "; delete " in str(caught.value)


@pytest.mark.parametrize("factory", ["Flat", "IVF8,SQ8"])
@pytest.mark.parametrize("damage", ["within", "missing"])
def test_a_part_that_is_damaged_is_named(damage: str, factory: str, profile: Profile, tmp_path: Path) -> None:
    """By what samples rows to train on, and by what builds shards."""
    rng = np.random.default_rng(0)
    gallery = write_gallery(tmp_path / "gallery", directions(900, D1, rng), directions(900, D2, rng))
    part = tmp_path / "gallery" / gallery.parts()[1]
    if damage == "within":
        part.write_bytes(part.read_bytes()[:1000] + bytes(5000) + part.read_bytes()[6000:])
    else:
        part.unlink()
    with refused("damaged", str(part)) as caught:
        build_index(gallery, str(tmp_path / "index"), profile, shards=2, factory=factory)
    assert str(caught.value).endswith("make the gallery again")


def test_version_that_finds_too_little_is_not_published(profile: Profile, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    gallery = write_gallery(tmp_path / "gallery", directions(900, D1, rng), directions(900, D2, rng))
    settings = profile.index.model_copy(update={"recall_floor": 1.0})
    strict = profile.model_copy(update={"index": settings})
    with refused("low-recall", "index.recall_floor"):
        build_index(gallery, str(tmp_path / "index"), strict, factory="HNSW2")
    with refused("missing"):
        Index.open(tmp_path / "index")
    index = build_index(gallery, str(tmp_path / "index"), strict, factory="Flat")
    assert index.version == "000002"
    assert set(index.manifest.recall) == {"10", "100"}


def test_quantised_index_recalls_the_neighbours_at_every_weight(profile: Profile, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    of_class = rng.integers(60, size=6000)
    vlm, vision = (unit(directions(60, dim, rng)[of_class] + 0.8 * directions(6000, dim, rng)) for dim in (24, 32))
    gallery = write_gallery(tmp_path / "gallery", vlm, vision)
    index = build_index(gallery, str(tmp_path / "index"), profile, shards=2, factory="IVF64,SQ8")
    assert {record.factory for record in index.manifest.shards} == {"IVF64,SQ8"}
    assert set(index.manifest.recall["100"]) == {str(weight) for weight in LAMBDA_GRID}
    assert worst_recall(index) >= 0.95
    assert (tmp_path / "index/000001/trained.faiss").exists()
    # Not only by its own word, and for queries other than its own.
    queries = unit(directions(100, 24, rng) + vlm[:100]), unit(directions(100, 32, rng) + vision[:100])
    for weight in LAMBDA_GRID:
        joint = fused_query(*queries, weight)
        found = search(index, joint, 10).ids
        exact = merge_topk([shard.exact(joint, 10) for shard in index.shards()], 10).ids
        assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)]) >= 0.95


def test_training_is_given_the_gpus_of_the_profile(
    gallery: Gallery, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run(self: LocalExecutor, function: Any, *arguments: Any, place: Placement = ONE_CPU) -> LocalShared:
        if function is pipelines.quantisers._train:
            asked.append((arguments[-1], place.gpus))
        return LocalShared(function(*arguments))

    monkeypatch.setattr(LocalExecutor, "run", run)
    for gpus in (0, 0.5, 2):
        settings = profile.index.model_copy(update={"gpus": gpus})
        given = profile.model_copy(update={"index": settings})
        build_index(gallery, str(tmp_path / str(gpus)), given, factory="IVF4,SQ8")
    assert asked == [(0, 0), (1, 0.5), (2, 2)]


def test_as_few_tasks_draw_the_sample_as_its_rows_are_worth(
    gallery: Gallery, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task may start a worker, which takes longer than to read a hundred thousand rows."""
    drawn, sampled = [], pipelines.quantisers._sampled

    def sample(*arguments: Any) -> pa.Table:
        drawn.append(len(arguments[1]))
        return sampled(*arguments)

    monkeypatch.setattr(pipelines.quantisers, "_sampled", sample)
    parts = len(gallery.manifest.parts)
    assert parts > 2
    trained = {}
    for rows, tasks in ((2**17, 1), (ROWS // 2, 2)):
        monkeypatch.setattr(pipelines.quantisers, "_ROWS_PER_RUN", rows)
        drawn.clear()
        index = build_index(gallery, str(tmp_path / str(tasks)), profile, factory="IVF4,SQ8")
        assert (len(drawn), sum(drawn)) == (tasks, parts)
        trained[tasks] = index.folder.read_bytes("trained.faiss")
    assert trained[1] == trained[2]


def test_too_few_or_too_many_shards_are_refused(gallery: Gallery, profile: Profile, tmp_path: Path) -> None:
    for shards in (0, -1, ROWS + 1):
        with refused("shard-count", "shards"):
            build_index(gallery, str(tmp_path), profile, shards=shards)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("factory", ["nonsense", "IVF10,PQ7", "Flat,RFlat"])
def test_unfit_factory_is_refused_before_anything_is_written(
    gallery: Gallery, profile: Profile, tmp_path: Path, factory: str
) -> None:
    with refused("unsupported", "factory"):
        build_index(gallery, str(tmp_path), profile, factory=factory)
    assert not list(tmp_path.iterdir())
