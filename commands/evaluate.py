"""``mindseye evaluate``: how well a query set finds the images of a gallery."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands.console import Cluster, out, quoted, say_made, say_next
from commands.results import results_table

if TYPE_CHECKING:  # PyTorch and Ray take seconds, which --help need not wait for
    from pipelines.report import Measured


def evaluate(
    gallery: str,
    query_set: str,
    report: str,
    *,
    aggregator: str | None = None,
    weight: float | None = None,
    address: Cluster = None,
) -> None:
    """Measure how well a query set finds the labelled images of a gallery: by text alone, by images alone, by both.

    Parameters
    ----------
    gallery
        The gallery: TARGET/gallery of mindseye index.
    query_set
        The query set, of the same models.
    report
        Folder for per-query results, a plot and a contact sheet.
    aggregator
        A trained aggregator, measured beside the mean of the images; it must not have learned from these labels.
    weight
        λ of the fused ranking of the mean, 0 (text alone) to 1 (images alone); by default 0.5.
    """
    from pipelines.report import measure

    measured = measure(gallery, query_set, report, aggregator=aggregator, weight=weight, address=address)
    _print(measured, gallery)
    say_next(f"look at {quoted(report, 'contact-sheet.png')}")


def _print(measured: Measured, gallery: str) -> None:
    evaluation = measured.evaluation
    out.print(results_table(evaluation, gallery))
    for sentence in evaluation.left_out.sentences():
        out.print(sentence)
    say_made(*measured.files)
