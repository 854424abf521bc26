"""What an evaluation leaves in a folder: per-query results, a summary, a plot and a contact sheet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.profile import Profile, load_profile
from cluster.session import session
from pipelines.contact_sheet import contact_sheet, evidence_sheet
from pipelines.evaluate import Evaluation, evaluate, evaluate_evidence
from pipelines.evidence_file import is_evidence_file, read_evidence_file
from pipelines.evidence_vectors import known_vectors
from pipelines.openings import openings_of_evidence, openings_of_set
from pipelines.plots import plot_evaluation, plot_rounds
from pipelines.rounds import Rounds, simulate
from retrieval.artifacts import Gallery, QuerySet, TrainedAggregator
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.fusion import DEFAULT_WEIGHT, check_weight
from retrieval.metrics import MEASURES

_WITH_INTERVAL = ("ap", "ap_step", "precision_at_10")
"""Measures whose bootstrap interval is worth its seconds; of the others a summary has the mean."""


@dataclass(frozen=True)
class Measured:
    """An evaluation, what simulated users found in rounds if that was asked for, and the files that were written."""

    evaluation: Evaluation
    files: list[str]
    rounds: Rounds | None = None


def measure(
    gallery: str | Path | Gallery,
    query_set: str | Path | QuerySet,
    report: str | Path,
    *,
    aggregator: str | Path | TrainedAggregator | None = None,
    weight: float | None = None,
    rounds: int | None = None,
    profile: str | Path | Profile = "tiny",
    address: str | None = None,
) -> Measured:
    """Measure how well queries find the relevant images of a gallery, and write a report.

    Args:
        gallery: a gallery, or its folder or URI.
        query_set: queries of the same models with labels or relevant rows, or their folder or URI; or a file of queries
            made of evidence (``….jsonl``, docs/evidence.md).
        report: folder or URI of the report.
        aggregator: one that is measured beside the mean of the images, as ``trained``, or its folder or URI.
        weight: λ of the fused ranking of the mean; by default ``DEFAULT_WEIGHT``.
        rounds: so many rounds of a simulated user are measured, too (``pipelines.rounds``).
        profile: of the models that made the gallery; needed for a file of evidence alone.
        address: where it runs, as ``cluster.session.session`` takes it.

    Returns:
        The evaluation, and the locations of the files of its report.

    Raises:
        UserError: an artifact cannot be opened, they do not fit together, or as ``read_evidence_file``,
            ``known_vectors``, ``evaluate`` and ``simulate``.
    """
    gallery = gallery if isinstance(gallery, Gallery) else Gallery.open(gallery)
    settings, queries = load_profile(profile), None
    if not isinstance(query_set, QuerySet):
        if is_evidence_file(query_set):
            queries = read_evidence_file(query_set)
        else:
            query_set = QuerySet.open(query_set)
    if aggregator is not None and not isinstance(aggregator, TrainedAggregator):
        aggregator = TrainedAggregator.open(aggregator)
    if rounds is not None and rounds < 1:
        raise UserError(f"there must be at least one round, not {rounds}", code="out-of-range", field="rounds")
    lam = float(check_weight(DEFAULT_WEIGHT if weight is None else weight))
    Folder(report).create()  # where that fails, it should before hours of ranking
    aggregators = {"trained": aggregator} if aggregator else None
    with session(address):
        if queries is not None:
            known = known_vectors(gallery, queries, settings, aggregator=aggregator, edits=rounds is not None)
            evaluation = evaluate_evidence(gallery, queries, known, weight=lam, aggregators=aggregators)
            opened = partial(openings_of_evidence, queries, known, aggregator)
            sheet = partial(evidence_sheet, gallery, queries, known)
        else:
            assert isinstance(query_set, QuerySet)
            evaluation = evaluate(gallery, query_set, weight=lam, aggregators=aggregators)
            opened, sheet = partial(openings_of_set, query_set, aggregator), partial(contact_sheet, gallery, query_set)
        shown = evaluation.weights[evaluation.systems[-1]]
        measured = set(evaluation.table["query"].to_pylist())
        found = rounds and simulate(gallery, [each for each in opened() if each.id in measured], rounds, weight=shown)
        files = write_report(evaluation, lambda: sheet(shown, aggregator=aggregator), report, found or None)
    return Measured(evaluation, files, found or None)


def write_report(
    evaluation: Evaluation, sheet: Callable[[], bytes], target: str | Path, rounds: Rounds | None = None
) -> list[str]:
    """Write ``results.parquet`` (one row per query and system), ``summary.json``, ``gains.png``, ``contact-sheet.png``,
    and of rounds ``rounds.parquet`` (one row per query, round and system) and ``rounds.png``.

    Args:
        evaluation: what was measured.
        sheet: draws the contact sheet, PNG bytes. It reads the gallery's pictures, which may fail, so it is called when
            the results are written.
        target: folder or URI.
        rounds: what simulated users found.

    Returns:
        The locations of the files.
    """
    folder, names = Folder(target), ["results.parquet", "summary.json", "gains.png", "contact-sheet.png"]
    folder.write_table("results.parquet", evaluation.table)
    folder.write_json("summary.json", summary(evaluation) | ({"rounds": rounds.summary()} if rounds else {}))
    folder.write_bytes("gains.png", plot_evaluation(evaluation))
    if rounds:
        folder.write_table("rounds.parquet", rounds.table)
        folder.write_bytes("rounds.png", plot_rounds(rounds))
        names += ["rounds.parquet", "rounds.png"]
    folder.write_bytes("contact-sheet.png", sheet())
    return [(folder / name).uri for name in names]


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
