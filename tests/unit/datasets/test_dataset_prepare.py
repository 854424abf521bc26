"""Preparing a data set: what it writes is read by index and queries, and nothing is left out unsaid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Run
from errors import refused
from pictures import saved

from pipelines.vocabulary import VocabularyEntry, read_templates, read_vocabulary
from retrieval.datasets.classes import Vocabulary
from retrieval.datasets.descriptions import read_descriptions
from retrieval.datasets.prepare import prepare
from retrieval.datasets.recipe import load_recipe
from retrieval.folder import Folder
from retrieval.sources.frozen_list import freeze

Recipe = Callable[..., Path]


def listed(source: str, into: Path) -> list[tuple[str, str, str | None]]:
    """Return path, label and reason of what mindseye index makes of a source."""
    freeze(source, Folder(into))
    rows = pa.concat_tables([pq.read_table(file) for file in sorted(into.glob("*.parquet"))])
    return [(row["path"], row["label"], row["reason"]) for row in rows.to_pylist()]


def test_images_stay_in_place_and_queries_are_of_their_labels(shapes: Path, written: Recipe, tmp_path: Path) -> None:
    made = prepare(load_recipe(written()), shapes, tmp_path / "prepared")
    assert listed(made.record.source, tmp_path / "list") == [
        (str(shapes / "pictures" / label / f"{number}.png"), label, None)
        for label in ("blue_ring", "dot", "red_star")
        for number in range(2)
    ]
    assert read_vocabulary(made.queries) == [
        VocabularyEntry("red star", "name", "red_star"),
        VocabularyEntry("blue ring", "name", "blue_ring"),
        VocabularyEntry("dot", "name", "dot"),
    ]
    assert read_templates(made.templates) == ["a photo of a {}.", "a picture of a {}."]
    record = json.loads((tmp_path / "prepared/dataset.json").read_text())
    assert (record["name"], record["images"], record["classes"], record["whole"]) == ("shapes", 6, 3, True)


def test_part_of_a_set_is_refused_unless_asked_for(shapes: Path, written: Recipe, tmp_path: Path) -> None:
    (shapes / "pictures/dot").rename(shapes / "pictures/square")
    (shapes / "pictures/blue_ring").rename(shapes / "pictures/Blue_Ring")
    with refused("incomplete", "root") as error:
        prepare(load_recipe(written()), shapes, tmp_path / "prepared")
    for name in ("dot", "square", "Blue_Ring"):
        assert name in str(error.value)
    assert not (tmp_path / "prepared").exists()
    made = prepare(load_recipe(written()), shapes, tmp_path / "prepared", partial=True)
    assert {(label, reason) for _, label, reason in listed(made.record.source, tmp_path / "list")} == {
        ("red_star", None),
        ("blue_ring", None),
    }
    assert [entry.label for entry in read_vocabulary(made.queries)] == ["red_star", "blue_ring"]
    named = (tmp_path / "prepared/findings.csv").read_text()
    assert all(name in named for name in ("class-missing,dot", "class-extra,square", "class-case,Blue_Ring"))
    assert not made.record.whole


def test_parquet_that_index_reads_is_left_where_it_is(written: Recipe, tmp_path: Path) -> None:
    labels = ["red star", "red star", "blue ring", "blue ring", "dot", "dot"]
    images = {"image": [saved("PNG")] * 6, "label": labels, "path": [f"{i}.png" for i in range(6)]}
    pq.write_table(pa.table(images), tmp_path / "set.parquet")
    made = prepare(load_recipe(written()), tmp_path / "set.parquet", tmp_path / "prepared")
    assert made.record.source == str(tmp_path / "set.parquet")
    assert {entry.label for entry in read_vocabulary(made.queries)} == set(labels)


def test_other_parquet_is_written_as_index_reads_it(written: Recipe, tmp_path: Path) -> None:
    labels = ["red_star", "red star", "blue_ring", "Blue Ring", "dot", "dot", "square"]
    images = [{"bytes": saved("PNG"), "path": None}] * 7
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "set.parquet")
    made = prepare(load_recipe(written()), tmp_path / "set.parquet", tmp_path / "prepared", partial=True)
    rows = listed(made.record.source, tmp_path / "list")
    assert [label for _, label, _ in rows] == ["red_star", "red_star", "blue_ring", "blue_ring", "dot", "dot"]
    assert len({path for path, _, _ in rows}) == 6
    assert pq.read_table(tmp_path / "prepared/images")["image"].to_pylist() == [saved("PNG")] * 6


def test_set_without_any_image_is_refused(written: Recipe, tmp_path: Path) -> None:
    (tmp_path / "shapes/pictures/dot").mkdir(parents=True)
    with refused("no-images", "root"):
        prepare(load_recipe(written()), tmp_path / "shapes", tmp_path / "prepared", partial=True)


# Descriptions


def test_queries_of_every_kind_that_descriptions_allow(shapes: Path, written: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "descriptions.csv"
    file.write_text("class,description\nred star,five pointed arms\nblue_ring,an open circle\ndot,a filled circle\n")
    made = prepare(load_recipe(written()), shapes, tmp_path / "prepared", descriptions=file)
    assert read_vocabulary(made.queries)[:3] == [
        VocabularyEntry("red star", "name", "red_star"),
        VocabularyEntry("five pointed arms", "description", "red_star"),
        VocabularyEntry("red star, five pointed arms", "name+description", "red_star"),
    ]
    only = prepare(load_recipe(written(query_kinds=["description"])), shapes, tmp_path / "only", descriptions=file)
    assert [entry.kind for entry in read_vocabulary(only.queries)] == ["description"] * 3


def test_missing_descriptions_are_named(shapes: Path, written: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "descriptions.json"
    file.write_text(json.dumps({"oval": "no class at all"}))
    with refused("incomplete") as error:
        prepare(load_recipe(written()), shapes, tmp_path / "prepared", descriptions=file)
    assert "3 classes without a description: red_star, blue_ring, dot" in str(error.value)
    assert "oval" in str(error.value)
    made = prepare(load_recipe(written()), shapes, tmp_path / "prepared", descriptions=file, partial=True)
    assert [entry.kind for entry in read_vocabulary(made.queries)] == ["name"] * 3


@pytest.mark.parametrize(
    ("description", "named"),
    [
        ("The red star shines", True),
        ("Red-stars in the sky", True),
        ("a starry red thing", False),
        ("a red star", True),
        ("infrared starlight", False),
    ],
)
def test_description_that_names_its_class(tmp_path: Path, description: str, named: bool) -> None:
    file = tmp_path / "descriptions.json"
    file.write_text(json.dumps({"red_star": description}))
    texts, findings = read_descriptions(file, Vocabulary({"red_star": "red star"}))
    assert texts == {"red_star": [description]}
    assert [finding.kind for finding in findings] == (["description-names"] if named else [])


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("d.csv", "name,text\na,b\n", "wrong-columns"),
        ("d.json", "[1]", "malformed"),
        ("d.json", "{", "malformed"),
        ("d.json", "\xff", "not-utf-8"),
    ],
)
def test_files_that_are_no_descriptions(tmp_path: Path, name: str, content: str, code: str) -> None:
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with refused(code, "descriptions"):
        read_descriptions(tmp_path / name, Vocabulary({"a": "a"}))
    with refused("missing", "descriptions"):
        read_descriptions(tmp_path / "none.csv", Vocabulary({"a": "a"}))


# Commands


def test_commands_say_what_to_do_next(shapes: Path, written: Recipe, run: Run, tmp_path: Path) -> None:
    target = tmp_path / "prepared"
    said = run("dataset", "prepare", str(written()), str(target), "--root", str(shapes))
    assert said.code == 0, said.err
    assert "6 images of 3 classes" in said.out
    assert f"mindseye index {target}/images.parquet {target}" in said.out
    assert f"--templates {target}/templates.txt" in said.out
    assert run("dataset", "check", str(written()), "--root", str(shapes)).code == 0
    assert "oxford-pets" in run("dataset", "list").out


def test_templates_that_have_no_place_for_a_name(tmp_path: Path) -> None:
    (tmp_path / "templates.txt").write_text("a photo\n")
    with refused("template", "templates"):
        read_templates(tmp_path / "templates.txt")
    with refused("missing", "templates"):
        read_templates(tmp_path / "none.txt")
