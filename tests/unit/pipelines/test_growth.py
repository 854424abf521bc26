"""An index that grows and shrinks: what was added is found, what was removed never again, nothing is embedded twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from errors import refused
from synthetic import D1, D2, directions, write_gallery

from cluster.profile import Profile
from demo.grammar import categories
from demo.world import render
from pipelines import gallery as gallery_module
from pipelines.batch_contents import summary_of
from pipelines.batches import overwritten_batches, unfinished_batches
from pipelines.duplicates import exact_duplicates, near_duplicates
from pipelines.gallery import build_gallery
from pipelines.growth import add, compact, index_batch, remove
from pipelines.index import build_index
from pipelines.inspection import rejected, state, versions
from pipelines.pruning import prune
from pipelines.publication import worst_recall
from pipelines.selection import Selection
from pipelines.verification import check_target
from retrieval.artifacts import Gallery, Index
from retrieval.artifacts.manifests import BatchRecord, GalleryManifest
from retrieval.folder import Folder
from retrieval.fusion import fused_query, unit
from retrieval.index.hits import merge_topk

pytestmark = pytest.mark.usefixtures("in_process")


class Place(NamedTuple):
    """A target and the folder of images that it was made from."""

    images: Path
    target: Path

    @property
    def gallery(self) -> Gallery:
        return Gallery.open(self.target / "gallery")

    @property
    def index(self) -> Index:
        return Index.open(self.target / "index")

    def paths(self) -> list[str]:
        """Paths of all rows that can be found, as often as they can."""
        shards = self.index.shards()
        halves = (unit(np.ones((1, dim))) for dim in (shards[0].vlm_dim, shards[0].dim - shards[0].vlm_dim))
        query = fused_query(*halves, 0.5)
        found = merge_topk([shard.search(query, 10_000) for shard in shards], 10_000)
        places = zip(found.shards[0].tolist(), found.rows[0].tolist(), strict=True)
        return sorted(shards[number].rows["path"][row].as_py() for number, row in places)

    def in_gallery(self) -> list[str]:
        return sorted(path for table in self.gallery.tables(["path"]) for path in table["path"].to_pylist())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, profile: Profile, in_process: None) -> Place:
    place = Place(tmp_path_factory.mktemp("grown") / "images", tmp_path_factory.mktemp("target"))
    for i in range(24):
        draw(place.images / f"class {i % 3}/{i:02d}.png", i)
    gallery = build_gallery(str(place.images), str(place.target / "gallery"), profile)
    build_index(gallery, str(place.target / "index"), profile, shards=2)
    return place


@pytest.fixture
def place(built: Place, tmp_path: Path) -> Place:
    """A copy of its own of what was built, as if somebody had moved it."""
    shutil.copytree(built.target, tmp_path / "target")
    return Place(built.images, tmp_path / "target")


def draw(file: Path, number: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    render(categories()[number % 40], number).save(file)


def test_added_images_are_found_and_known_ones_not_embedded_again(
    built: Place, place: Place, profile: Profile, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(built.images, images)
    for i in range(24, 30):
        draw(images / f"class 9/{i}.png", i)
    before = place.paths()
    # From another folder nothing is known: all of it is embedded, and rows of the same path and bytes are replaced.
    first = add(str(images), place.gallery, place.index, profile)
    assert (first.version, first.manifest.rows, first.manifest.removed) == ("000002", 30, 24)
    assert place.paths() == place.in_gallery() == sorted({*before, *(f"class 9/{i}.png" for i in range(24, 30))})
    # From the same folder, only what is new or has changed.
    draw(images / "class 9/30.png", 30)
    draw(images / "class 0/00.png", 31)
    (images / "class 9/bad.png").write_bytes(b"")
    (images / "class 9/gone.png").symlink_to("nowhere")
    second = add(str(images), place.gallery, first, profile)
    for version in (place.index, first, second):  # of all rows of its shards, removed ones too
        every = np.concatenate([shard.vectors for shard in version.shards()]).astype(np.float64)
        np.testing.assert_allclose(np.concatenate(version.mean() or ()), every.mean(axis=0), atol=1e-6)
    summary = summary_of(place.gallery, place.gallery.manifest.batches[-1])
    assert (summary.read, summary.embedded, summary.unchanged, summary.rejected) == (
        4,
        2,
        29,
        {"empty": 1, "unreadable": 1},
    )
    assert second.manifest.rows == place.gallery.manifest.rows == 31
    assert place.paths() == place.in_gallery()
    assert place.paths().count("class 0/00.png") == 1
    # The version before is as it was.
    old = Index.open(place.target / "index/000001")
    assert sum(len(shard) for shard in old.shards()) == 24
    # What could not be read is retried; what it leaves behind does not hold up the next run.
    with refused("no-usable-image", "source") as caught:
        add(str(images), place.gallery, second, profile)
    assert "1 unreadable" in str(caught.value)
    assert "class 9/gone.png" in str(caught.value)
    (images / "class 9/gone.png").unlink()
    with refused("nothing-new", "source"):
        add(str(images), place.gallery, second, profile)
    assert [finding.trouble for finding in check_target(place.gallery, second, profile, sample=50)] == [None] * 7


def test_an_index_of_another_gallery_is_not_added_to(place: Place, profile: Profile, tmp_path: Path) -> None:
    draw(tmp_path / "more/a.png", 50)
    other = build_gallery(str(tmp_path / "more"), place.gallery.uri, profile, overwrite=True)
    for change in (
        lambda: add(str(tmp_path / "more"), other, place.index, profile),
        lambda: remove(Selection(labels=["class 1"]), other, place.index, profile.index),
    ):
        with refused("other-gallery", "index"):
            change()


def test_an_add_that_was_killed_after_it_had_published_the_version_ends_when_run_again(
    place: Place, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "more/a.png", 50)

    def killed(*_: Any) -> Gallery:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.growth.commit_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            add(str(tmp_path / "more"), place.gallery, place.index, profile)
    assert (place.index.version, place.gallery.manifest.rows) == ("000002", 24)
    again = add(str(tmp_path / "more"), place.gallery, place.index, profile)
    assert again.version == "000002"
    assert place.gallery.manifest.rows == again.manifest.rows == 25
    assert place.paths() == place.in_gallery()


def test_removed_rows_are_never_found_again_and_leave_the_gallery(place: Place, profile: Profile) -> None:
    ids = [shard.rows["id"][0].as_py() for shard in place.index.shards()]
    path = place.paths()[-1]
    some = Selection(ids=[*ids, "no such"], paths=[path])
    removed = remove(some, place.gallery, place.index, profile.index)
    assert (removed.rows, removed.unknown) == (3, ["no such"])
    by_label = remove(Selection(labels=["class 1"]), place.gallery, place.index, profile.index)
    assert by_label.index.manifest.mean
    left = place.paths()
    assert left == place.in_gallery()
    assert len(left) == by_label.index.manifest.rows == 24 - 3 - by_label.rows
    assert not any(each.startswith("class 1/") or each == path for each in left)
    for shard in place.index.shards():
        assert not set(ids) & set(shard.exact(np.ones((1, shard.dim), np.float32), 100).ids[0])
    with refused("no-such-row"):
        remove(Selection(labels=["class 1"]), place.gallery, place.index, profile.index)
    with refused("nothing-left"):
        remove(Selection(labels=["class 0", "class 2"]), place.gallery, place.index, profile.index)


def test_compact_and_prune_leave_nothing_of_what_was_removed(place: Place, profile: Profile) -> None:
    remove(Selection(labels=["class 1"]), place.gallery, place.index, profile.index)
    left = place.paths()
    index = compact(place.gallery, place.index, profile)
    assert (index.version, index.manifest.removed, len(index.manifest.shards)) == ("000003", 0, 1)
    assert place.paths() == left
    listed = versions(Folder(place.target / "index"))
    assert [(each.name, each.state) for each in listed] == [(f"00000{i}", "published") for i in (1, 2, 3)]
    with refused("nothing-kept", "keep"):
        prune(place.gallery, Folder(place.target / "index"), 0)
    # The second version uses the first one's shards.
    deleted = prune(place.gallery, Folder(place.target / "index"), 2)
    assert not any(name.startswith("index/000001/shard") for name in deleted)
    assert [each.name for each in versions(Folder(place.target / "index")) if each.index] == ["000002", "000003"]
    assert len(Index.open(place.target / "index/000002").shards()) == 2
    deleted = prune(place.gallery, Folder(place.target / "index"), 1)
    assert {"index/000001", "index/000002"} <= set(deleted)
    assert place.paths() == left
    files = {file.name for file in (place.target / "gallery").rglob("*-embedded.parquet")}
    assert files == {name.rsplit("/", 1)[-1] for name in place.gallery.parts()}
    assert prune(place.gallery, Folder(place.target / "index"), 1) == []


def with_batch(gallery: Gallery, new: Gallery, number: int | None = None) -> tuple[GalleryManifest, BatchRecord]:
    """Copy the parts of one gallery into another, as a batch that it has not committed."""
    manifest = gallery.manifest
    name = f"{number or len(manifest.batches) + 1:06d}"
    parts = []
    for part in new.manifest.parts:
        file = f"{Gallery.batch(name, 'parts')}/{part.name.rsplit('/', 1)[-1]}"
        table = new.folder.read_table(part.name)
        of_batch = pa.array([name] * table.num_rows, pa.string())
        gallery.folder.write_table(file, table.set_column(table.column_names.index("batch"), "batch", of_batch))
        parts.append(part.model_copy(update={"name": file}))
    record = new.manifest.batches[0].model_copy(update={"name": name})
    changes = {
        "rows": manifest.rows + record.rows,
        "batches": [*manifest.batches, record],
        "parts": [*manifest.parts, *parts],
    }
    return manifest.model_copy(update=changes), record


def some(folder: Path, word: str, rows: int) -> Gallery:
    rng = np.random.default_rng(len(word))
    vectors = (directions(rows, dim, rng) for dim in (D1, D2))
    return write_gallery(folder, *vectors, ids=[f"{word}-{i:03d}" for i in range(rows)], parts=1)


def of_thirty(folder: Path, profile: Profile) -> Place:
    """A target with one shard of thirty rows, first-000 and so on."""
    place = Place(folder, folder / "target")
    some(place.target / "gallery", "first", 30)
    build_index(place.gallery, str(place.target / "index"), profile, shards=1)
    return place


def test_a_pruned_version_is_no_build_to_resume(profile: Profile, tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path / "target")
    some(place.target / "gallery", "first", 30)
    build_index(place.gallery, str(place.target / "index"), profile, shards=2)
    for number in (2, 3):
        grown = with_batch(place.gallery, some(tmp_path / str(number), f"of {number}", 10))
        index_batch(*grown, [], place.gallery, place.index, profile)
        prune(place.gallery, Folder(place.target / "index"), 1)
        states = {each.name: each.state for each in versions(Folder(place.target / "index"))}
        assert states["000001"] == "pruned"
        assert [name for name, state in states.items() if state == "published"] == [place.index.version]
        assert state(Folder(place.target)).jobs == []
        assert place.paths() == place.in_gallery()
    compact(place.gallery, place.index, profile)
    prune(place.gallery, Folder(place.target / "index"), 1)
    assert [each.state for each in versions(Folder(place.target / "index"))] == ["published"]
    assert place.paths() == place.in_gallery()
    assert len(place.paths()) == 50


def test_a_batch_that_only_the_index_has_makes_room_for_the_one_started_over(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = of_thirty(tmp_path, profile)
    grown = with_batch(place.gallery, some(tmp_path / "lost", "lost", 10))
    with monkeypatch.context() as killed:
        killed.setattr("pipelines.growth.commit_batch", raised)
        with pytest.raises(KeyboardInterrupt):
            index_batch(*grown, [], place.gallery, place.index, profile)
    assert place.index.manifest.rows == 40
    grown = with_batch(place.gallery, some(tmp_path / "anew", "anew", 12), 3)
    index_batch(*grown, [], place.gallery, place.index, profile)
    assert place.paths() == place.in_gallery()
    assert sorted(place.gallery.manifest.sources) == sorted(place.index.manifest.sources) == ["000001", "000003"]
    assert len(place.paths()) == 42


def test_rows_are_not_removed_while_a_killed_addition_could_bring_them_back(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = of_thirty(tmp_path, profile)
    grown = with_batch(place.gallery, some(tmp_path / "more", "more", 10))
    with monkeypatch.context() as killed:
        killed.setattr("pipelines.growth.commit_batch", raised)
        with pytest.raises(KeyboardInterrupt):
            index_batch(*grown, [], place.gallery, place.index, profile)
    chosen = Selection(ids=["more-003"])
    with refused("unfinished-addition"):
        remove(chosen, place.gallery, place.index, profile.index)
    index_batch(*grown, [], place.gallery, place.index, profile)
    remove(chosen, place.gallery, place.index, profile.index)
    assert place.paths() == place.in_gallery()
    assert len(place.paths()) == 39


def test_a_version_that_was_left_behind_is_not_resumed(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = of_thirty(tmp_path, profile)
    more = some(tmp_path / "more", "more", 10)
    with monkeypatch.context() as killed:
        killed.setattr("pipelines.growth.publish", raised)
        with pytest.raises(KeyboardInterrupt):
            index_batch(*with_batch(place.gallery, more), [], place.gallery, place.index, profile)
    [job] = state(Folder(place.target)).jobs
    assert (job.what, job.done, job.total) == ("index version 000002", 1, 1)
    remove(Selection(ids=["first-003"]), place.gallery, place.index, profile.index)
    assert state(Folder(place.target)).jobs == []
    assert [each.state for each in versions(Folder(place.target / "index"))] == [
        "published",
        "superseded",
        "published",
    ]
    added = index_batch(*with_batch(place.gallery, more), [], place.gallery, place.index, profile)
    assert added.version == place.index.version == "000004"
    assert place.paths() == place.in_gallery()
    assert len(place.paths()) == 39


def test_all_rows_of_the_largest_shard_can_be_removed(profile: Profile, tmp_path: Path) -> None:
    place = of_thirty(tmp_path, profile)
    grown = with_batch(place.gallery, some(tmp_path / "more", "more", 10))
    index_batch(*grown, [], place.gallery, place.index, profile)
    chosen = Selection(ids=[f"first-{i:03d}" for i in range(30)])
    assert remove(chosen, place.gallery, place.index, profile.index).rows == 30
    assert place.paths() == place.in_gallery() == [f"more-{i:03d}.jpg" for i in range(10)]


def test_recall_is_that_of_the_shards_that_have_rows_left(profile: Profile, tmp_path: Path) -> None:
    place, said = of_thirty(tmp_path, profile), list[str]()
    grown = with_batch(place.gallery, some(tmp_path / "more", "more", 10))
    index_batch(*grown, [], place.gallery, place.index, profile, log=said.append)
    remove(Selection(ids=["more-000", "more-001"]), place.gallery, place.index, profile.index, log=said.append)
    assert said == []
    remove(Selection(ids=["more-002", "more-003"]), place.gallery, place.index, profile.index, log=said.append)
    [line] = said  # of all rows these are a tenth
    assert "before 40% of their rows were removed" in line
    grown = with_batch(place.gallery, some(tmp_path / "third", "third", 10))
    index_batch(*grown, [], place.gallery, place.index, profile, log=said.append)
    assert said == [line] * 2
    first, *others = place.index.manifest.measured
    low = first.model_copy(update={"recall": {depth: dict.fromkeys(of, 0.5) for depth, of in first.recall.items()}})
    index = Index(place.index.folder, place.index.manifest.model_copy(update={"measured": [low, *others]}))
    ids = [f"first-{i:03d}" for i in range(30)]
    removed = remove(Selection(ids=ids[1:]), place.gallery, index, profile.index, log=said.append).index
    assert worst_recall(removed) == 0.5
    assert "before 97% of their rows" in said[-1]
    removed = remove(Selection(ids=ids[:1]), place.gallery, removed, profile.index, log=said.append).index
    assert worst_recall(removed) == worst_recall(place.index) > 0.5
    assert said[-1] == line


def test_new_shards_of_the_old_kind_keep_to_the_memory_there_is(profile: Profile, tmp_path: Path) -> None:
    place = of_thirty(tmp_path, profile)
    grown = with_batch(place.gallery, some(tmp_path / "more", "more", 100))
    narrow = profile.model_copy(update={"index": profile.index.model_copy(update={"memory_per_shard": 1000})})
    with refused("too-large", "index.memory_per_shard"):
        index_batch(*grown, [], place.gallery, place.index, narrow)


def raised(*_: Any) -> None:
    raise KeyboardInterrupt


def test_what_was_overwritten_is_not_resumed(tmp_path: Path) -> None:
    gallery = some(tmp_path / "gallery", "first", 5)
    [batch] = gallery.manifest.batches
    newer = batch.model_copy(update={"name": "000002"})
    Gallery.publish(gallery.folder, gallery.manifest.model_copy(update={"batches": [newer]}))
    gallery.folder.write_bytes("batches/000003/job.json", b"{}")
    assert [each.name for each in overwritten_batches(gallery.folder)] == ["000001"]
    assert [each.name for each in unfinished_batches(gallery.folder)] == ["000003"]


def test_five_rounds_of_a_fifth_removed_and_a_fifth_added(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of vectors, so that there are enough for an index that does not search everything."""
    monkeypatch.setattr("pipelines.recall.QUERIES", 50)  # merging their hits is what takes the time here
    rng = np.random.default_rng(0)
    rows, fifth = 3000, 600
    of_class = {kind: directions(40, dim, rng) for kind, dim in (("vlm", D1), ("vision", D2))}

    def vectors(count: int) -> list[np.ndarray]:
        classes = rng.integers(40, size=count)
        return [unit(of[classes] + 0.7 * directions(count, of.shape[1], rng)) for of in of_class.values()]

    def batch_of(number: int, count: int) -> Gallery:
        ids = [f"{number:02d}-{i:06d}" for i in rng.permutation(count)]
        return write_gallery(tmp_path / f"made {number}", *vectors(count), ids=ids)

    place = Place(tmp_path, tmp_path / "target")
    write_gallery(place.target / "gallery", *vectors(rows), ids=[f"00-{i:06d}" for i in rng.permutation(rows)])
    build_index(place.gallery, str(place.target / "index"), profile, shards=2, factory="IVF16,SQ8")
    gone: set[str] = set()
    for number in range(1, 6):
        alive = [id for table in place.gallery.tables(["id"]) for id in table["id"].to_pylist()]
        chosen = rng.choice(sorted(alive), fifth, replace=False).tolist()
        removed = remove(Selection(ids=chosen), place.gallery, place.index, profile.index)
        assert removed.rows == fifth
        gone.update(chosen)
        grown = with_batch(place.gallery, batch_of(number, fifth))
        index = index_batch(*grown, [], place.gallery, place.index, profile)
        assert index.manifest.rows == place.gallery.manifest.rows == rows
        assert worst_recall(index) >= 0.95
        queries = np.concatenate(
            [fused_query(*(directions(10, dim, rng) for dim in (D1, D2)), weight) for weight in (0.0, 0.5, 1.0)]
        )
        found = merge_topk([shard.search(queries, 1000) for shard in index.shards()], 1000)
        assert not set(found.ids.ravel()) & gone
    scattered = place.index
    whole = compact(place.gallery, scattered, profile)
    assert (len(scattered.manifest.shards), len(whole.manifest.shards)) == (7, 3)
    assert whole.manifest.rows == rows
    assert sum(record.rows for record in whole.manifest.shards) == rows
    assert worst_recall(whole) >= 0.95


def test_duplicates_are_found_by_bytes_and_by_vectors(place: Place, profile: Profile, tmp_path: Path) -> None:
    images = tmp_path / "twice"
    draw(images / "a.png", 1)
    shutil.copyfile(images / "a.png", images / "b.png")
    nearly = render(categories()[1], 1)
    nearly.putpixel((0, 0), (0, 0, 0))
    nearly.save(images / "c.png")
    draw(images / "d.png", 17)
    gallery = build_gallery(str(images), str(tmp_path / "gallery"), profile)
    index = build_index(gallery, str(tmp_path / "index"), profile, shards=2)
    paths = {row["id"]: row["path"] for table in gallery.tables(["id", "path"]) for row in table.to_pylist()}
    same = exact_duplicates(index)
    assert {paths[same[name][0].as_py()] for name in ("id", "of")} == {"a.png", "b.png"}
    assert same.num_rows == 1
    near = near_duplicates(index, 0.98, profile.index)
    group = {paths[id] for name in ("id", "of") for id in near[name].to_pylist()}
    assert group == {"a.png", "b.png", "c.png"}
    assert len(set(near["of"].to_pylist())) == 1
    with refused("out-of-range", "cosine"):
        near_duplicates(index, 2, profile.index)


def test_damage_is_found(place: Place, profile: Profile) -> None:
    assert not [each for each in check_target(place.gallery, place.index, profile, sample=4) if each.trouble]
    vectors = place.target / "index/000001/shard-00001/vectors.npy"
    data = bytearray(vectors.read_bytes())
    data[-1] ^= 1
    vectors.write_bytes(data)
    part = place.target / "gallery" / place.gallery.parts()[0]
    whole, folder = part.read_bytes(), Folder(part.parent)
    folder.write_table(part.name, folder.read_table(part.name).slice(0, 0))
    findings = check_target(place.gallery, place.index, profile, sample=24)
    _, of_rows, of_sample = (each for each in findings if each.trouble)
    assert "has 0 rows, recorded were" in str(of_rows.trouble)
    assert of_sample.what == "a sample embedded again"
    assert f"{part} is damaged: it has 0 rows" in str(of_sample.trouble)
    part.write_bytes(whole[:-20])
    troubles = [each.trouble for each in check_target(place.gallery, place.index, profile, sample=0) if each.trouble]
    assert len(troubles) == 2
    assert "vectors.npy is damaged: its SHA-256" in troubles[0]
    assert "cannot be read" in troubles[1]


def test_a_part_that_is_damaged_is_named_when_rows_are_removed(place: Place, profile: Profile) -> None:
    gallery, index = place.gallery, place.index
    part = place.target / "gallery" / gallery.parts()[0]
    part.write_bytes(part.read_bytes()[:-20])
    with refused("damaged", str(part)) as caught:
        remove(Selection(labels=["class 0"]), gallery, index, profile.index)
    assert str(caught.value).endswith("make the gallery again")


def test_state_of_a_target_is_read_from_what_is_there(
    place: Place, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = state(Folder(place.target))
    assert (seen.holds, seen.jobs) == ([], [])
    assert [each.state for each in seen.versions] == ["published"]
    draw(tmp_path / "more/a.png", 50)
    (tmp_path / "more/empty.png").write_bytes(b"")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gallery_module, "contents", killed)
        with pytest.raises(KeyboardInterrupt):
            add(str(tmp_path / "more"), place.gallery, place.index, profile)
    [job] = state(Folder(place.target)).jobs
    assert (job.what, job.done, job.total, job.unit) == (f"batch 000002 of {tmp_path / 'more'}", 2, 2, "inputs")
    assert rejected(Folder(place.target)).to_pylist() == [
        {"path": "empty.png", "reason": "empty", "detail": "the file is empty (0 bytes)"}
    ]
    assert isinstance(rejected(Folder(place.target)), pa.Table)
