"""``mindseye dataset``: public data sets by name: what there is, whether a download is whole, and preparing it."""

from __future__ import annotations

import json as json_format
import sys
from typing import TYPE_CHECKING

from cyclopts import App
from rich.progress import Progress
from rich.table import Table

from commands.console import err, out, quoted, say_made, say_next

if TYPE_CHECKING:  # what a command computes with is loaded when it runs
    from retrieval.datasets.check import Checked
    from retrieval.datasets.findings import Finding
    from retrieval.datasets.recipe import Recipe

SHOWN = 40
"""Findings of a kind that are printed."""

app = App(name="dataset", help="Public data sets: list them, check a download, prepare it for index and queries.")


@app.command(name="list")
def list_() -> None:
    """List the data sets that there are recipes of, and where each is documented."""
    from retrieval.datasets.recipe import load_recipe, recipe_names

    table = Table(title="Data sets", title_justify="left", caption_justify="left")
    table.caption = "mindseye downloads none of them, and the terms of each are its own"
    for heading in ("name", "data set", "images", "classes", "split", "licence"):
        table.add_column(heading, justify="right" if heading in ("images", "classes") else "left", overflow="fold")
    for name in recipe_names():
        recipe = load_recipe(name)
        images = f"{recipe.expected.images:,}" if recipe.expected.images else "varies"
        table.add_row(name, recipe.title, images, f"{recipe.expected.classes:,}", recipe.split, recipe.licence)
    out.print(table)


@app.command
def check(name: str, *, root: str, json: bool = False) -> None:
    """Report what a download has of a data set, class by class, and what is wrong with it. Every image is decoded.

    It exits with 1 if something is wrong.

    Parameters
    ----------
    name
        Of the data set, as mindseye dataset list has it; or a recipe of your own, a YAML file.
    root
        The folder of the unpacked download, or one Parquet file with columns image and label.
    json
        Print JSON: the count of every class, and every finding.
    """
    from cluster.cores import usable_cores
    from retrieval.datasets.check import Checked, check_counts, unreadable
    from retrieval.datasets.recipe import load_recipe

    recipe = load_recipe(name)
    counted = check_counts(recipe, root)
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("decoding images", total=len(counted.contents.images))
        broken = unreadable(counted.contents, usable_cores(), lambda count: progress.advance(task, count))
    checked = Checked(recipe, counted.contents, counted.counts, counted.findings + broken)
    if json:
        out.print(_as_json(checked), soft_wrap=True)
    else:
        _print(checked)
    if not checked.is_whole:
        sys.exit(1)
    if not json:
        say_next(f"mindseye dataset prepare {quoted(name)} --root {quoted(root)} TARGET")


@app.command
def prepare(name: str, target: str, *, root: str, descriptions: str | None = None, partial: bool = False) -> None:
    """Write what mindseye index and mindseye queries read of a data set. Its images stay where they are.

    Parameters
    ----------
    name
        Of the data set, as mindseye dataset list has it; or a recipe of your own, a YAML file.
    target
        Folder or URI for the list of images, the queries, the prompt templates and a record of what was found.
    root
        The folder of the unpacked download, or one Parquet file with columns image and label.
    descriptions
        CSV with columns class and description, or a JSON object of them: queries of descriptions too.
    partial
        Prepare what there is, although something is missing or wrong.
    """
    from retrieval.datasets.prepare import prepare as prepare_set
    from retrieval.datasets.recipe import load_recipe

    made = prepare_set(load_recipe(name), root, target, descriptions=descriptions, partial=partial)
    _print_findings(made.checked.findings)
    record = made.record
    out.print(f"{record.title}: {record.images:,} images of {record.classes:,} classes ({record.layout})")
    say_made(*(place for place in (record.source, made.queries, made.templates, made.findings)))
    say_next(
        f"mindseye index {quoted(record.source)} {quoted(target)}",
        f"mindseye queries {quoted(made.queries)} {quoted(target, 'queries')} --templates {quoted(made.templates)}",
        f"mindseye evaluate {quoted(target, 'gallery')} {quoted(target, 'queries')} {quoted(target, 'report')}",
    )


def _print(checked: Checked) -> None:
    _print_head(checked.recipe)
    out.print(checked.contents.layout, soft_wrap=True)
    _print_counts(checked)
    _print_findings(checked.findings)
    total = f"{len(checked.contents.images):,} images of {sum(c.found > 0 for c in checked.counts):,} classes"
    out.print(f"{total}: {'as expected' if checked.is_whole else 'not what the data set should be'}")


def _print_head(recipe: Recipe) -> None:
    out.print(f"{recipe.title}, {recipe.split}; {recipe.licence}", soft_wrap=True)
    if recipe.note:
        out.print(recipe.note, soft_wrap=True)


def _print_counts(checked: Checked) -> None:
    from retrieval.datasets.findings import span

    right = [count for count in checked.counts if count.found and count.is_right]
    spans = {span(count.expected) for count in right if count.expected}
    each = f" ({spans.pop()} each)" if len(spans) == 1 else ""
    known = "as many images as expected" if spans or each else "images"
    out.print(f"{len(right):,} of {len(checked.counts):,} classes have {known}{each}")


def _print_findings(findings: list[Finding]) -> None:
    from retrieval.datasets.findings import TITLES, WARNINGS, by_kind

    for kind, of_kind in by_kind(findings).items():
        style = "" if kind in WARNINGS else "red"
        out.print(f"{len(of_kind):,} {TITLES[kind]}:", style=style)
        for finding in of_kind[:SHOWN]:
            out.print(f"  {finding.name}: {finding.detail}", soft_wrap=True)
        if len(of_kind) > SHOWN:
            out.print(f"  and {len(of_kind) - SHOWN:,} more; check --json, or findings.csv of prepare, has all of them")


def _as_json(checked: Checked) -> str:
    content = {
        "name": checked.recipe.name,
        "layout": checked.contents.layout,
        "images": len(checked.contents.images),
        "whole": checked.is_whole,
        "classes": [count._asdict() for count in checked.counts],
        "findings": [finding._asdict() for finding in checked.findings],
    }
    return json_format.dumps(content, indent=2, ensure_ascii=False)
