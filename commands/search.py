"""``mindseye search``: one text, answered in this process."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table

from commands.console import Profile, out, quoted, say_made, say_next

if TYPE_CHECKING:  # --help need not wait for PyTorch
    from retrieval.finder import Answer


def search(
    text: str,
    target: str,
    *,
    k: int = 10,
    mode: Literal["text", "visual", "fused"] = "fused",
    weight: float | None = None,
    images: int | None = None,
    seed: int = 0,
    aggregator: str | None = None,
    profile: Profile = "tiny",
    sheet: Path | None = None,
) -> None:
    """Find images by words.

    Parameters
    ----------
    text
        What to find: a name or a description.
    target
        What mindseye index (or mindseye demo) made, or an index itself.
    k
        Number of results.
    mode
        Rank by text alone, by imagined images alone, or by both.
    weight
        λ of the fused ranking, 0 to 1; by default the aggregator's, else 0.5.
    images
        Images to imagine; by default the profile's.
    seed
        Seed of the images.
    aggregator
        A trained aggregator; by default the profile's. Without one, the images are averaged.
    sheet
        Save a contact sheet (PNG) here.
    """
    from cluster.loading import open_finder
    from cluster.profile import load_profile

    settings = load_profile(profile)
    wanted = settings.queries.images if images is None else images
    finder = open_finder(target, settings, aggregator=aggregator)
    answer = finder.search(text, k, mode=mode, weight=weight, images=wanted, seed=seed)
    _print(answer, text)
    if sheet:
        from pipelines.answer_sheet import answer_sheet

        sheet.write_bytes(answer_sheet(text, answer, finder.index))
        say_made(str(sheet))
    else:
        say_next(f"mindseye search {shlex.quote(text)} {quoted(target)} --sheet found.png")


def _print(answer: Answer, text: str) -> None:
    if answer.degraded:
        out.print(f"ranked by text alone: {answer.degraded}", style="yellow")
    table = Table(title=f"{text}   (λ = {answer.weight:.2f})", title_justify="left")
    for heading in ("", "score", "text part", "visual part", "label", "path"):
        table.add_column(heading, justify="left" if heading in ("label", "path") else "right")
    for i, found in enumerate(answer, 1):
        parts = (f"{value:.4f}" for value in (found.score, found.text_part, found.visual_part))
        table.add_row(str(i), *parts, found.label or "", found.path)
    out.print(table)
