"""Images to a gallery: every good picture once with the vectors of a plain loop, a reason for every other input."""

from __future__ import annotations

import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from errors import refused
from pictures import BROKEN, good_pictures, saved, write_pictures

from cluster.loading import load_vision, load_vlm, record_of
from cluster.profile import Profile
from commands.index_report import print_index
from pipelines.batch_contents import summary_of
from pipelines.batches import is_overwriting
from pipelines.decoder import image_id
from pipelines.embedder import Embedder
from pipelines.embedding import embed
from pipelines.encoders import describe_encoders
from pipelines.gallery import build_gallery, gallery_of, grown_gallery
from pipelines.inspection import state
from pipelines.job import IndexReport
from retrieval.artifacts import Gallery, Index
from retrieval.artifacts.columns import matrix
from retrieval.artifacts.manifests import IndexManifest
from retrieval.folder import Folder
from retrieval.images import decode


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "pictures"
    write_pictures(folder)
    return folder


@pytest.fixture(scope="module")
def gallery(source: Path, profile: Profile, in_process: None) -> Gallery:
    return build_gallery(str(source), str(source.parent / "batch=3" / "gallery"), profile)


pytestmark = pytest.mark.usefixtures("in_process")


def rows_of(gallery: Gallery) -> pa.Table:
    return pa.concat_tables(gallery.tables()).sort_by("path")


def test_own_pictures_give_exactly_the_good_rows_and_ten_reasons(gallery: Gallery) -> None:
    rows = rows_of(gallery).drop_columns(["vlm", "vision"]).to_pylist()
    good = good_pictures()
    assert [row["path"] for row in rows] == sorted(good)
    for row in rows:
        image = decode(good[row["path"]])
        assert (row["width"], row["height"]) == image.size
        assert row["label"] == (row["path"].split("/")[0] if "/" in row["path"] else None)
        assert row["id"] == image_id(good[row["path"]], row["path"])
    assert {row["path"]: row["reason"] for row in gallery.rejected().to_pylist()} == {
        name: reason for name, (_, reason) in BROKEN.items()
    }
    assert gallery.rejected().num_rows == 10
    assert all(row["detail"] for row in gallery.rejected().to_pylist())


def test_workers_in_another_folder_find_a_source_that_was_given_as_a_relative_path(
    source: Path, gallery: Gallery, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()

    def embed_there(*arguments: Any) -> None:
        with chdir(tmp_path / "there"):
            embed(*arguments)

    monkeypatch.setattr("pipelines.gallery.embed", embed_there)
    monkeypatch.chdir(source.parent)
    made = build_gallery(source.name, str(tmp_path / "here"), profile)
    assert rows_of(made)["id"] == rows_of(gallery)["id"]
    assert made.manifest.sources == {"000001": str(source)}


def test_manifest_says_what_is_there_and_where_it_came_from(gallery: Gallery, source: Path, profile: Profile) -> None:
    manifest = Gallery.open(gallery.uri).manifest
    assert manifest.sources == {"000001": str(source)}
    assert manifest.rows == len(good_pictures())
    assert manifest.batches[0].inputs == len(good_pictures()) + len(BROKEN)
    assert manifest.rejected == {
        "empty": 1,
        "truncated": 3,
        "not-an-image": 1,
        "format-not-allowed": 2,
        "too-large": 1,
        "corrupt": 1,
        "unreadable": 1,
    }
    assert manifest.models == {"vlm": record_of(load_vlm(profile)), "vision": record_of(load_vision(profile))}


def test_vectors_equal_those_of_a_plain_loop(gallery: Gallery, profile: Profile) -> None:
    rows = rows_of(gallery)
    good = good_pictures()
    for name, encoder in (("vlm", load_vlm(profile)), ("vision", load_vision(profile))):
        plain = [encoder.encode_images(encoder.preprocess.pixels(decode(good[path]))[None])[0] for path in sorted(good)]
        vectors = matrix(rows[name])
        assert vectors.dtype == np.float16
        # One unit in the last place of a float16 below 1: kernels round differently for other batch sizes.
        np.testing.assert_allclose(vectors, np.array(plain), atol=2**-10, rtol=0)
    same = rows["path"].to_pylist()
    twins = [same.index("top.jpg"), same.index("my photos/copy of top.jpg")]
    assert len({rows["id"][i].as_py() for i in twins}) == 2
    assert len({rows["id"][i].as_py().split("-")[0] for i in twins}) == 1


def test_second_run_gives_the_same_rows_and_a_summary(
    gallery: Gallery, source: Path, profile: Profile, tmp_path: Path
) -> None:
    # Of a job that was killed before it had listed its inputs, and so cannot be resumed.
    Folder(tmp_path / "again").write_bytes("batches/000001/inputs/000000.parquet", b"half a file")
    again = build_gallery(str(source), str(tmp_path / "again"), profile)
    one, other = rows_of(gallery), rows_of(again)
    for name in ("id", "path", "label", "width", "height", "batch"):
        assert one[name].to_pylist() == other[name].to_pylist()
    np.testing.assert_allclose(matrix(one["vlm"]), matrix(other["vlm"]), atol=2**-10, rtol=0)
    assert again.rejected().sort_by("path").equals(gallery.rejected().sort_by("path"))
    summary = summary_of(again, again.manifest.batches[0])
    assert (summary.read, summary.embedded) == (len(good_pictures()) + len(BROKEN), len(good_pictures()))
    assert summary.rejected == again.manifest.rejected
    assert (summary.duplicates, summary.already_there, summary.unchanged) == (1, 0, 0)
    assert {"read", "decode", "embed", "wait"} <= set(summary.spent) <= {"read", "decode", "embed", "wait", "write"}
    assert not (tmp_path / "again/batches/000001/checkpoint").exists()


def test_a_count_of_duplicates_that_fails_does_not_keep_a_gallery_from_being_published(
    source: Path, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> int:
        raise MemoryError("no memory left for a figure")

    logged: list[str] = []
    monkeypatch.setattr("pipelines.hash_ranges._distinct", fails)
    gallery = build_gallery(str(source / "kinds"), str(tmp_path / "gallery"), profile, log=logged.append)
    assert Gallery.open(gallery.uri).manifest.rows == gallery.manifest.rows > 0
    summary = summary_of(gallery, gallery.manifest.batches[0])
    assert (summary.duplicates, summary.embedded) == (None, gallery.manifest.rows)
    [line] = logged
    assert line.startswith("duplicates are not counted: Traceback")
    assert "no memory left for a figure" in line
    models, version = gallery.manifest.models, Folder(tmp_path / "index/000001")
    manifest = IndexManifest(
        gallery=gallery.uri, sources={}, rows=0, factory="Flat", shards=[], recall={}, models=models
    )
    print_index(IndexReport(gallery, Index(version, manifest), summary))
    assert "duplicates were not counted" in capsys.readouterr().out


def test_unfinished_batch_is_resumed_by_the_same_job_alone(
    source: Path, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    shutil.copytree(source, own, symlinks=True)

    def killed(*_: Any, **__: Any) -> Gallery:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Gallery, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            build_gallery(str(own), str(tmp_path / "gallery"), profile)
    (own / "kinds/grey.jpg").unlink()
    (own / "new.jpg").write_bytes(saved("JPEG"))
    with refused("unfinished-batch", "target") as caught:
        build_gallery(str(own), str(tmp_path / "gallery"), profile)
    for part in ("new.jpg", "kinds/grey.jpg", "batches/000001", "--overwrite"):
        assert part in str(caught.value)
    shutil.copyfile(source / "kinds/grey.jpg", own / "kinds/grey.jpg")
    shutil.copystat(source / "kinds/grey.jpg", own / "kinds/grey.jpg")
    (own / "new.jpg").unlink()
    with refused("unfinished-batch") as caught:
        build_gallery(str(source), str(tmp_path / "gallery"), profile)
    assert f"source was {own}, is now {source}" in str(caught.value)
    logged: list[str] = []
    gallery = build_gallery(str(own), str(tmp_path / "gallery"), profile, log=logged.append)
    inputs = len(good_pictures()) + len(BROKEN)
    assert logged == [f"resuming batch 000001: {inputs} of {inputs} inputs are done"]
    assert gallery.manifest.rows == len(good_pictures())
    assert summary_of(gallery, gallery.manifest.batches[0]).already_there == inputs


def test_a_job_file_that_is_damaged_is_named(source: Path, profile: Profile, tmp_path: Path) -> None:
    Folder(tmp_path).write_bytes("gallery/batches/000001/job.json", b'{"source": ')
    batch = f"{tmp_path}/gallery/batches/000001"
    for call in (
        lambda: gallery_of(str(source), str(tmp_path / "gallery"), profile),
        lambda: is_overwriting(Folder(batch)),
        lambda: state(Folder(tmp_path)),
    ):
        with refused("damaged", f"{batch}/job.json") as caught:
            call()
        assert f"delete {batch}" in str(caught.value)


def test_overwriting_leaves_what_is_published_until_the_new_one_is(
    source: Path, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_gallery(str(source / "kinds"), str(tmp_path / "gallery"), profile)

    def killed(*_: Any, **__: Any) -> Gallery:
        assert Gallery.open(first.uri).manifest == first.manifest
        assert pa.concat_tables(first.tables()).num_rows == first.manifest.rows
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Gallery, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            build_gallery(str(source / "my photos"), first.uri, profile, overwrite=True)
    logged: list[str] = []
    assert gallery_of(str(source / "kinds"), first.uri, profile, log=logged.append).manifest == first.manifest
    assert logged == ["batch 000002 was started with --overwrite and is unfinished: --overwrite resumes it"]
    with refused("unfinished-batch"):
        grown_gallery(first, str(source / "my photos"), profile)
    second = build_gallery(str(source / "my photos"), first.uri, profile, overwrite=True, log=logged.append)
    assert logged[1:] == ["resuming batch 000002: 4 of 4 inputs are done"]
    assert second.manifest.sources == {"000002": str(source / "my photos")}
    assert second.manifest.rows == 4
    # Of another source, it is started over; no number is given out twice.
    with monkeypatch.context() as patch:
        patch.setattr(Gallery, "publish", killed_again)
        with pytest.raises(KeyboardInterrupt):
            build_gallery(str(source / "my photos"), first.uri, profile, overwrite=True)
    third = build_gallery(str(source / "kinds"), first.uri, profile, overwrite=True)
    assert third.manifest.sources == {"000004": str(source / "kinds")}
    assert third.manifest.rows == first.manifest.rows


def killed_again(*_: Any, **__: Any) -> Gallery:
    raise KeyboardInterrupt


def test_other_weights_under_the_same_name_are_not_mixed(
    gallery: Gallery, source: Path, profile: Profile, tmp_path: Path
) -> None:
    from tiny_models import write_vision

    other = write_vision(tmp_path / "vision", seed=1)
    models = profile.models.model_copy(update={"vision": f"local-dir:{other}"})
    changed = profile.model_copy(update={"models": models})
    with refused("other-model"):
        grown_gallery(gallery, str(source), changed)
    expected = describe_encoders(profile)
    with refused("other-model", "vision"):
        Embedder(changed, expected)


def test_the_same_models_in_another_folder_are_the_same(
    source: Path, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(vlm: Path) -> Profile:
        models = profile.models.model_copy(update={"vlm": f"local-dir:{vlm}"})
        return profile.model_copy(update={"models": models})

    here, moved = (tmp_path / name / "vlm" for name in ("here", "moved"))
    shutil.copytree(profile.models.vlm.removeprefix("local-dir:"), here)
    images, target = str(source / "kinds"), str(tmp_path / "gallery")
    with monkeypatch.context() as patch:
        patch.setattr(Gallery, "publish", killed_again)
        with pytest.raises(KeyboardInterrupt):
            build_gallery(images, target, of(here))
    moved.parent.mkdir()
    here.rename(moved)
    logged: list[str] = []
    gallery = gallery_of(images, target, of(moved), log=logged.append)
    assert any("resuming batch 000001" in line for line in logged)
    shutil.copytree(moved, here)
    assert gallery_of(images, target, of(here)).manifest == gallery.manifest
    from tiny_models import write_vlm

    with refused("other-gallery", "vlm") as caught:
        gallery_of(images, target, of(write_vlm(tmp_path / "other", seed=1)))
    assert gallery.manifest.models["vlm"].fingerprint in str(caught.value)
    with refused("other-gallery", "source"):
        gallery_of(str(source), target, of(here))


def test_existing_gallery_is_not_overwritten(collection: Any, profile: Profile) -> None:
    before = Gallery.open(collection.gallery.uri).manifest
    with refused("target-exists", "target"):
        build_gallery(str(collection.folder / "images"), collection.gallery.uri, profile)
    assert Gallery.open(collection.gallery.uri).manifest == before


def test_source_of_nothing_but_broken_files_is_an_error_with_its_reasons(tmp_path: Path, profile: Profile) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_bytes(b"")
    (tmp_path / "bad/b.jpg").write_bytes(b"no picture")
    with refused("no-usable-image", "source") as caught:
        build_gallery(str(tmp_path / "bad"), str(tmp_path / "gallery"), profile)
    for part in ("2 new images", "a.jpg: ", "b.jpg: ", "1 empty", "1 not-an-image"):
        assert part in str(caught.value)
    with refused("missing"):
        Gallery.open(tmp_path / "gallery")


@pytest.mark.slow
def test_photos_are_embedded_without_a_lost_row(shared_data: Any, profile: Profile, tmp_path: Path) -> None:
    """In several blocks, each of several batches, which do not divide them."""
    every_fifth = pq.read_table(shared_data("caltech101_25pc.parquet"))[::5]
    pq.write_table(every_fifth, tmp_path / "photos.parquet")
    quick = profile.model_copy(update={"embed": profile.embed.model_copy(update={"batch": 48})})
    gallery = build_gallery(str(tmp_path / "photos.parquet"), str(tmp_path / "gallery"), quick)
    expected = every_fifth.sort_by("path")
    rows = rows_of(gallery)
    assert gallery.manifest.rows == 500
    assert gallery.manifest.rejected == {}
    assert rows["path"].to_pylist() == expected["path"].to_pylist()
    assert rows["label"].to_pylist() == expected["label"].to_pylist()
    assert len(set(rows["id"].to_pylist())) == 500
    for name in ("vlm", "vision"):
        norms = np.linalg.norm(matrix(rows[name]).astype(np.float32), axis=1)
        np.testing.assert_allclose(norms, 1, atol=2e-3)
