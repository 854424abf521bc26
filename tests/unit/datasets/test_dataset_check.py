"""Downloads that are wrong or partial: each fault is named, none is silently dropped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Run
from errors import refused
from pictures import BROKEN, png_of_declared_size, saved

from retrieval.datasets.check import check_counts, unreadable
from retrieval.datasets.findings import Finding
from retrieval.datasets.recipe import load_recipe

Recipe = Callable[..., Path]


def found(recipe: Path, root: Path) -> set[tuple[str, str]]:
    """Return kind and name of all findings, those of the pictures too."""
    checked = check_counts(load_recipe(recipe), root)
    findings = checked.findings + unreadable(checked.contents, 2, lambda _: None)
    return {(finding.kind, finding.name) for finding in findings}


def test_whole_download_has_no_findings(shapes: Path, written: Recipe) -> None:
    checked = check_counts(load_recipe(written()), shapes)
    assert checked.is_whole
    assert not checked.findings
    assert [(count.key, count.found, count.expected) for count in checked.counts] == [
        ("red_star", 2, (2, 2)),
        ("blue_ring", 2, (2, 2)),
        ("dot", 2, (2, 2)),
    ]
    assert unreadable(checked.contents, 2, lambda _: None) == []


def test_class_missing_and_class_that_should_not_be_there(shapes: Path, written: Recipe) -> None:
    (shapes / "pictures/dot").rename(shapes / "pictures/square")
    assert found(written(), shapes) == {("class-missing", "dot"), ("class-extra", "square"), ("image-count", "in all")}


@pytest.mark.parametrize("name", ["Red_Star", "red star", "RED-STAR"])
def test_class_written_otherwise_is_named_and_counted(shapes: Path, written: Recipe, name: str) -> None:
    (shapes / "pictures/red_star").rename(shapes / "pictures" / name)
    checked = check_counts(load_recipe(written()), shapes)
    expected = [] if name == "red star" else [("class-case", name)]  # that is what it is called, as well as its key
    assert [(finding.kind, finding.name) for finding in checked.findings] == expected
    assert checked.counts[0].found == 2


def test_counts_of_classes_that_differ(shapes: Path, written: Recipe) -> None:
    (shapes / "pictures/dot/1.png").unlink()
    (shapes / "pictures/red_star/more.png").write_bytes(saved("PNG"))
    checked = check_counts(load_recipe(written()), shapes)
    assert checked.findings == [
        Finding("class-count", "red_star", "3 images, expected 2"),
        Finding("class-count", "dot", "1 images, expected 2"),
    ]
    assert not checked.is_whole


def test_every_kind_of_unreadable_picture_is_named_with_its_reason(shapes: Path, written: Recipe) -> None:
    for name, (data, _) in BROKEN.items():
        place = shapes / "pictures/dot" / Path(name).name
        if data is None:
            place.symlink_to("nothing")
        else:
            place.write_bytes(data)
    (shapes / "pictures/dot/bomb.png").write_bytes(png_of_declared_size(50_000))
    checked = check_counts(load_recipe(written()), shapes)
    named = {
        finding.name: finding.detail.partition(":")[0]
        for finding in [*checked.findings, *unreadable(checked.contents, 2, lambda _: None)]
        if finding.kind in ("unreadable", "not-an-image")
    }
    expected = {f"pictures/dot/{Path(name).name}": reason for name, (_, reason) in BROKEN.items()}
    del named["pictures/dot/paper.pdf"]  # it has not the name of an image, and is said to be left out
    del expected["pictures/dot/paper.pdf"]
    assert named == expected


def test_files_beside_the_classes_are_named(shapes: Path, written: Recipe) -> None:
    (shapes / "pictures/loose.png").write_bytes(saved("PNG"))
    (shapes / "pictures/dot/Thumbs.db").write_bytes(b"x")
    (shapes / "pictures/.hidden").write_bytes(b"x")
    assert found(written(), shapes) == {
        ("image-unlabelled", "pictures/loose.png"),
        ("not-an-image", "pictures/dot/Thumbs.db"),
    }


# Images that the set's own files list


@pytest.fixture
def listed(shapes: Path, written: Recipe) -> Path:
    (shapes / "test.txt").write_text("dot/0.png dot\nred_star/0.png red_star\nblue_ring/1.png blue_ring\n")
    return written(
        expected={"classes": 3},
        layouts=[
            {
                "kind": "listed",
                "tables": [{"file": "test.txt", "pattern": r"(?P<file>\S+) (?P<label>\S+)"}],
                "image": "pictures/{file}",
            }
        ],
    )


def test_listed_images_alone_are_the_set(shapes: Path, listed: Path) -> None:
    checked = check_counts(load_recipe(listed), shapes)
    assert checked.is_whole
    assert sorted(image.path for image in checked.contents.images) == [
        "pictures/blue_ring/1.png",
        "pictures/dot/0.png",
        "pictures/red_star/0.png",
    ]


def test_listed_image_that_is_not_there_or_written_otherwise(shapes: Path, listed: Path) -> None:
    (shapes / "pictures/dot/0.png").unlink()
    (shapes / "pictures/red_star/0.png").rename(shapes / "pictures/red_star/0.PNG")
    assert found(listed, shapes) == {
        ("image-missing", "pictures/dot/0.png"),
        ("class-missing", "dot"),
        ("image-case", "pictures/red_star/0.png"),
    }
    images = check_counts(load_recipe(listed), shapes).contents.images
    assert "pictures/red_star/0.PNG" in {image.path for image in images}


def test_lines_that_lead_out_of_the_folder_are_not_followed(shapes: Path, listed: Path) -> None:
    secret = shapes.parent / "secret.png"
    secret.write_bytes(saved("PNG"))
    (shapes / "pictures/dot/link.png").symlink_to(secret)
    (shapes / "pictures/away").symlink_to(shapes.parent)
    with (shapes / "test.txt").open("a") as file:
        file.write("../../secret.png dot\ndot/link.png dot\naway/secret.png dot\n")
    checked = check_counts(load_recipe(listed), shapes)
    outside = {finding.name for finding in checked.findings if finding.kind == "outside"}
    assert outside == {"pictures/../../secret.png", "pictures/dot/link.png", "pictures/away/secret.png"}
    assert len(checked.contents.images) == 3


def test_lines_that_are_not_of_the_form_are_named(shapes: Path, listed: Path) -> None:
    with (shapes / "test.txt").open("a") as file:
        file.write("half a line of it\n")
    assert ("bad-line", "test.txt, line 4") in found(listed, shapes)


def test_list_that_is_a_link_out_of_the_folder_is_not_read(shapes: Path, listed: Path) -> None:
    (shapes / "test.txt").rename(shapes.parent / "test.txt")
    (shapes / "test.txt").symlink_to(shapes.parent / "test.txt")
    with refused("no-layout", "root"):
        check_counts(load_recipe(listed), shapes)


# Parquet


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    def write(labels: list[str | int | None], metadata: dict[bytes, bytes] | None = None) -> Path:
        file = tmp_path / "set.parquet"
        images = [{"bytes": saved("PNG"), "path": None}] * len(labels)
        table = pa.table({"image": images, "label": labels})
        pq.write_table(table.replace_schema_metadata(metadata), file)
        return file

    return write


def test_parquet_with_labels_by_name_and_key(written: Recipe, parquet: Callable[..., Path]) -> None:
    file = parquet(["red star", "red_star", "Blue Ring", "square", None, "dot"])
    assert found(written(), file) == {
        ("class-case", "Blue Ring"),
        ("class-extra", "square"),
        ("class-count", "blue_ring"),
        ("class-count", "dot"),
        ("image-unlabelled", "set-000004"),
        ("image-count", "in all"),
    }


def test_parquet_of_the_hub_names_its_numbers(written: Recipe, parquet: Callable[..., Path]) -> None:
    features = {"label": {"names": ["dot", "red_star", "blue_ring"], "_type": "ClassLabel"}}
    file = parquet([0, 1, 2, 2, 1, 0], {b"huggingface": json.dumps({"info": {"features": features}}).encode()})
    checked = check_counts(load_recipe(written()), file)
    assert checked.is_whole
    assert [image.key for image in checked.contents.images][:3] == ["dot", "red_star", "blue_ring"]


def test_numbers_that_nothing_names_are_refused(written: Recipe, parquet: Callable[..., Path]) -> None:
    with refused("no-names", "root"):
        check_counts(load_recipe(written()), parquet([0, 1, 2]))


def test_numbers_in_the_order_of_the_recipe(written: Recipe, parquet: Callable[..., Path]) -> None:
    hub = {"name": "a/shapes", "files": "*.parquet", "ordered": True}
    checked = check_counts(load_recipe(written(huggingface=hub)), parquet([0, 1, 2, 7]))
    assert [image.key for image in checked.contents.images] == ["red_star", "blue_ring", "dot"]
    assert ("image-unlabelled", "set-000003") in {(each.kind, each.name) for each in checked.findings}


def test_broken_row_of_parquet_is_named(written: Recipe, tmp_path: Path) -> None:
    table = pa.table({"image": [saved("PNG"), b"no picture", None], "label": ["dot"] * 3, "path": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "set.parquet")
    names = found(written(), tmp_path / "set.parquet")
    assert {("unreadable", "b"), ("unreadable", "c")} <= names


# What is no data set at all


def test_folders_without_the_set_say_what_was_expected(tmp_path: Path, written: Recipe) -> None:
    (tmp_path / "empty").mkdir()
    with refused("no-layout", "root") as error:
        check_counts(load_recipe(written()), tmp_path / "empty")
    assert "a folder for each class in pictures" in str(error.value)
    with refused("missing", "root"):
        check_counts(load_recipe(written()), tmp_path / "nowhere")


def test_command_prints_what_is_wrong_and_exits_with_1(shapes: Path, written: Recipe, run: Run) -> None:
    (shapes / "pictures/dot/0.png").write_bytes(b"")
    said = run("dataset", "check", str(written()), "--root", str(shapes))
    assert said.code == 1
    assert "3 of 3 classes have as many images as expected (2 each)" in said.out
    assert "pictures/dot/0.png: empty" in said.out
    said = run("dataset", "check", str(written()), "--root", str(shapes), "--json")
    assert said.code == 1
    content = json.loads(said.out)
    assert [each["found"] for each in content["classes"]] == [2, 2, 2]
    assert [each["name"] for each in content["findings"]] == ["pictures/dot/0.png"]
