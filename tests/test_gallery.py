"""Images to a gallery: every good picture once with the vectors of a plain loop, a reason for every other input."""

from __future__ import annotations

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

from cluster.models import load_vision, load_vlm, record_of
from cluster.profile import Profile
from pipelines.gallery import Decoder, GallerySink, build_gallery, image_id
from retrieval.artifacts import Gallery, matrix
from retrieval.folder import Folder
from retrieval.images import decode

pytestmark = pytest.mark.timeout(300)  # starts of workers take long on a busy machine

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
    return build_gallery(str(source), str(source.parent / "gallery"), profile)


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
    assert manifest.source == str(source)
    assert manifest.rows == len(good_pictures())
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
def test_second_run_gives_the_same_rows_and_clears_what_a_killed_one_left(
    gallery: Gallery, source: Path, profile: Profile, tmp_path: Path
) -> None:
    for leftover in ("parts/000000.parquet", "parts/000099.parquet", "rejected/000099.parquet"):
        Folder(tmp_path / "again").write_bytes(leftover, b"half a file")
    again = build_gallery(str(source), str(tmp_path / "again"), profile)
    one, other = rows_of(gallery), rows_of(again)
    for name in ("id", "path", "label", "width", "height"):
        assert one[name].to_pylist() == other[name].to_pylist()
    np.testing.assert_allclose(matrix(one["vlm"]), matrix(other["vlm"]), atol=2**-10, rtol=0)
    assert again.rejected().sort_by("path").equals(gallery.rejected().sort_by("path"))


def test_existing_gallery_is_not_overwritten(collection: Any, profile: Profile) -> None:
    before = Gallery.open(collection.gallery.uri).manifest
    with pytest.raises(ValueError, match="already holds a gallery; give another target, or delete it first"):
        build_gallery(str(collection.folder / "images"), collection.gallery.uri, profile)
    assert Gallery.open(collection.gallery.uri).manifest == before


@pytest.mark.ray
def test_source_of_nothing_but_broken_files_is_an_error_with_its_reasons(
    tmp_path: Path, profile: Profile, ray_session: None
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_bytes(b"")
    (tmp_path / "bad/b.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"none of the images of .*bad could be used \(1 .*, 1 .*\); see .*/rejected"):
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


def test_decoder_shares_pixels_only_between_equal_geometries(profile: Profile, tmp_path: Path) -> None:
    from tiny_models import write_vision

    from retrieval.encoders import VisionEncoder

    (tmp_path / "good.png").write_bytes(saved("PNG"))
    (tmp_path / "bad.png").write_bytes(b"")
    batch = {"path": np.array(["good.png", "bad.png"], object), "label": np.array(["", "x"], object)}
    vlm, vision = load_vlm(profile).preprocess, load_vision(profile).preprocess
    narrower = VisionEncoder.load(f"local-dir:{write_vision(tmp_path / 'narrower', crop_pct=0.8)}").preprocess
    image = decode(saved("PNG"))
    shared = Decoder(Folder(tmp_path), vlm, vision)(batch)
    assert ("vision_pixels" in shared) == (vlm.geometry != vision.geometry)
    apart = Decoder(Folder(tmp_path), vlm, narrower)(batch)
    np.testing.assert_array_equal(apart["vlm_pixels"][0], vlm.pixels(image))
    np.testing.assert_array_equal(apart["vision_pixels"][0], narrower.pixels(image))
    assert not apart["vision_pixels"][1].any()
    assert apart["reason"].tolist() == ["", "empty"]
    assert apart["label"].tolist() == ["", "x"]


def test_sink_takes_blocks_without_rows_among_others(tmp_path: Path) -> None:
    sink = GallerySink(Folder(tmp_path), 2, 3)
    rows = pa.table(
        {
            "id": ["a"],
            "path": ["a.jpg"],
            "label": [""],
            "reason": [""],
            "detail": [""],
            "width": [4],
            "height": [5],
            "vlm": pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((1, 2), np.float16)),
            "vision": pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((1, 3), np.float16)),
        }
    )
    task: Any = SimpleNamespace(task_idx=0)
    assert sink.write([pa.table({}), rows.slice(0, 0), rows], task) == (1, {})
    assert sink.write([pa.table({})], task) == (0, {})
    assert pq.read_table(tmp_path / "parts/000000.parquet")["path"].to_pylist() == ["a.jpg"]
