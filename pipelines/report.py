"""What an evaluation leaves in a folder: per-query results, a summary, a plot and a contact sheet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.session import session
from pipelines.contact_sheet import contact_sheet
from pipelines.evaluate import Evaluation, evaluate
from pipelines.plots import plot_evaluation
from retrieval.artifacts import Gallery, QuerySet, TrainedAggregator
from retrieval.folder import Folder
from retrieval.fusion import DEFAULT_WEIGHT
from retrieval.metrics import MEASURES

_WITH_INTERVAL = ("ap", "ap_step", "precision_at_10")
"""Measures whose bootstrap interval is worth its seconds; of the others a summary has the mean."""


@dataclass(frozen=True)
class Measured:
    """An evaluation and the files that were written of it."""

    evaluation: Evaluation
    files: list[str]


def measure(
    gallery: str | Path | Gallery,
    query_set: str | Path | QuerySet,
    report: str | Path,
    *,
    aggregator: str | Path | TrainedAggregator | None = None,
    weight: float | None = None,
    address: str | None = None,
) -> Measured:
    """Measure how well a query set finds the labelled images of a gallery, and write a report.

    Args:
        gallery: a labelled gallery, or its folder or URI.
        query_set: labelled queries of the same models, or their folder or URI.
        report: folder or URI of the report.
        aggregator: one that is measured beside the mean of the images, as ``trained``, or its folder or URI.
        weight: λ of the fused ranking of the mean; by default ``DEFAULT_WEIGHT``.
        address: where it runs, as ``cluster.session.session`` takes it.

    Returns:
        The evaluation, and the locations of the files of its report.

    Raises:
        UserError: an artifact cannot be opened, they do not fit together, or as ``evaluate``.
    """
    gallery = gallery if isinstance(gallery, Gallery) else Gallery.open(gallery)
    query_set = query_set if isinstance(query_set, QuerySet) else QuerySet.open(query_set)
    if aggregator is not None and not isinstance(aggregator, TrainedAggregator):
        aggregator = TrainedAggregator.open(aggregator)
    Folder(report).create()  # where that fails, it should before hours of ranking
    with session(address):
        evaluation = evaluate(
            gallery,
            query_set,
            weight=DEFAULT_WEIGHT if weight is None else weight,
            aggregators={"trained": aggregator} if aggregator else None,
        )
        shown = evaluation.weights[evaluation.systems[-1]]
        files = write_report(
            evaluation, lambda: contact_sheet(gallery, query_set, shown, aggregator=aggregator), report
        )
    return Measured(evaluation, files)


def write_report(evaluation: Evaluation, sheet: Callable[[], bytes], target: str | Path) -> list[str]:
    """Write ``results.parquet`` (one row per query and system), ``summary.json``, ``gains.png``, ``contact-sheet.png``.

    Args:
        evaluation: what was measured.
        sheet: draws the contact sheet, PNG bytes. It reads the gallery's pictures, which may fail, so it is called when
            the results are written.
        target: folder or URI.

    Returns:
        The locations of the four files.
    """
    folder = Folder(target)
    folder.write_table("results.parquet", evaluation.table)
    folder.write_json("summary.json", summary(evaluation))
    folder.write_bytes("gains.png", plot_evaluation(evaluation))
    folder.write_bytes("contact-sheet.png", sheet())
    return [(folder / name).uri for name in ("results.parquet", "summary.json", "gains.png", "contact-sheet.png")]


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """Return the figures of an evaluation by kind and system, JSON-ready."""
    kinds = {}
    for kind in evaluation.kinds:
        systems = {}
        for system in evaluation.systems:
            figures: dict[str, Any] = {column: vars(evaluation.mean(system, kind, column)) for column in _WITH_INTERVAL}
            for column in MEASURES.keys() - figures:
                figures[column] = {"mean": float(evaluation.values(system, kind, column).mean())}
            systems[system] = figures | {"gain_over_text": vars(evaluation.gain(system, kind))}
        kinds[kind] = {"queries": len(evaluation.values("text", kind)), "systems": systems}
    return {
        "gallery_rows": evaluation.gallery_rows,
        "weights": evaluation.weights,
        "unlabelled": evaluation.left_out.unlabelled,
        "labels_without_image": evaluation.left_out.absent_labels,
        "queries_without_relevant": evaluation.left_out.without_relevant,
        "relevant_not_in_gallery": evaluation.left_out.unknown_relevant,
        "junk_not_in_gallery": evaluation.left_out.unknown_junk,
        "kinds": kinds,
    }
