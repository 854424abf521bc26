"""``mindseye evaluate``: how well a query set finds the images of a gallery."""

from __future__ import annotations

from commands.console import Cluster, out, say_made, say_next


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
    from cluster.session import session
    from pipelines.contact_sheet import contact_sheet
    from pipelines.evaluate import evaluate as run
    from pipelines.report import results_table, write_report
    from retrieval.artifacts import Gallery, QuerySet, TrainedAggregator
    from retrieval.folder import Folder
    from retrieval.fusion import DEFAULT_WEIGHT

    images, texts = Gallery.open(gallery), QuerySet.open(query_set)
    trained = TrainedAggregator.open(aggregator) if aggregator else None
    with session(address):
        aggregators = {"trained": trained} if trained else {}
        evaluation = run(images, texts, weight=DEFAULT_WEIGHT if weight is None else weight, aggregators=aggregators)
    out.print(results_table(evaluation, gallery))
    if evaluation.unlabelled:
        out.print(f"{evaluation.unlabelled} queries have no label and were not measured")
    if absent := evaluation.without_positive:
        out.print(f"{len(absent)} labels have no image in the gallery and were not measured: {', '.join(absent[:10])}")
    reports = write_report(evaluation, report)
    shown = evaluation.weights["trained" if trained else "fused"]
    sheet = contact_sheet(images, texts, shown, aggregator=trained)
    Folder(report).write_bytes("contact-sheet.png", sheet)
    say_made(*reports, f"{report}/contact-sheet.png")
    say_next(f"look at {report}/contact-sheet.png")
