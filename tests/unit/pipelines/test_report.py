"""What an evaluation leaves for people: table, files, plot and contact sheet."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from synthetic import D1, D2, directions, write_gallery, write_queries

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
    top_rows,
)
from pipelines.evaluate import Evaluation
from pipelines.report import read_results, results_table, summary, write_report
from retrieval.fusion import fused_query, products

SYSTEMS = ("text", "visual", "fused")
KINDS = ("name", "description")


def evaluation(values: np.ndarray) -> Evaluation:
    """A result of these APs, (systems, kinds, queries), and of other measures that follow from them."""
    rows = [
        {
            "query": f"{kind}-{q}",
            "text": f"text {q}",
            "kind": kind,
            "label": f"label {q}",
            "system": system,
            "positives": 3,
            "ap": values[s, k, q],
            "ap_step": values[s, k, q] / 2,
            "precision_at_10": 0.3,
        }
        for s, system in enumerate(SYSTEMS)
        for k, kind in enumerate(KINDS)
        for q in range(values.shape[2])
    ]
    weights = {"text": 0.0, "visual": 1.0, "fused": 0.25}
    return Evaluation(pa.Table.from_pylist(rows), weights, 1234, 2, ["no such label"])


VALUES = np.random.default_rng(0).uniform(size=(3, 2, 5))


def picture(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    assert image.format == "PNG"
    return image.convert("RGB")


def test_files_are_written_and_hold_the_figures(tmp_path: Path) -> None:
    result = evaluation(VALUES)
    files = [Path(name) for name in write_report(result, tmp_path / "new" / "report")]
    assert [file.name for file in files] == ["results.parquet", "summary.json", "gains.png"]
    assert read_results(files[0]).equals(result.table)
    content = json.loads(files[1].read_text())
    assert content == json.loads(json.dumps(summary(result)))
    assert (content["gallery_rows"], content["weights"]["fused"], content["unlabelled"]) == (1234, 0.25, 2)
    assert content["labels_without_image"] == ["no such label"]
    fused = content["kinds"]["description"]["systems"]["fused"]
    assert content["kinds"]["description"]["queries"] == 5
    assert fused["ap"]["mean"] == pytest.approx(VALUES[2, 1].mean())
    assert fused["ap_step"]["mean"] == pytest.approx(VALUES[2, 1].mean() / 2)
    assert fused["gain_over_text"]["mean"] == pytest.approx((VALUES[2, 1] - VALUES[0, 1]).mean())
    assert fused["gain_over_text"]["low"] <= fused["gain_over_text"]["mean"] <= fused["gain_over_text"]["high"]
    plot = picture(files[2].read_bytes())
    assert min(plot.size) > 300
    assert len(plot.getcolors(maxcolors=2**24) or []) > 10


@pytest.mark.parametrize("queries", [1, 3, 7])
def test_report_of_queries_that_all_do_alike(tmp_path: Path, queries: int) -> None:
    for value in (0.1, 1 / 3, 0.7, 1.0):
        write_report(evaluation(np.full((3, 2, queries), value)), tmp_path)


def test_table_has_a_line_for_each_kind_and_system() -> None:
    result = evaluation(VALUES)
    table = results_table(result, "the title")
    assert table.row_count == len(SYSTEMS) * len(KINDS)
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(table)
    lines = console.export_text().splitlines()
    assert "the title" in lines[0]
    fused = [line for line in lines if "fused" in line]
    for line, kind in zip(fused, range(2), strict=True):
        assert f"{VALUES[2, kind].mean():.3f}" in line
        assert f"{(VALUES[2, kind] - VALUES[0, kind]).mean():+.3f}" in line


def test_top_rows_are_those_of_a_full_sort(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vlm, vision = (np.tile(directions(25, dim, rng).astype(np.float16), (8, 1)) for dim in (D1, D2))
    ids = [f"{i:04x}" for i in rng.permutation(200)]
    gallery = write_gallery(tmp_path, vlm, vision, ids=ids, labels=[f"label {i}" for i in range(200)], parts=4)
    joint = fused_query(directions(3, D1, rng), directions(3, D2, rng), 0.4)
    scores = products(joint, np.concatenate([vlm, vision], axis=1)).astype(np.float32)
    for q, found in enumerate(top_rows(gallery, joint, 12)):
        expected = sorted(range(200), key=lambda n: (-scores[q, n], ids[n]))[:12]
        assert [row["id"] for row in found] == [ids[n] for n in expected]
        assert [row["label"] for row in found] == [f"label {n}" for n in expected]
        assert [row["score"] for row in found] == scores[q, expected].tolist()


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
