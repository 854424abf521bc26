"""The tables of a suite: rows models × methods, columns data sets and their average; as Markdown, LaTeX and Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.suite import FIXED, METHODS, Measurement, Setting
from retrieval.datasets.published import Published
from retrieval.metrics import Interval, bootstrap_mean, paired_bootstrap, stratified_mean
from retrieval.prompts import KINDS

AVERAGE: Final = "average"


class Cell(NamedTuple):
    """mAP of a method on a data set, or of all, and its paired gain over text; None of text itself."""

    map: Interval
    gain: Interval | None
    queries: int

    @property
    def differs(self) -> bool:
        """Whether the method is better or worse than text beyond chance: the interval of the gain leaves out zero."""
        return self.gain is not None and (self.gain.low > 0 or self.gain.high < 0)


@dataclass(frozen=True)
class Table:
    """The table of one kind of query.

    Attributes:
        kind: of the queries.
        datasets: the columns, by name.
        rows: the cells of each row, by data set and ``average``; one that was not measured has none. An average is of
            all data sets, and of a row that lacks one there is none.
    """

    kind: str
    datasets: list[str]
    rows: dict[tuple[Setting, str], dict[str, Cell]]

    @property
    def columns(self) -> list[str]:
        """The data sets, and their average where there are several."""
        return [*self.datasets, AVERAGE] if len(self.datasets) > 1 else self.datasets


def tables_of(measured: Sequence[Measurement]) -> list[Table]:
    """Return a table for each kind of query that was measured. Intervals are bootstraps over queries; of an average,
    the queries of each data set are drawn anew, and the data sets stay.
    """
    datasets = list(dict.fromkeys(one.dataset for one in measured))
    settings = list(dict.fromkeys(one.setting for one in measured))
    tables = []
    for kind in KINDS:
        rows: dict[tuple[Setting, str], dict[str, Cell]] = {}
        for setting in settings:
            here = [one for one in measured if one.setting == setting and kind in one.evaluation.kinds]
            for system in METHODS:
                having = {one.dataset: one for one in here if system in one.evaluation.systems}
                if not having:
                    continue
                values = {name: one.evaluation.values(system, kind) for name, one in having.items()}
                texts = {name: one.evaluation.values("text", kind) for name, one in having.items()}
                cells = {name: _cell(values[name], texts[name], system) for name in values}
                if len(datasets) > 1 and len(cells) == len(datasets):
                    cells[AVERAGE] = _average(list(values.values()), list(texts.values()), system)
                rows[setting, system] = cells
        if rows:
            tables.append(Table(kind, datasets, rows))
    return tables


def _cell(values_Q: np.ndarray, text_Q: np.ndarray, system: str) -> Cell:
    gain = None if system == "text" else paired_bootstrap(values_Q, text_Q)
    return Cell(bootstrap_mean(values_Q), gain, len(values_Q))


def _average(values: list[np.ndarray], texts: list[np.ndarray], system: str) -> Cell:
    gains = [of_system - of_text for of_system, of_text in zip(values, texts, strict=True)]
    gain = None if system == "text" else stratified_mean(gains)
    return Cell(stratified_mean(values), gain, sum(map(len, values)))


def method_name(system: str) -> str:
    """Return what a table calls a method."""
    return f"{METHODS[system]}, λ = {FIXED}" if system == "fixed" else METHODS[system]


def as_arrow(tables: Sequence[Table]) -> pa.Table:
    """Return a row for each cell: kind, vlm, vision, generator, method, dataset (or ``average``), queries, map, and
    gain over text, each with its interval (null for text)."""
    rows = [
        {
            "kind": table.kind,
            **setting._asdict(),
            "method": method_name(system),
            "dataset": dataset,
            "queries": cell.queries,
            "map": cell.map.mean,
            "map_low": cell.map.low,
            "map_high": cell.map.high,
            "gain": cell.gain.mean if cell.gain else None,
            "gain_low": cell.gain.low if cell.gain else None,
            "gain_high": cell.gain.high if cell.gain else None,
        }
        for table in tables
        for (setting, system), cells in table.rows.items()
        for dataset, cell in cells.items()
    ]
    texts = [(name, pa.string()) for name in ("kind", *Setting._fields, "method", "dataset")]
    numbers = [(name, pa.float64()) for name in ("map", "map_low", "map_high", "gain", "gain_low", "gain_high")]
    return pa.Table.from_pylist(rows, schema=pa.schema([*texts, ("queries", pa.int64()), *numbers]))


def as_markdown(tables: Sequence[Table], published: Published) -> str:
    """Return the tables as Markdown, and below them, under a heading of their own, what others published."""
    parts = []
    for table in tables:
        columns = table.columns
        lines = [
            f"## Queries by {table.kind}",
            "",
            _markdown_row("VLM", "vision encoder", "generator", "method", *columns),
            _markdown_row(*["---"] * 4, *["---:"] * len(columns)),
        ]
        for (setting, system), cells in table.rows.items():
            shown = [_with_interval(cells.get(name)) for name in columns]
            lines.append(_markdown_row(*setting, method_name(system), *shown))
        parts.append("\n".join(lines))
    parts.append(LEGEND)
    parts.append(_published_markdown(published, tables[0].datasets if tables else []))
    return "\n\n".join(parts) + "\n"


LEGEND: Final = (
    "mAP by trapezoids over the full ranking, with its 95% bootstrap interval over queries. * differs from text"
    " beyond chance: the 95% interval of the paired difference leaves out zero."
)


def _markdown_row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _with_interval(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return f"{cell.map.mean:.3f}{'*' if cell.differs else ''} [{cell.map.low:.3f}, {cell.map.high:.3f}]"


def published_of(published: Published, datasets: Sequence[str]) -> list[str]:
    """Return which of some data sets others published figures of."""
    return [name for name in datasets if name in published.figures]


def _published_markdown(published: Published, datasets: Sequence[str]) -> str:
    lines = ["## Published by others, not measured here", "", f"{published.source}; {published.note}."]
    if names := published_of(published, datasets):
        lines += ["", _markdown_row("method", *names), _markdown_row("---", *["---:"] * len(names))]
        for i, method in enumerate(published.methods):
            lines.append(_markdown_row(method, *(f"{published.figures[name][i]:.3f}" for name in names)))
    else:
        lines += ["", "There are no figures of these data sets."]
    return "\n".join(lines)


def as_latex(tables: Sequence[Table]) -> str:
    """Return the tables as LaTeX (booktabs), the best of each column and setting in bold."""
    parts = []
    for table in tables:
        columns = table.columns
        lines = [
            f"% Queries by {table.kind}. {LEGEND}",
            rf"\begin{{tabular}}{{llll{'r' * len(columns)}}}",
            r"\toprule",
            _latex_row("VLM", "vision encoder", "generator", "method", *map(_escaped, columns)),
            r"\midrule",
        ]
        best = _best(table)
        for (setting, system), cells in table.rows.items():
            shown = [_latex_cell(cells.get(name), best.get((setting, name)) == system) for name in columns]
            lines.append(_latex_row(*map(_escaped, setting), _escaped(method_name(system)), *shown))
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def _best(table: Table) -> dict[tuple[Setting, str], str]:
    """Return which method is best on each data set with each setting."""
    best: dict[tuple[Setting, str], tuple[float, str]] = {}
    for (setting, system), cells in table.rows.items():
        for name, cell in cells.items():
            best[setting, name] = max(best.get((setting, name), (-1.0, "")), (cell.map.mean, system))
    return {place: system for place, (_, system) in best.items()}


def _latex_cell(cell: Cell | None, is_best: bool) -> str:
    if cell is None:
        return "--"
    mean = f"{cell.map.mean:.3f}".removeprefix("0")
    return (rf"\textbf{{{mean}}}" if is_best else mean) + ("$^*$" if cell.differs else "")


def _latex_row(*cells: str) -> str:
    return " & ".join(cells) + r" \\"


def _escaped(text: str) -> str:
    special = {"_": r"\_", "&": r"\&", "%": r"\%", "#": r"\#", "$": r"\$", "λ": r"$\lambda$", "~": r"\textasciitilde{}"}
    braces = {"{": r"\{", "}": r"\}", "\\": r"\textbackslash{}", "^": r"\^{}"}
    return "".join((special | braces).get(character, character) for character in text)
