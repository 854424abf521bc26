"""Images to a gallery: every good picture once with the vectors of a plain loop, a reason for every other input."""

from __future__ import annotations

import shutil
import struct
import zlib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.loading import load_vision, load_vlm, record_of
from cluster.profile import Profile
from pipelines.embedding import Decoder, Embedder, Encoders, GallerySink, image_id
from pipelines.gallery import build_gallery, gallery_of, grown_gallery, look_at_encoders, summary_of
from retrieval.artifacts import Gallery
from retrieval.artifacts.columns import fixed_size_list, matrix
from retrieval.artifacts.gallery import gallery_schema
from retrieval.folder import Folder
from retrieval.images import decode
from retrieval.sources.inputs import INPUTS
from retrieval.sources.reader import InputReader

PIXELS = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)


def saved(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_declared_size(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def good_pictures() -> dict[str, bytes]:
    colour = Image.fromarray(PIXELS)
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 256)
    return {
        "top.jpg": saved("JPEG", quality=95),
        "my photos/with spaces.png": saved("PNG"),
        "my photos/new\nline.gif": saved("GIF", save_all=True, append_images=[colour.rotate(90)]),
        "my photos/😀.webp": saved("WEBP"),
        "my photos/copy of top.jpg": saved("JPEG", quality=95),
        "kinds/grey.jpg": saved("JPEG", colour.convert("L")),
        "kinds/print.jpg": saved("JPEG", colour.convert("CMYK")),
        "kinds/palette.png": saved("PNG", colour.quantize(16)),
        "kinds/glass.png": saved("PNG", colour.convert("RGBA")),
        "kinds/deep.png": saved("PNG", deep),
        "kinds/scan.tiff": saved("TIFF"),
        "kinds/old.bmp": saved("BMP"),
        "kinds/turned.jpg": saved("JPEG", exif=turned),
        "kinds/long.png": saved("PNG", colour.resize((3000, 1))),
    }


BROKEN = {
    "broken/empty.jpg": (b"", "empty"),
    "broken/half.jpg": (saved("JPEG")[:2000], "truncated"),
    "broken/half.png": (saved("PNG")[:2000], "truncated"),
    "broken/cut.gif": (saved("GIF")[:2000], "truncated"),
    "broken/text.jpg": (b"I am a text, not a picture", "not-an-image"),
    "broken/drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "format-not-allowed"),
    "broken/paper.pdf": (b"%PDF-1.7\n1 0 obj", "format-not-allowed"),
    "broken/bomb.png": (png_of_declared_size(50_000), "too-large"),
    "broken/noise.jpg": (b"\xff\xd8\xff\xe0" + np.random.default_rng(1).bytes(500), "corrupt"),
    "broken/gone.jpg": (None, "unreadable"),
}
"""Ten kinds of them; None is a link to nothing. They sort together, so that the whole first batch is of them."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "pictures"
    for name, data in (good_pictures() | {name: data for name, (data, _) in BROKEN.items()}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            (folder / name).symlink_to("nothing")
        else:
            (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def gallery(source: Path, profile: Profile, ray_session: None) -> Gallery:
    return build_gallery(str(source), str(source.parent / "batch=3" / "gallery"), profile)


def rows_of(gallery: Gallery) -> pa.Table:
    return pa.concat_tables(gallery.tables()).sort_by("path")


@pytest.mark.ray
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


@pytest.mark.ray
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


@pytest.mark.ray
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


@pytest.mark.ray
def test_second_run_gives_the_same_rows_and_a_summary(
    gallery: Gallery, source: Path, profile: Profile, tmp_path: Path
) -> None:
    # Of a job that was killed before it had listed its inputs, and so can not be gone on with.
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


@pytest.mark.ray
def test_unfinished_batch_is_gone_on_with_by_the_same_job_alone(
    source: Path, profile: Profile, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
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
    with pytest.raises(ValueError, match="can not be gone on with") as caught:
        build_gallery(str(own), str(tmp_path / "gallery"), profile)
    for part in ("new.jpg", "kinds/grey.jpg", "batches/000001 was begun and not finished", "--overwrite"):
        assert part in str(caught.value)
    shutil.copyfile(source / "kinds/grey.jpg", own / "kinds/grey.jpg")
    shutil.copystat(source / "kinds/grey.jpg", own / "kinds/grey.jpg")
    (own / "new.jpg").unlink()
    with pytest.raises(ValueError, match=r"source was .*own, is now .*pictures"):
        build_gallery(str(source), str(tmp_path / "gallery"), profile)
    said: list[str] = []
    gallery = build_gallery(str(own), str(tmp_path / "gallery"), profile, say=said.append)
    inputs = len(good_pictures()) + len(BROKEN)
    assert said == [f"going on with batch 000001: {inputs} of {inputs} inputs are done"]
    assert gallery.manifest.rows == len(good_pictures())
    assert summary_of(gallery, gallery.manifest.batches[0]).already_there == inputs


@pytest.mark.ray
def test_overwriting_leaves_what_is_published_until_the_new_one_is(
    source: Path, profile: Profile, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
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
    said: list[str] = []
    assert gallery_of(str(source / "kinds"), first.uri, profile, say=said.append).manifest == first.manifest
    assert said == ["batch 000002 was begun with --overwrite and not finished: --overwrite goes on with it"]
    with pytest.raises(ValueError, match="overwrite was True, is now False"):
        grown_gallery(first, str(source / "my photos"), profile)
    second = build_gallery(str(source / "my photos"), first.uri, profile, overwrite=True, say=said.append)
    assert said[1:] == ["going on with batch 000002: 4 of 4 inputs are done"]
    assert second.manifest.sources == {"000002": str(source / "my photos")}
    assert second.manifest.rows == 4
    # Of another source, it is begun anew; no number is given out twice.
    with monkeypatch.context() as patch:
        patch.setattr(Gallery, "publish", killed_again)
        with pytest.raises(KeyboardInterrupt):
            build_gallery(str(source / "my photos"), first.uri, profile, overwrite=True)
    third = build_gallery(str(source / "kinds"), first.uri, profile, overwrite=True)
    assert third.manifest.sources == {"000004": str(source / "kinds")}
    assert third.manifest.rows == first.manifest.rows


def killed_again(*_: Any, **__: Any) -> Gallery:
    raise KeyboardInterrupt


@pytest.mark.ray
def test_other_weights_under_the_same_name_are_not_mixed(
    gallery: Gallery, source: Path, profile: Profile, tmp_path: Path
) -> None:
    from tiny_models import write_vision

    other = write_vision(tmp_path / "vision", seed=1)
    models = profile.models.model_copy(update={"vision": f"local-dir:{other}"})
    changed = profile.model_copy(update={"models": models})
    with pytest.raises(ValueError, match="vectors of different models can not be compared"):
        grown_gallery(gallery, str(source), changed)
    expected: Encoders = look_at_encoders(profile)
    with pytest.raises(ValueError, match=r"has another model at .* give all machines the same weights"):
        Embedder(changed, expected)


def test_an_image_that_an_encoder_makes_no_vector_of_costs_one_row(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, vision = load_vlm(profile), load_vision(profile)
    expected = Encoders(record_of(vlm), record_of(vision), vlm.preprocess, vision.preprocess)
    embedder = Embedder(profile, expected)
    sound = embedder.vision.encode_images

    def failing(pixels: np.ndarray) -> np.ndarray:
        if (pixels[:, 0, 0, 0] == 7).any():
            raise ValueError("a vector that is not finite")
        return sound(pixels)

    monkeypatch.setattr(embedder.vision, "encode_images", failing)
    pixels = np.random.default_rng(0).integers(10, 250, (4, 64, 64, 3), dtype=np.uint8)
    pixels[2, 0, 0, 0] = 7
    table = pa.table({"reason": pa.array([None, "empty", None, None], pa.string()), "detail": [None, "x", None, None]})
    table = table.append_column("vlm_pixels", pa.FixedShapeTensorArray.from_numpy_ndarray(pixels))
    rows = embedder(table)
    assert rows["reason"].to_pylist() == [None, "empty", "no-vector", None]
    assert "not finite, or zero" in rows["detail"][2].as_py()
    np.testing.assert_array_equal(np.linalg.norm(matrix(rows["vision"]).astype(np.float32), axis=1) > 0.9, [1, 0, 0, 1])


def test_existing_gallery_is_not_overwritten(collection: Any, profile: Profile) -> None:
    before = Gallery.open(collection.gallery.uri).manifest
    with pytest.raises(ValueError, match="already holds a gallery; give another target, or --overwrite it"):
        build_gallery(str(collection.folder / "images"), collection.gallery.uri, profile)
    assert Gallery.open(collection.gallery.uri).manifest == before


@pytest.mark.ray
def test_source_of_nothing_but_broken_files_is_an_error_with_its_reasons(
    tmp_path: Path, profile: Profile, ray_session: None
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_bytes(b"")
    (tmp_path / "bad/b.jpg").write_bytes(b"no picture")
    with pytest.raises(
        ValueError, match=r"none of the 2 new images of .*bad could be used \(1 .*, 1 .*\): [ab]\.jpg: .*; [ab]\.jpg: "
    ):
        build_gallery(str(tmp_path / "bad"), str(tmp_path / "gallery"), profile)
    with pytest.raises(ValueError, match="the job that writes it has not finished"):
        Gallery.open(tmp_path / "gallery")


@pytest.mark.ray
@pytest.mark.slow
def test_caltech_embeds_without_a_lost_row(
    shared_data: Any, profile: Profile, tmp_path: Path, ray_session: None
) -> None:
    photos = shared_data("caltech101_25pc.parquet")
    quick = profile.model_copy(update={"embed": profile.embed.model_copy(update={"batch": 128})})
    gallery = build_gallery(str(photos), str(tmp_path), quick)
    expected = pq.read_table(photos, columns=["path", "label"]).sort_by("path")
    rows = rows_of(gallery)
    assert gallery.manifest.rows == 2500
    assert gallery.manifest.rejected == {}
    assert rows["path"].to_pylist() == expected["path"].to_pylist()
    assert rows["label"].to_pylist() == expected["label"].to_pylist()
    assert len(set(rows["id"].to_pylist())) == 2500
    for name in ("vlm", "vision"):
        norms = np.linalg.norm(matrix(rows[name]).astype(np.float32), axis=1)
        np.testing.assert_allclose(norms, 1, atol=2e-3)


def listed(folder: Path, *names: str) -> pa.Table:
    """What list_inputs writes of files in a folder."""
    rows = [
        {"input": i, "path": name, "label": None, "file": name, "size": (folder / name).stat().st_size}
        for i, name in enumerate(names)
    ]
    return pa.Table.from_pylist(rows, schema=INPUTS)


def test_decoder_shares_pixels_only_between_equal_geometries(profile: Profile, tmp_path: Path) -> None:
    from tiny_models import write_vision

    from retrieval.models.vision import VisionEncoder

    (tmp_path / "good.png").write_bytes(saved("PNG"))
    (tmp_path / "bad.png").write_bytes(b"")
    inputs = listed(tmp_path, "good.png", "bad.png").append_column("taken", pa.array([2001, 2002]))
    reader = InputReader(str(tmp_path))
    vlm, vision = load_vlm(profile).preprocess, load_vision(profile).preprocess
    narrower = VisionEncoder.load(f"local-dir:{write_vision(tmp_path / 'narrower', crop_pct=0.8)}").preprocess
    image = decode(saved("PNG"))
    shared = Decoder(reader, vlm, vision, batch="000007")(inputs)
    assert ("vision_pixels" in shared.column_names) == (vlm.geometry != vision.geometry)
    apart = Decoder(reader, vlm, narrower)(inputs)
    pixels = {name: apart[name].combine_chunks().to_numpy_ndarray() for name in ("vlm_pixels", "vision_pixels")}
    np.testing.assert_array_equal(pixels["vlm_pixels"][0], vlm.pixels(image))
    np.testing.assert_array_equal(pixels["vision_pixels"][0], narrower.pixels(image))
    assert not pixels["vision_pixels"][1].any()
    assert apart["reason"].to_pylist() == [None, "empty"]
    assert apart["id"].to_pylist() == [image_id(saved("PNG"), "good.png"), None]
    assert (shared["batch"].to_pylist(), shared["taken"].to_pylist()) == (["000007"] * 2, [2001, 2002])
    (tmp_path / "good.png").unlink()
    assert Decoder(reader, vlm, vision)(inputs)["reason"].to_pylist() == ["unreadable", "empty"]
    tmp_path.rename(tmp_path.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError, match="is not there any more"):
        Decoder(reader, vlm, vision)(inputs)
    tmp_path.with_name("elsewhere").rename(tmp_path)


def test_sink_writes_embedded_and_rejected_rows_beside_each_other(tmp_path: Path) -> None:
    schema = gallery_schema(2, 3, [pa.field("taken", pa.int64())])
    sink = GallerySink(Folder(tmp_path / "parts"), schema, 64)
    rows = pa.table(
        {
            "input": [0, 1],
            "id": ["a", None],
            "path": ["a.jpg", "b.jpg"],
            "label": pa.array([None, None], pa.string()),
            "width": [4, None],
            "height": [5, None],
            "batch": ["000001"] * 2,
            "taken": [2001, 2002],
            "reason": [None, "empty"],
            "detail": [None, "the file is empty (0 bytes)"],
            "vlm": fixed_size_list(np.ones((2, 2), np.float16)),
            "vision": fixed_size_list(np.ones((2, 3), np.float16)),
        }
    )
    task: Any = SimpleNamespace(task_idx=0, kwargs={"write_uuid": "abc"})
    sink.write([pa.table({}), rows.slice(0, 0), rows], task)
    [embedded, rejected] = sorted((tmp_path / "parts").iterdir())
    assert embedded.name.endswith(Gallery.EMBEDDED)
    assert rejected.name == embedded.name.replace(Gallery.EMBEDDED, Gallery.REJECTED)
    assert pq.read_table(embedded).to_pylist() == [
        {"id": "a", "path": "a.jpg", "label": None, "width": 4, "height": 5, "batch": "000001", "taken": 2001}
        | {"vlm": [1, 1], "vision": [1, 1, 1]}
    ]
    assert pq.read_table(rejected)["reason"].to_pylist() == ["empty"]
    sink.write([pa.table({})], SimpleNamespace(task_idx=1, kwargs={"write_uuid": "abc"}))
    assert len(list((tmp_path / "parts").iterdir())) == 2
