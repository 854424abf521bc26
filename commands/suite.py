"""``mindseye suite``: several data sets, every method, as tables and one report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table as Shown

from commands.console import Cluster, out, quoted, say_made, say_next

if TYPE_CHECKING:  # what a command computes with is loaded when it runs
    from pipelines.suite_tables import Cell, Table


def suite(*targets: str, report: str, aggregator: list[str] | None = None, address: Cluster = None) -> None:
    """Measure every method on several data sets: text, images, both, as tables and as one report of them all.

    Parameters
    ----------
    targets
        Folders or URIs, in the order of the tables' columns; each has gallery and queries in it, as mindseye dataset
        prepare says how. The same data set with other models is a further row.
    report
        Folder or URI for report.html, which is whole by itself, and for the tables as Markdown, LaTeX and Parquet.
    aggregator
        A trained aggregator, measured where its models are; may be given again. It must not have learned from any
        label that is measured.
    """
    from pipelines.suite_report import suite as measure

    made = measure(targets, report, aggregators=aggregator or (), address=address, log=out.print)
    for table in made.tables:
        out.print(_shown(table))
    say_made(*made.files)
    say_next(f"look at {quoted(report, 'report.html')}")


def _shown(table: Table) -> Shown:
    from pipelines.suite_tables import LEGEND, method_name

    shown = Shown(title=f"queries by {table.kind}", title_justify="left", caption=LEGEND, caption_justify="left")
    for heading in ("models", "method"):
        shown.add_column(heading)
    for name in table.columns:
        shown.add_column(name, justify="right")
    before = None
    for (setting, system), cells in table.rows.items():
        models = " · ".join(setting) if setting != before else ""
        shown.add_row(models, method_name(system), *(_figure(cells.get(name)) for name in table.columns))
        before = setting
    return shown


def _figure(cell: Cell | None) -> str:
    return f"{cell.map.mean:.3f}{'*' if cell.differs else ' '}" if cell else "– "
