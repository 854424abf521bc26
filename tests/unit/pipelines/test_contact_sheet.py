"""The contact sheet: which queries, which pictures, and how they are drawn."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from synthetic import directions, write_queries

from pipelines.contact_sheet import (
    GAP,
    MARGIN,
    NEUTRAL,
    RIGHT,
    SIDE,
    WRONG,
    Section,
    Strip,
    contact_sheet,
    draw,
    gallery_pictures,
)


def picture(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    assert image.format == "PNG"
    return image.convert("RGB")


def solid(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (30, 20), colour)


def encoded(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_drawing_frames_right_and_wrong_pictures() -> None:
    blue = (10, 20, 200)
    strips = [Strip("imagined", [solid(blue)] * 2, [None] * 2), Strip("found", [solid(blue)] * 3, [True, False, None])]
    sheet = picture(draw([Section("a query", strips), Section("another, ünï 😀", strips[1:])]))
    assert sheet.height == MARGIN + 2 * 34 + 3 * (SIDE + 2 * GAP)
    left, top = MARGIN + 96, MARGIN + 24 + SIDE + 2 * GAP
    frames = [sheet.getpixel((left + i * (SIDE + GAP) + 1, top + 1)) for i in range(3)]
    assert frames == [RIGHT, WRONG, NEUTRAL]
    assert sheet.getpixel((left + SIDE // 2, top + SIDE // 2)) == blue
    assert picture(draw([])).size[1] == MARGIN


def test_contact_sheet_of_a_gallery(collection: Any, tmp_path: Path) -> None:
    dims = collection.vlm_ND1.shape[1], collection.vision_ND2.shape[1]
    rng = np.random.default_rng(0)
    category = next(collection.gallery.tables(["label"]))["label"][0].as_py()
    images = [directions(q % 3, dims[1], rng) for q in range(5)]
    queries = write_queries(
        tmp_path,
        directions(5, dims[0], rng),
        images,
        labels=[category, None, "other", category, category],
        kinds=["name", "name", "name", "description", "description"],
        thumbnail=encoded(solid((10, 20, 200))),
        records=collection.gallery.manifest.models,
    )
    for rows, shown in ((2, 2), (8, 5)):
        sheet = picture(contact_sheet(collection.gallery, queries, 0.5, rows=rows, k=6))
        assert sheet.height == MARGIN + shown * (34 + 3 * (SIDE + 2 * GAP))
        assert sheet.width == 2 * MARGIN + 96 + 6 * (SIDE + GAP)
    colours = {colour for _, colour in sheet.getcolors(maxcolors=2**24) or []}
    assert {RIGHT, WRONG, NEUTRAL} <= colours


RED, GREEN = (200, 0, 0), (0, 200, 0)


def colours_of(source: Path, *paths: str) -> dict[str, Any]:
    rows = [{"batch": "000001", "path": path} for path in paths]
    pictures = gallery_pictures({"000001": str(source)}, rows)
    return {path: image.getpixel((5, 5)) for (_, path), image in pictures.items()}


def test_pictures_come_from_a_folder_and_one_that_is_gone_is_grey(tmp_path: Path) -> None:
    (tmp_path / "my class").mkdir()
    (tmp_path / "my class/ünï 😀.png").write_bytes(encoded(solid(RED)))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    paths = ("my class/ünï 😀.png", "broken.png", "gone/long ago.png")
    assert colours_of(tmp_path, *paths) == dict(zip(paths, (RED, NEUTRAL, NEUTRAL), strict=True))
    assert colours_of(tmp_path / "gone", "a.png") == {"a.png": NEUTRAL}


def test_pictures_come_from_parquet_as_bytes_and_as_structs(tmp_path: Path) -> None:
    data = [encoded(solid(RED)), encoded(solid(GREEN)), None]
    expected = {"a": RED, "b": GREEN, "c": NEUTRAL, "gone": NEUTRAL}
    pq.write_table(pa.table({"image": data, "path": ["a", "b", "c"]}), tmp_path / "plain.parquet")
    assert colours_of(tmp_path / "plain.parquet", *expected) == expected
    structs = [{"bytes": value, "path": None} for value in data]
    (tmp_path / "many").mkdir()
    (tmp_path / "many/README.md").write_text("about this data")
    for i, path in enumerate(["a", "b", "c"]):
        pq.write_table(pa.table({"path": [path], "image": structs[i : i + 1]}), tmp_path / f"many/{i}.parquet")
    assert colours_of(tmp_path / "many", *expected) == expected
