"""Recipes: what they may say, and that each one that ships reads its data set as the set's authors lay it out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from errors import refused
from scipy.io import savemat

from retrieval.datasets.check import check_counts
from retrieval.datasets.recipe import RECIPES, load_recipe, recipe_names

Download = tuple[dict[str, Any], dict[str, str]]
"""The files of a download, by name (None is an image, a dict a MATLAB file), and the class of each image."""


def _text(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


def _records(**columns: list[Any]) -> np.ndarray:
    """Return a MATLAB array of structs."""
    rows = np.zeros(len(next(iter(columns.values()))), [(name, object) for name in columns])
    for name, values in columns.items():
        rows[name] = values
    return rows


def _cells(*values: str) -> np.ndarray:
    return np.array(values, object)


LISTED: dict[str, Download] = {
    "imagenet": (
        {
            "LOC_val_solution.csv": _text(
                "ImageId,PredictionString",
                "ILSVRC2012_val_00000001,n01440764 1 2 3 4 ",
                "ILSVRC2012_val_00000002,n01443537 1 2 3 4 n01443537 5 6 7 8 ",
            ),
            "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG": None,
            "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000002.JPEG": None,
        },
        {
            "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG": "n01440764 tench",
            "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000002.JPEG": "n01443537 goldfish",
        },
    ),
    "dtd": (
        {"dtd/labels/test1.txt": _text("banded/banded_0002.jpg"), "dtd/images/banded/banded_0002.jpg": None},
        {"images/banded/banded_0002.jpg": "banded banded"},
    ),
    "stanford-cars": (
        {
            "devkit/cars_meta.mat": {"class_names": _cells("AM General Hummer SUV 2000", "Ram C/V Cargo Van 2012")},
            "cars_test_annos_withlabels.mat": {
                "annotations": _records(bbox_x1=[30, 100], **{"class": [2, 1]}, fname=["00001.jpg", "00002.jpg"])
            },
            "cars_test/00001.jpg": None,
            "cars_test/00002.jpg": None,
        },
        {
            "cars_test/00001.jpg": "Ram C/V Cargo Van 2012 Ram C/V Cargo Van 2012",
            "cars_test/00002.jpg": "AM General Hummer SUV 2000 AM General Hummer SUV 2000",
        },
    ),
    "sun397": (
        {
            "SUN397/ClassName.txt": _text("/a/abbey", "/b/balcony/exterior"),
            "Partitions/Testing_01.txt": _text("/a/abbey/sun_a.jpg", "/b/balcony/exterior/sun_b.jpg"),
            "SUN397/a/abbey/sun_a.jpg": None,
            "SUN397/b/balcony/exterior/sun_b.jpg": None,
        },
        {
            "SUN397/a/abbey/sun_a.jpg": "/a/abbey abbey",
            "SUN397/b/balcony/exterior/sun_b.jpg": "/b/balcony/exterior balcony exterior",
        },
    ),
    "food101": (
        {
            "food-101/meta/classes.txt": _text("apple_pie", "waffles"),
            "food-101/meta/test.txt": _text("apple_pie/1011328", "waffles/7"),
            "food-101/images/apple_pie/1011328.jpg": None,
            "food-101/images/waffles/7.jpg": None,
        },
        {"images/apple_pie/1011328.jpg": "apple_pie apple pie", "images/waffles/7.jpg": "waffles waffles"},
    ),
    "fgvc-aircraft": (
        {
            "fgvc-aircraft-2013b/data/variants.txt": _text("707-320", "F/A-18", "Cessna 172"),
            "fgvc-aircraft-2013b/data/images_variant_test.txt": _text("1514522 707-320", "3 F/A-18", "4 Cessna 172"),
            "fgvc-aircraft-2013b/data/images/1514522.jpg": None,
            "fgvc-aircraft-2013b/data/images/3.jpg": None,
            "fgvc-aircraft-2013b/data/images/4.jpg": None,
        },
        {
            "data/images/1514522.jpg": "707-320 707-320",
            "data/images/3.jpg": "F/A-18 F/A-18",
            "data/images/4.jpg": "Cessna 172 Cessna 172",
        },
    ),
    "oxford-pets": (
        {
            "annotations/test.txt": _text("Abyssinian_201 1 1 1", "american_bulldog_10 2 2 1"),
            "images/Abyssinian_201.jpg": None,
            "images/american_bulldog_10.jpg": None,
        },
        {
            "images/Abyssinian_201.jpg": "Abyssinian Abyssinian",
            "images/american_bulldog_10.jpg": "american_bulldog american bulldog",
        },
    ),
    "flowers102": (
        {
            "setid.mat": {"tstid": np.array([[2, 3]])},
            "imagelabels.mat": {"labels": np.array([[77, 1, 102]])},
            "jpg/image_00001.jpg": None,
            "jpg/image_00002.jpg": None,
            "jpg/image_00003.jpg": None,
        },
        {
            "jpg/image_00002.jpg": "pink primrose pink primrose",
            "jpg/image_00003.jpg": "blackberry lily blackberry lily",
        },
    ),
    "ucf101": (
        {
            "ucfTrainTestlist/classInd.txt": "1 ApplyEyeMakeup\r\n2 YoYo\r\n",
            "ucfTrainTestlist/testlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\r\n"
            "YoYo/v_YoYo_g01_c01.avi\r\n",
            "frames/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.jpg": None,
            "frames/YoYo/v_YoYo_g01_c01.jpg": None,
        },
        {
            "frames/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.jpg": "ApplyEyeMakeup Apply Eye Makeup",
            "frames/YoYo/v_YoYo_g01_c01.jpg": "YoYo Yo Yo",
        },
    ),
    "kinetics700": (
        {
            "val.csv": _text("label,youtube_id,time_start,time_end,split", "abseiling,0347ZoDXyP0,95,105,val"),
            "frames/abseiling/0347ZoDXyP0_000095_000105.jpg": None,
        },
        {"frames/abseiling/0347ZoDXyP0_000095_000105.jpg": "abseiling abseiling"},
    ),
    "cub200": (
        {
            "CUB_200_2011/classes.txt": _text("1 001.Black_footed_Albatross", "2 002.Laysan_Albatross"),
            "CUB_200_2011/images.txt": _text("1 001.A/a.jpg", "2 002.L/b.jpg", "3 002.L/c.jpg"),
            "CUB_200_2011/image_class_labels.txt": _text("1 1", "2 2", "3 2"),
            "CUB_200_2011/train_test_split.txt": _text("1 0", "2 1", "3 0"),
            "CUB_200_2011/images/001.A/a.jpg": None,
            "CUB_200_2011/images/002.L/c.jpg": None,
        },
        {
            "images/001.A/a.jpg": "001.Black_footed_Albatross Black footed Albatross",
            "images/002.L/c.jpg": "002.Laysan_Albatross Laysan Albatross",
        },
    ),
    "places365": (
        {
            "categories_places365.txt": _text("/a/airfield 0", "/a/apartment_building/outdoor 1"),
            "places365_val.txt": _text("Places365_val_00000001.jpg 1", "Places365_val_00000002.jpg 0"),
            "val_256/Places365_val_00000001.jpg": None,
            "val_256/Places365_val_00000002.jpg": None,
        },
        {
            "val_256/Places365_val_00000001.jpg": "/a/apartment_building/outdoor apartment building outdoor",
            "val_256/Places365_val_00000002.jpg": "/a/airfield airfield",
        },
    ),
    "tiny-imagenet": (
        {
            "tiny-imagenet-200/wnids.txt": _text("n02124075", "n01443537"),
            "tiny-imagenet-200/words.txt": _text(
                "n00001740\tentity", "n01443537\tgoldfish, Carassius auratus", "n02124075\tEgyptian cat"
            ),
            "tiny-imagenet-200/val/val_annotations.txt": _text("val_0.JPEG\tn01443537\t0\t32\t44\t62"),
            "tiny-imagenet-200/val/images/val_0.JPEG": None,
        },
        {"val/images/val_0.JPEG": "n01443537 goldfish"},
    ),
    "cifar10": ({"test/airplane/0000.png": None}, {"test/airplane/0000.png": "airplane airplane"}),
    "cifar100": ({"cifar100/test/lawn_mower/1.png": None}, {"test/lawn_mower/1.png": "lawn_mower lawn mower"}),
    "resisc45": (
        {"NWPU-RESISC45/golf_course/golf_course_001.jpg": None},
        {"golf_course/golf_course_001.jpg": "golf_course golf course"},
    ),
    "caltech101": (
        {
            "caltech101/101_ObjectCategories/Faces/image_0001.jpg": None,
            "caltech101/101_ObjectCategories/BACKGROUND_Google/image_0001.jpg": None,
        },
        {"101_ObjectCategories/Faces/image_0001.jpg": "Faces face"},
    ),
}


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_reads_its_set_as_it_is_laid_out(name: str, tmp_path: Path) -> None:
    files, expected = LISTED[name]
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            savemat(tmp_path / file, content)
        else:
            (tmp_path / file).write_bytes((content or "").encode())
    checked = check_counts(load_recipe(name), tmp_path)
    names = checked.contents.classes.names
    assert {image.path: f"{image.key} {names[image.key]}" for image in checked.contents.images} == expected
    assert {each.kind for each in checked.findings} <= {"class-missing", "class-count", "image-count", "same-name"}


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_is_sound(name: str) -> None:
    recipe = load_recipe(name)
    each = recipe.expected.per_class
    if isinstance(each, int):
        assert recipe.expected.images == each * recipe.expected.classes
    elif each and recipe.expected.images:
        assert each[0] * recipe.expected.classes <= recipe.expected.images <= each[1] * recipe.expected.classes
    if recipe.classes.listed:
        assert len(recipe.classes.listed) == recipe.expected.classes
    assert len(recipe.sentences()) == len(set(recipe.sentences()))


def test_prompts_are_as_many_as_the_authors_have() -> None:
    """CLIP, data/prompts.md."""
    counts = {"cifar10": 18, "caltech101": 34, "ucf101": 48, "kinetics700": 28, "resisc45": 18, "stanford-cars": 8}
    assert {name: len(load_recipe(name).sentences()) for name in counts} == counts


def test_alternatives_of_a_template_are_sentences(written: Callable[..., Path]) -> None:
    recipe = load_recipe(written(templates=["[a|the] photo of [|my ]{}."]))
    assert recipe.sentences() == ["a photo of {}.", "a photo of my {}.", "the photo of {}.", "the photo of my {}."]


def test_recipe_that_there_is_not(tmp_path: Path) -> None:
    with refused("missing", "name") as error:
        load_recipe("imagnet")
    assert "imagenet" in str(error.value)
    with refused("missing", "name"):
        load_recipe(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"colour": "red"}, "colour"),
        ({"templates": ["no place for a name"]}, "templates"),
        ({"classes": {"listed": ["a"], "images": True}}, "classes"),
        (
            {"layouts": [{"kind": "listed", "tables": [{"file": "a.txt", "pattern": "x"}], "image": "{id}"}]},
            "layouts.0",
        ),
    ],
)
def test_wrong_recipes_name_the_setting(written: Callable[..., Path], change: dict[str, Any], field: str) -> None:
    with refused("wrong-setting") as error:
        load_recipe(written(**change))
    assert error.value.field.startswith(field)


def test_every_recipe_is_a_small_file() -> None:
    for file in RECIPES.glob("*.yaml"):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert len(file.read_text(encoding="utf-8").splitlines()) < 50, file.name
        assert "http" not in content["source"], "a reader looks it up; we fetch nothing"
