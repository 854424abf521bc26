"""A benchmark's paths to the rows of a gallery, and the file of queries that is made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from command_line import Run
from errors import refused
from PIL import Image
from synthetic import D1, D2, directions, models
from test_benchmark_readers import CIRCO_ROW, FOLDERS, write

from pipelines.benchmark import read_benchmark
from pipelines.vocabulary import read_vocabulary
from retrieval.artifacts import Gallery
from retrieval.artifacts.columns import fixed_size_list
from retrieval.published.matching import match


def gallery(folder: Path, paths: Sequence[str]) -> Gallery:
    """A gallery of rows ``id of PATH``."""
    rng, count = np.random.default_rng(0), len(paths)
    columns = {
        "id": [f"id of {path}" for path in paths],
        "path": list(paths),
        "label": pa.nulls(count, pa.string()),
        "width": pa.array([1] * count, pa.int32()),
        "height": pa.array([1] * count, pa.int32()),
        "vlm": fixed_size_list(directions(count, D1, rng).astype(np.float16)),
        "vision": fixed_size_list(directions(count, D2, rng).astype(np.float16)),
    }
    return Gallery.of_tables(folder, [pa.table(columns)], source="nowhere", models=models())


def test_paths_fit_where_one_is_the_end_of_the_other(tmp_path: Path) -> None:
    rows = ["a.jpg", "deep/train/set/b.jpg", "c.jpg", "x/d.jpg", "y/d.jpg", "d.jpg", "x/e.jpg", "y/e.jpg", "F.jpg"]
    wanted = ["train/a.jpg", "set/b.jpg", "1/c.jpg", "2/c.jpg", "d.jpg", "e.jpg", "f.jpg", "ta.jpg", "train/set/a.jpg"]
    found = match(gallery(tmp_path, rows), wanted[:-1])
    assert found.ids == {
        "train/a.jpg": "id of a.jpg",
        "set/b.jpg": "id of deep/train/set/b.jpg",
        "d.jpg": "id of d.jpg",
    }
    assert found.ambiguous == ["1/c.jpg", "2/c.jpg", "e.jpg"]
    again = match(gallery(tmp_path / "again", rows), wanted)
    assert again.ambiguous == ["1/c.jpg", "2/c.jpg", "e.jpg", "train/a.jpg", "train/set/a.jpg"]


def lines(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def picture(width: int, height: int) -> bytes:
    data = BytesIO()
    Image.new("RGB", (width, height), "red").save(data, "JPEG")
    return data.getvalue()


def test_texts_become_a_vocabulary_and_what_is_missing_is_named(tmp_path: Path) -> None:
    root = write(tmp_path / "inquire", FOLDERS["inquire"])
    rows = gallery(tmp_path / "gallery", ["04686_Animalia/b.jpg", "other.jpg"])
    made = read_benchmark("inquire", root, rows, tmp_path / "q.jsonl")
    assert (made.queries, made.relevant, made.pictures) == (2, 2, 0)
    assert (made.missing, made.without_relevant) == (["train/04686_Animalia/903be103.jpg"], ["110"])
    first, second = read_vocabulary(made.file)
    assert (first.text, first.kind) == ("Black Grouse, male", "description")
    assert first.relevant == ("train/04686_Animalia/903be103.jpg", "id of 04686_Animalia/b.jpg")
    assert (second.relevant, second.junk) == ((), ())


def test_pictures_become_evidence_with_boxes_as_fractions(tmp_path: Path) -> None:
    root = write(tmp_path / "ox", FOLDERS["revisited"] | {"jpg/all_souls_000013.jpg": picture(1000, 2000)})
    names = ["all_souls_000001", "all_souls_000002", "ashmolean_000003", "ashmolean_000004", "christ_church_000179"]
    rows = gallery(tmp_path / "gallery", [f"{name}.jpg" for name in names])
    made = read_benchmark("revisited", root, rows, tmp_path / "q.jsonl", part="easy")
    assert (made.queries, made.missing, made.without_relevant) == (1, [], ["christ_church_000179"])
    assert made.without_picture == {"christ_church_000179": f"{root} lacks jpg/christ_church_000179.jpg"}
    [row] = lines(made.file)
    [evidence] = row["evidence"]
    assert evidence["picture"] == f"{root}/jpg/all_souls_000013.jpg"
    assert evidence["box"] == pytest.approx([0.1365, 0.01705, 0.6485, 0.47785])
    assert row["relevant"] == ["id of all_souls_000002.jpg", "id of all_souls_000001.jpg"]
    # Junk, and the picture of a query, which the protocol keeps out of the gallery.
    assert row["junk"] == [f"id of {name}.jpg" for name in ("ashmolean_000004", "ashmolean_000003", names[4])]


def test_a_picture_and_words_are_two_pieces_of_evidence(tmp_path: Path) -> None:
    reference = "COCO2017_unlabeled/unlabeled2017/000000085932.jpg"
    root = write(tmp_path / "circo", FOLDERS["circo"] | {reference: picture(4, 4)})
    made = read_benchmark("circo", root, gallery(tmp_path / "g", ["000000009761.jpg"]), tmp_path / "q.jsonl")
    [row] = lines(made.file)
    assert row["evidence"] == [{"picture": f"{root}/{reference}"}, {"text": CIRCO_ROW["relative_caption"]}]
    assert row["relevant"] == ["id of 000000009761.jpg", "COCO2017_unlabeled/unlabeled2017/000000489535.jpg"]
    with refused("no-text", "vocabulary"):
        read_vocabulary(made.file)


def test_a_box_outside_its_picture_costs_the_query(tmp_path: Path) -> None:
    files = {"zippy_999/query/Q999_00.jpg": picture(8, 8), "zippy_999/query/Q999_00_bbox.txt": "9 1 4 4"}
    root = write(tmp_path / "ilias", {"zippy_999/pos/P999_00.jpg": b""} | files)
    rows = gallery(tmp_path / "g", ["zippy_999/pos/P999_00.jpg"])
    made = read_benchmark("ilias", root, rows, tmp_path / "q.jsonl", part="image")
    assert made.queries == 0
    assert made.without_picture == {
        "zippy_999/query/Q999_00.jpg": "the box (9.0, 1.0, 13.0, 5.0) is not within 8 × 8 pixels"
    }


def test_a_gallery_of_other_images_and_a_target_of_another_kind_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "xtd10", FOLDERS["xtd10"])
    rows = gallery(tmp_path / "g", ["other.jpg"])
    with refused("nothing-found", "gallery") as error:
        read_benchmark("xtd10", root, rows, tmp_path / "q.jsonl")
    assert "COCO_train2014_000000061844.jpg" in str(error.value)
    with refused("wrong-name", "target"):
        read_benchmark("xtd10", root, rows, tmp_path / "q.csv")
    assert not list(tmp_path.glob("q.*"))


def test_the_command_says_what_it_found_and_what_not(run: Run, tmp_path: Path) -> None:
    root = write(tmp_path / "my xtd10", FOLDERS["xtd10"])
    rows = gallery(tmp_path / "g", ["train2014/COCO_train2014_000000061844.jpg"])
    said = run("benchmark", "xtd10", root, rows.uri, tmp_path / "my q.jsonl", "--part", "it")
    assert said.code == 0
    assert "xtd10, it: 2 queries, 2 relevant images" in said.out
    assert "1 images are not in the gallery: COCO_val2014_2.jpg" in said.out
    assert f"next:\n  mindseye queries '{tmp_path}/my q.jsonl' QUERIES --profile PROFILE" in said.out
