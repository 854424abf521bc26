"""A suite as one call: measures several data sets, and writes tables and a report of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from cluster.progress import Log, silent
from cluster.session import session
from pipelines.suite import METHODS, Measurement, measure_all
from pipelines.suite_page import page
from pipelines.suite_tables import Table, as_arrow, as_latex, as_markdown, tables_of
from retrieval.artifacts import TrainedAggregator
from retrieval.artifacts.manifests import now
from retrieval.datasets.published import published
from retrieval.folder import Folder


@dataclass(frozen=True)
class Suite:
    """What was measured, its tables, and the files that were written."""

    measured: list[Measurement]
    tables: list[Table]
    files: list[str]


def suite(
    targets: Sequence[str | Path],
    report: str | Path,
    *,
    aggregators: Sequence[str | Path] = (),
    address: str | None = None,
    log: Log = silent,
) -> Suite:
    """Measure several data sets and write ``report.html``, ``tables.md``, ``tables.tex``, ``tables.parquet`` (a row for
    each cell) and ``results.parquet`` (a row for each data set, query and method).

    Args:
        targets: folders or URIs with ``gallery`` and ``queries`` in them, as ``measure_all`` takes them.
        report: folder or URI of the report.
        aggregators: folders or URIs of trained aggregators; each is measured where it fits.
        address: where it runs, as ``cluster.session.session`` takes it.
        log: is told which data set is measured.

    Returns:
        What was measured, and the locations of the files.

    Raises:
        UserError: as ``measure_all``, or an aggregator cannot be opened.
    """
    folder = Folder(report)
    folder.create()  # where that fails, it should before hours of ranking
    opened = [TrainedAggregator.open(each) for each in aggregators]
    with session(address):
        measured = measure_all(targets, aggregators=opened, log=log)
    tables, others = tables_of(measured), published()
    made = f"Made by mindseye {version('mindseye')}, {now()[:10]}, of {len(measured)} data sets."
    folder.write_table("results.parquet", pa.concat_tables([_results(one) for one in measured]))
    folder.write_table("tables.parquet", as_arrow(tables))
    folder.write_bytes("tables.md", as_markdown(tables, others).encode())
    folder.write_bytes("tables.tex", as_latex(tables).encode())
    folder.write_bytes("report.html", page(measured, tables, others, made).encode())
    names = ("report.html", "tables.md", "tables.tex", "tables.parquet", "results.parquet")
    return Suite(measured, tables, [(folder / name).uri for name in names])


def _results(one: Measurement) -> pa.Table:
    table = one.evaluation.table
    wanted = pa.array([system in METHODS for system in table["system"].to_pylist()])
    table = table.filter(wanted)
    for name, value in reversed([("dataset", one.dataset), *one.setting._asdict().items()]):
        table = table.add_column(0, name, pa.array([value] * len(table), pa.string()))
    return table
