"""A data set, prepared: what indexing and imagining read of it, with its images left in place where they can be."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Final

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from retrieval.datasets.check import Checked, check_counts
from retrieval.datasets.contents import Contents
from retrieval.datasets.descriptions import read_descriptions
from retrieval.datasets.findings import TITLES, Finding, by_kind, faults
from retrieval.datasets.recipe import Recipe
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.prompts import query_text

RECORD: Final = "dataset.json"
_IMAGES, _QUERIES, _TEMPLATES, _FINDINGS = "images.parquet", "queries.csv", "templates.txt", "findings.csv"
_ROWS_PER_FILE = 4096
_SHOWN = 20


class DatasetRecord(BaseModel):
    """What was prepared: the file ``dataset.json`` beside it."""

    model_config = ConfigDict(frozen=True)

    name: str
    """Of the recipe."""
    title: str
    split: str
    licence: str
    layout: str
    """In words, how the set lay on disk."""
    source: str
    """What a gallery is made of."""
    images: int
    classes: int
    """Those that have an image."""
    expected_images: int | None
    expected_classes: int
    whole: bool
    """Whether nothing was wrong with it."""


class Prepared(BaseModel):
    """What ``prepare`` made: locations, and what was found."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    record: DatasetRecord
    checked: Checked
    queries: str
    templates: str
    findings: str


def prepare(
    recipe: Recipe,
    root: str | Path,
    target: str | Path,
    *,
    descriptions: str | Path | None = None,
    partial: bool = False,
) -> Prepared:
    """Write what indexing and imagining read of a data set, beside a record of it.

    ``images.parquet``: a list of the images in place, with their labels; where labels in Parquet cannot be used as they
    are, and of pickled pixels, a folder ``images`` of Parquet with the images in it. ``queries.csv``: the classes as
    queries of each kind that the recipe has; ``templates.txt``: its prompt templates; ``findings.csv``: what was not as
    expected.

    Args:
        recipe: of the data set.
        root: the folder of the download, or one Parquet file.
        target: a folder or URI; what an earlier call made there is made again.
        descriptions: a file of descriptions (``read_descriptions``); without, queries are names alone.
        partial: prepare what there is, whatever is missing.

    Returns:
        What was made.

    Raises:
        UserError: the set is not whole (``incomplete``), none of its images is there (``no-images``), or as
            ``read_contents`` and ``read_descriptions``.
    """
    checked = check_counts(recipe, root)
    texts: dict[str, list[str]] = {}
    if descriptions is not None:
        texts, more = read_descriptions(descriptions, checked.contents.classes)
        checked = Checked(recipe, checked.contents, checked.counts, checked.findings + more)
    if not checked.contents.images:
        message = f"{root} has no image of {recipe.title}: {_in_short(checked.findings)}"
        raise UserError(message, code="no-images", field="root")
    if not (partial or checked.is_whole):
        message = (
            f"{recipe.title} in {root} is not what it should be, and nothing was prepared:\n"
            f"{_in_short(checked.findings)}\nComplete it, or ask for what there is (partial)."
        )
        raise UserError(message, code="incomplete", field="root")
    folder = Folder(target)
    folder.create()
    source, labels = _write_images(checked.contents, folder)
    queries, of_classes = _queries(checked, texts, labels)
    folder.write_bytes(_QUERIES, _as_csv(["name", "text", "kind", "label"], queries))
    folder.write_bytes(_TEMPLATES, "".join(f"{each}\n" for each in recipe.sentences()).encode())
    folder.write_bytes(_FINDINGS, _as_csv(Finding._fields, checked.findings))
    record = DatasetRecord(
        name=recipe.name,
        title=recipe.title,
        split=recipe.split,
        licence=recipe.licence,
        layout=checked.contents.layout,
        source=source,
        images=len(checked.contents.images),
        classes=of_classes,
        expected_images=recipe.expected.images,
        expected_classes=recipe.expected.classes,
        whole=checked.is_whole,
    )
    folder.write_json(RECORD, record.model_dump(mode="json"))
    places = {name: (folder / file).uri for name, file in (("queries", _QUERIES), ("templates", _TEMPLATES))}
    return Prepared(record=record, checked=checked, findings=(folder / _FINDINGS).uri, **places)


def _in_short(findings: Sequence[Finding]) -> str:
    """Return findings in a line for each kind, the first of them by name."""
    lines = []
    for kind, of_kind in by_kind(faults(findings)).items():
        shown = ", ".join(f"{each.name} {each.detail}" if len(of_kind) == 1 else each.name for each in of_kind[:_SHOWN])
        more = f" and {len(of_kind) - _SHOWN:,} more" if len(of_kind) > _SHOWN else ""
        lines.append(f"  {len(of_kind):,} {TITLES[kind]}: {shown}{more}")
    return "\n".join(lines)


def _queries(
    checked: Checked, descriptions: dict[str, list[str]], labels: dict[str, str]
) -> tuple[list[tuple[str, ...]], int]:
    """Return the rows of the query file, and of how many classes they are: of those that have an image."""
    rows: list[tuple[str, ...]] = []
    classes = [count for count in checked.counts if count.found]
    for count in classes:
        for kind in checked.recipe.query_kinds:
            for description in descriptions.get(count.key, []) if "description" in kind else [None]:
                if count.name or "name" not in kind:
                    text = query_text(kind, count.name, description)
                    rows.append((count.name, text, kind, labels[count.key]))
    return rows, len(classes)


def _write_images(contents: Contents, folder: Folder) -> tuple[str, dict[str, str]]:
    """Write what has the images, or the list of them; return where it is, and the label of each class in it."""
    packed = contents.packed
    if packed is None:
        rows = sorted(contents.images)
        listed = {
            "path": [str(contents.root / image.path) for image in rows],
            "label": [image.key for image in rows],
            "name": [contents.classes.names[image.key] for image in rows],
        }
        folder.write_table(_IMAGES, pa.table(listed))
        return (folder / _IMAGES).uri, {key: key for key in contents.classes.names}
    spellings = {image.label: image.key for image in contents.images}
    everything = not any(finding.kind in ("class-extra", "image-unlabelled") for finding in contents.findings)
    if packed.source and everything and len(set(spellings.values())) == len(spellings):
        return packed.source, {key: label for label, key in spellings.items()}
    folder.delete("images")
    waiting: list[pa.Table] = []
    number = 0
    paths = iter(path for path, _ in packed.rows())
    for table in packed.tables():
        here = [next(paths) for _ in range(len(table))]
        keys = [spellings.get(label or "") for label in table["label"].to_pylist()]
        names = [contents.classes.names[key] if key else None for key in keys]
        columns = {"path": here, "image": table["image"], "label": keys, "name": names}
        waiting.append(pa.table(columns).filter(pa.array([key is not None for key in keys])))
        if sum(map(len, waiting)) >= _ROWS_PER_FILE:
            folder.write_table(f"images/{number:06d}.parquet", pa.concat_tables(waiting))
            waiting, number = [], number + 1
    if waiting:
        folder.write_table(f"images/{number:06d}.parquet", pa.concat_tables(waiting))
    return (folder / "images").uri, {key: key for key in contents.classes.names}


def _as_csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    out = StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue().encode()
