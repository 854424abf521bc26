"""Each benchmark's reader on a tiny folder in its authors' format, made by hand; and the same with something wrong."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import refused

from retrieval.folder import Folder
from retrieval.published.query import BenchmarkQuery
from retrieval.published.registry import BENCHMARKS, find


def write(root: Path, files: dict[str, Any]) -> Path:
    """Write files: bytes and text as they are, other values as JSON."""
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return root


def queries(root: Path, name: str, part: str | None = None) -> list[BenchmarkQuery]:
    benchmark, part = find(name, part)
    return list(benchmark.read(Folder(root), part))


CIRCO_ROW = {
    "reference_img_id": 85932,
    "target_img_id": 9761,
    "relative_caption": "is held by a little girl on a chair",
    "shared_concept": "a teddy bear",
    "gt_img_ids": [9761, 489535],
    "id": 0,
}
GROUND_TRUTH = {
    "imlist": ["all_souls_000001", "all_souls_000002", "ashmolean_000003", "ashmolean_000004"],
    "qimlist": ["all_souls_000013", "christ_church_000179"],
    "gnd": [
        {"bbx": [136.5, 34.1, 648.5, 955.7], "easy": np.array([1, 0]), "hard": np.array([2]), "junk": np.array([3])},
        {"bbx": np.array([1, 2, 3, 4.0]), "easy": [], "hard": [3], "junk": []},
    ],
}
FOLDERS: dict[str, dict[str, Any]] = {
    "circo": {
        "annotations/val.json": [CIRCO_ROW],
        "annotations/test.json": [{"reference_img_id": 1, "relative_caption": "x", "shared_concept": "y", "id": 0}],
    },
    "inquire": {
        "inquire_queries_test.csv": ",query_id,query_text,supercategory,category,iconic_group\n"
        '83,109,"Black Grouse, male",Appearance,Sex,Birds\n7,110,a rose gall,Context,x,Insects\n',
        "inquire_queries_val.csv": "query_id,query_text\n111,firebugs mating\n",
        "inquire_annotations.csv": "query_id,image_id,image_path\n"
        "109,5,train/04686_Animalia/903be103.jpg\n111,6,train/1_x/a.jpg\n109,7,train/04686_Animalia/b.jpg\n",
    },
    "ilias": {
        "bold_bimp_000/query/Q000_00.jpg": b"",
        "bold_bimp_000/query/Q000_00_bbox.txt": "10 20 30 40\n5 50 10 100\n",
        "bold_bimp_000/query/Q000_01.jpg": b"",
        "bold_bimp_000/query/Q000_00_url.txt": "https://somewhere",
        "bold_bimp_000/query/T000.txt": "A red mug with a cat.\n",
        "bold_bimp_000/pos/P000_00.jpg": b"",
        "bold_bimp_000/pos/P000_01.jpg": b"",
        "bold_bimp_000/pos/P000_00_bbox.txt": "1 2 3 4",
        "zippy_999/query/T999.txt": "a blue vase",
        "zippy_999/pos/P999_00.jpg": b"",
    },
    "revisited": {"gnd_roxford5k.pkl": pickle.dumps(GROUND_TRUTH, 2)},
    "imagecode": {
        "data/valid_data.json": {
            "MSR-VTT-video2044-shot1_0": {"1": "a mother", "2": "two"},
            "open-images-1": {"0": "x"},
        },
        "data/test_data.json": {"MSR-VTT-testVideo": ["the name of the team can be seen"]},
        "data/image-sets/MSR-VTT-video2044-shot1_0/img0.jpg": b"",
        "data/image-sets/MSR-VTT-video2044-shot1_0/img7.jpg": b"",
        "data/image-sets/MSR-VTT-video2044-shot1_0/img10.jpg": b"",
        "data/open-images-1/img0.jpg": b"",
    },
    "visual-rag": {
        "v2_anno.jsonl": '{"images": {"00855_Cossidae/83f8.jpg": 0, "00855_Cossidae/562.jpg": 1}, "answer": ["two"],'
        ' "question": "How many?", "sn": "P. robiniae"}\n'
    },
    "cvg-text": {
        "CVG-text/NewYork/test.json": {"40.1,-73.9.png": "A street with a red shop."},
        "CVG-text/Brisbane-photos/test.json": {"a.png": "A bridge."},
    },
    "deeppatent2": {
        "2020/design2020.json": [
            {"patentID": "USD0836880-20190101", "object": "Pet treat", "subfigure_file": "USD0836880-D00001_1.png"},
            {"patentID": "USD0836880-20190101", "object": "pet  Treat", "subfigure_file": "USD0836880-D00001_2.png"},
            {"patentID": "USD1", "object": None, "subfigure_file": "USD1-D00001_1.png"},
            {"patentID": "USD2", "object": "Chair", "subfigure_file": "USD2-D00001_1.png"},
        ]
    },
    "xtd10": {
        "XTD10/test_image_names.txt": "COCO_train2014_000000061844.jpg\nCOCO_val2014_2.jpg\n",
        "XTD10/test_1kcaptions_it.txt": "Un gatto \nDue cani",
        "MIC/test_1kcaptions_en.txt": "a cat\ntwo dogs\n",
        "STAIR/test_1kcaptions_jp.txt": "猫\n犬\n",
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: write(tmp_path / name, FOLDERS[name])


def test_every_benchmark_has_a_folder_here() -> None:
    assert set(FOLDERS) == set(BENCHMARKS)


def test_circo(folder: Callable[[str], Path]) -> None:
    images = "COCO2017_unlabeled/unlabeled2017"
    assert queries(folder("circo"), "circo") == [
        BenchmarkQuery(
            id="0",
            text="is held by a little girl on a chair",
            picture=f"{images}/000000085932.jpg",
            relevant=(f"{images}/000000009761.jpg", f"{images}/000000489535.jpg"),
        )
    ]
    with refused("no-truth", "part"):
        queries(folder("circo"), "circo", "test")


def test_inquire(folder: Callable[[str], Path]) -> None:
    paths = ("train/04686_Animalia/903be103.jpg", "train/04686_Animalia/b.jpg")
    assert queries(folder("inquire"), "inquire") == [
        BenchmarkQuery("109", paths, text="Black Grouse, male"),
        BenchmarkQuery("110", (), text="a rose gall"),
    ]
    [query] = queries(folder("inquire"), "inquire", "val")
    assert (query.text, query.relevant) == ("firebugs mating", ("train/1_x/a.jpg",))


def test_ilias(folder: Callable[[str], Path]) -> None:
    root, positives = folder("ilias"), ("bold_bimp_000/pos/P000_00.jpg", "bold_bimp_000/pos/P000_01.jpg")
    assert queries(root, "ilias") == [
        BenchmarkQuery("bold_bimp_000/query/T000.txt", positives, text="A red mug with a cat."),
        BenchmarkQuery("zippy_999/query/T999.txt", ("zippy_999/pos/P999_00.jpg",), text="a blue vase"),
    ]
    first, second = "bold_bimp_000/query/Q000_00.jpg", "bold_bimp_000/query/Q000_01.jpg"
    assert queries(root, "ilias", "image") == [
        BenchmarkQuery(first, positives, picture=first, box=(5, 20, 40, 150)),
        BenchmarkQuery(second, positives, picture=second),
    ]


@pytest.mark.parametrize(
    ("part", "relevant", "junk"), [("easy", [1, 0], [3, 2]), ("medium", [1, 0, 2], [3]), ("hard", [2], [3, 1, 0])]
)
def test_revisited_protocols(folder: Callable[[str], Path], part: str, relevant: list[int], junk: list[int]) -> None:
    def paths(places: list[int]) -> tuple[str, ...]:
        return tuple(f"jpg/{GROUND_TRUTH['imlist'][place]}.jpg" for place in places)

    first, second = queries(folder("revisited"), "revisited", part)
    assert (first.relevant, first.junk) == (paths(relevant), paths(junk))
    assert (first.picture, first.box) == ("jpg/all_souls_000013.jpg", (136.5, 34.1, 648.5, 955.7))
    assert first.excluded == second.excluded == ("jpg/all_souls_000013.jpg", "jpg/christ_church_000179.jpg")
    assert second.relevant == (() if part == "easy" else paths([3]))


def test_imagecode_counts_images_by_the_numbers_in_their_names(folder: Callable[[str], Path]) -> None:
    assert [(query.text, query.relevant) for query in queries(folder("imagecode"), "imagecode")] == [
        ("a mother", ("MSR-VTT-video2044-shot1_0/img7.jpg",)),
        ("two", ("MSR-VTT-video2044-shot1_0/img10.jpg",)),
        ("x", ("open-images-1/img0.jpg",)),
    ]
    with refused("no-truth", "part"):
        queries(folder("imagecode"), "imagecode", "test")


def test_benchmarks_of_texts(folder: Callable[[str], Path]) -> None:
    found = {
        (name, part): [(query.text, query.relevant, query.kind) for query in queries(folder(name), name, part)]
        for name, part in (
            ("visual-rag", None),
            ("cvg-text", None),
            ("cvg-text", "Brisbane-photos/OSM"),
            ("deeppatent2", None),
            ("xtd10", None),
            ("xtd10", "it"),
            ("xtd10", "jp"),
        )
    }
    coco = "COCO_train2014_000000061844.jpg", "COCO_val2014_2.jpg"
    treats = ("USD0836880-D00001_1.png", "USD0836880-D00001_2.png")
    assert found == {
        ("visual-rag", None): [("How many?", ("00855_Cossidae/562.jpg",), "description")],
        ("cvg-text", None): [("A street with a red shop.", ("NewYork-satellite/40.1,-73.9.png",), "description")],
        ("cvg-text", "Brisbane-photos/OSM"): [("A bridge.", ("Brisbane-photos-OSM/a.png",), "description")],
        ("deeppatent2", None): [("chair", ("USD2-D00001_1.png",), "name"), ("pet treat", treats, "name")],
        ("xtd10", None): [("a cat", coco[:1], "description"), ("two dogs", coco[1:], "description")],
        ("xtd10", "it"): [("Un gatto", coco[:1], "description"), ("Due cani", coco[1:], "description")],
        ("xtd10", "jp"): [("猫", coco[:1], "description"), ("犬", coco[1:], "description")],
    }


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_an_empty_folder_is_refused_by_what_it_lacks(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with refused("missing", "folder") as error:
        queries(tmp_path / "empty", name)
    assert str(tmp_path / "empty") in str(error.value)


def gnd(**changes: Any) -> bytes:
    return pickle.dumps(GROUND_TRUTH | changes)


@pytest.mark.parametrize(
    ("name", "files", "fact"),
    [
        ("circo", {"annotations/val.json": "{"}, "annotations/val.json cannot be read: it is not JSON"),
        ("circo", {"annotations/val.json": {}}, "annotations/val.json must be list, not dict"),
        ("circo", {"annotations/val.json": [CIRCO_ROW | {"gt_img_ids": ["9761"]}]}, "entry 0: gt_img_ids must be int"),
        ("circo", {"annotations/val.json": [{"gt_img_ids": [1], "id": 1}]}, "entry 0 lacks relative_caption"),
        ("inquire", {"inquire_annotations.csv": "query,image\n1,a.jpg\n"}, "row 1 lacks query_id, image_path"),
        (
            "inquire",
            {"inquire_annotations.csv": f"query_id,image_path\n1,a.jpg\n2,{'b' * 140_000}\n"},
            "inquire_annotations.csv cannot be read: it is not CSV (line 3: ",
        ),
        ("circo", {"annotations/val.json": "[" * 100_000}, "val.json cannot be read: it is not JSON (it is nested"),
        ("visual-rag", {"v2_anno.jsonl": '{"a":' * 100_000}, "v2_anno.jsonl, line 1 cannot be read: it is not JSON"),
        ("ilias", {"zippy_999/query/Q999_00_bbox.txt": "1 2 3", "zippy_999/query/Q999_00.jpg": b""}, "x, y, width and"),
        ("revisited", {"gnd_roxford5k.pkl": pickle.dumps([1])}, "must be dict, not list"),
        ("revisited", {"gnd_roxford5k.pkl": gnd(qimlist=["a"])}, "has 1 queries in qimlist and 2 in gnd"),
        ("revisited", {"gnd_roxford5k.pkl": gnd(gnd=[{"easy": [4]}, {}])}, "easy has the place 4, and there are 4"),
        ("revisited", {"gnd_roxford5k.pkl": gnd(gnd=[{"bbx": [1, 2]}, {}])}, "bbx must be left, top, right and bottom"),
        ("imagecode", {"data/valid_data.json": {"open-images-1": {"1": "x"}}}, "names image '1', and the set has 1"),
        ("visual-rag", {"v2_anno.jsonl": '{"images": {"a.jpg": 2}, "question": "?"}'}, "and a.jpg by 2"),
        ("deeppatent2", {"2020/design2020.json": [{"object": "x"}]}, "figure 0 lacks subfigure_file"),
        ("xtd10", {"MIC/test_1kcaptions_en.txt": "one\n"}, "it has 1 captions, and there are 2 images"),
    ],
)
def test_files_of_another_format_are_refused_by_place(
    folder: Callable[[str], Path], name: str, files: dict[str, Any], fact: str
) -> None:
    root = write(folder(name), files)
    with refused("damaged", "folder") as error:
        queries(root, name, "image" if name == "ilias" else None)
    assert fact in str(error.value)


def test_a_file_that_is_no_text_is_refused(folder: Callable[[str], Path]) -> None:
    root = write(folder("inquire"), {"inquire_annotations.csv": b"query_id,image_path\n1,\xff\n"})
    with refused("not-utf-8", "folder") as error:
        queries(root, "inquire")
    assert f"{root}/inquire_annotations.csv" in str(error.value)


def test_a_hostile_ground_truth_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    write(tmp_path, {"gnd_rparis6k.pkl": f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()})
    with refused("not-plain", "pickle"):
        queries(tmp_path, "revisited")
    assert not mark.exists()


def test_unknown_names_and_parts_are_told_what_there_is() -> None:
    with refused("unknown", "name") as error:
        find("cirr", None)
    assert "circo, cvg-text" in str(error.value)
    with refused("unknown", "part") as error:
        find("revisited", "simple")
    assert "medium, easy, hard" in str(error.value)
    with refused("unknown", "part"):
        list(BENCHMARKS["cvg-text"].read(Folder("."), "NewYork"))
