"""``mindseye dataset``: public data sets by name: what there is, whether a download is whole, and preparing it."""

from __future__ import annotations

import asyncio
import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.progress import Progress
from rich.table import Table

from commands.console import INTERRUPTED, Profile, err, out, quoted, say_made, say_next
from retrieval.errors import UserError

if TYPE_CHECKING:  # what a command computes with is loaded when it runs
    from retrieval.assistant.endpoint import Spent
    from retrieval.datasets.check import Checked
    from retrieval.datasets.classes import Vocabulary
    from retrieval.datasets.describing import Making
    from retrieval.datasets.findings import Finding
    from retrieval.datasets.recipe import Recipe

SHOWN = 40
"""Findings of a kind that are printed."""

app = App(name="dataset", help="Public data sets: list, check, describe, and prepare for index and queries.")


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
        What mindseye dataset describe made, or other CSV with columns class and description, or a JSON object of them:
        queries of descriptions too.
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


@app.command
def describe(
    name: str,
    file: str,
    *,
    root: str | None = None,
    profile: Profile = "tiny",
    count: Annotated[int, Parameter(validator=Number(gte=1, lte=16))] = 1,
) -> None:
    """Have a language model describe the classes of a data set without naming them, into a file that a person reviews.

    Only what FILE lacks is made, and added at its end. Ctrl-C keeps what was made; the same command goes on.

    Parameters
    ----------
    name
        Of the data set, as mindseye dataset list has it; or a recipe of your own, a YAML file.
    file
        The file of descriptions, ending in .csv: a line for each, with its status (made, reviewed, rejected).
    root
        The folder of the download, where the classes are listed in its files.
    profile
        Names what describes: models.describer, on this machine, or else models.assistant.
    count
        Descriptions of each class.
    """
    from cluster.loading import load_describer
    from cluster.profile import load_profile
    from retrieval.datasets.describing import Making, make
    from retrieval.datasets.description_file import adding, read_csv
    from retrieval.datasets.recipe import load_recipe

    place = _csv_here(file)
    classes = _classes(load_recipe(name), root)
    making = Making.of(classes, read_csv(place) if place.exists() and place.stat().st_size else [], count)
    interrupted = False
    if making.wanted:
        describer = load_describer(load_profile(profile))
        with adding(place) as add, Progress(console=err, transient=True) as progress:
            task = progress.add_task("describing classes", total=len(making.wanted))
            try:
                asyncio.run(make(describer, making, add, lambda: progress.advance(task)))
            except KeyboardInterrupt:
                interrupted = True
        _print_spent(describer.spent)
    _print_making(making, place, count)
    if interrupted or making.failed:
        if interrupted or making.ended:
            out.print("interrupted" if interrupted else f"nothing more was asked: {making.ended}", soft_wrap=True)
        out.print("what was made is kept, and the same command goes on")
        sys.exit(INTERRUPTED if interrupted else 1)
    of_root = f" --root {quoted(root)}" if root else " --root ROOT"
    say_next(f"mindseye dataset prepare {quoted(name)} TARGET{of_root} --descriptions {quoted(place)}")


def _csv_here(file: str) -> Path:
    if "://" in file or not file.endswith(".csv"):
        message = f"FILE must be a path of this machine that ends in .csv, not {file}"
        raise UserError(message, code="wrong-name", field="file")
    place = Path(file).expanduser()
    if not place.absolute().parent.is_dir():
        raise UserError(f"there is no folder {place.absolute().parent}", code="missing", field="file")
    return place


def _classes(recipe: Recipe, root: str | None) -> Vocabulary:
    from retrieval.datasets.classes import known_vocabulary
    from retrieval.datasets.contents import read_contents

    if root is not None:
        return read_contents(recipe, root).classes
    if known := known_vocabulary(recipe.classes):
        return known
    message = f"the classes of {recipe.title} are listed in its own files: give their folder (root)"
    raise UserError(message, code="missing", field="root")


def _print_making(making: Making, file: Path, count: int) -> None:
    made = sum(each.status == "made" for each in making.added)
    rejected = [each for each in making.added if each.status == "rejected"]
    out.print(
        f"{len(making.names):,} classes, {count} descriptions each: {sum(making.wanted.values()):,} were missing,"
        f" {made:,} were made, {len(rejected):,} more were rejected"
    )
    flagged = [f"{each.label} {each.problem}{f': {each.text}' if each.text else ''}" for each in rejected]
    flagged += [f"{key} gives what the file has already: {what}" for key, what in making.again.items()]
    _print_some("answers that are not used, with the reason", flagged)
    _print_some("classes without an answer", [f"{key}: {why}" for key, why in making.failed.items()])
    if lacking := list(making.lacking(count)):
        named = ", ".join(lacking[:SHOWN]) + (f" and {len(lacking) - SHOWN:,} more" if len(lacking) > SHOWN else "")
        out.print(f"{len(lacking):,} classes still lack descriptions: {named}", soft_wrap=True)
    left = f"{making.unreviewed:,} descriptions are still to be reviewed"
    out.print(f"{left}: edit them, and set their status, in {file}", soft_wrap=True)


def _print_some(title: str, lines: list[str]) -> None:
    if lines:
        out.print(f"{len(lines):,} {title}:")
        for line in lines[:SHOWN]:
            out.print(f"  {line}", soft_wrap=True)
        if len(lines) > SHOWN:
            out.print(f"  and {len(lines) - SHOWN:,} more")


def _print_spent(spent: Spent) -> None:
    out.print(
        f"calls of the model: {spent.calls:,} ({spent.failed:,} failed), {spent.tokens_in:,} tokens in,"
        f" {spent.tokens_out:,} out"
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
