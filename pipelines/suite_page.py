"""The report of a suite as one HTML file, with everything that it shows in it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from pipelines.suite import Measurement
from pipelines.suite_plots import plot_classes, plot_curves, plot_gaps
from pipelines.suite_tables import LEGEND, Cell, Table, method_name, published_of
from retrieval.datasets.published import Published

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; margin: 2.5rem auto; max-width: 72rem; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.25rem; margin-top: 2.6rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; } p { max-width: 52rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .86rem; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e3e6eb; }
th { font-weight: 600; } .name { text-align: left; } td small { display: block; color: #6b7380; }
tr.first td { border-top: 2px solid #b9c0cb; } .best { font-weight: 700; }
.published { background: #faf6ec; border: 1px solid #e6dcc0; border-radius: 6px; padding: .2rem 1.2rem 1rem; }
.warning { background: #fdeeee; border: 1px solid #efc9c7; border-radius: 6px; padding: .6rem 1.2rem; }
img { max-width: 100%; height: auto; } .note { color: #59616e; font-size: .9rem; }
"""
_DEMO = "demo/models/vlm"
"""How the name of the demo's own VLM ends."""


def page(measured: Sequence[Measurement], tables: Sequence[Table], published: Published, made: str) -> str:
    """Return the report as HTML that loads nothing.

    Args:
        measured: what the sections of data sets show.
        tables: of the kinds of query.
        published: figures of others, in a block of their own.
        made: when and by what, in a line.
    """
    sections = [
        "<h1>Text-to-image category retrieval</h1>",
        f'<p class="note">{escape(made)}</p>',
        *_warnings(measured),
        *(_table(table) for table in tables),
        f'<p class="note">{escape(LEGEND)} Of an average, the queries of each data set are drawn anew.</p>',
        _published(published, tables[0].datasets),
        *(_section(one) for one in measured),
    ]
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Text-to-image category retrieval</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _warnings(measured: Sequence[Measurement]) -> list[str]:
    """Return what a reader must know before the figures."""
    said = []
    prepared = [one.title for one in measured if one.setting.vlm.endswith(_DEMO) and one.record]
    if prepared:
        said.append(
            "The demo's own small models made these figures of photographs. They have seen nothing but rendered shapes,"
            f" so the figures show that every step works, and nothing about the method: {', '.join(prepared)}."
        )
    for one in measured:
        if one.record and not one.record.whole:
            expected = f"{one.record.expected_images:,} images of " if one.record.expected_images else ""
            said.append(
                f"{one.title} is not whole: {one.record.images:,} images of {one.record.classes:,} classes were there,"
                f" expected {expected}{one.record.expected_classes:,} classes. Its figures do not compare with others'."
            )
    return [f'<p class="warning">{escape(sentence)}</p>' for sentence in said]


def _table(table: Table) -> str:
    head = "".join(f'<th class="name">{name}</th>' for name in ("VLM", "vision encoder", "generator", "method"))
    head += "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    rows = []
    before = None
    for (setting, system), cells in table.rows.items():
        names = [escape(name) for name in setting] if setting != before else [""] * 3
        best = {
            name: max(other[name].map.mean for (of, _), other in table.rows.items() if of == setting and name in other)
            for name in cells
        }
        row = "".join(f'<td class="name">{name}</td>' for name in [*names, escape(method_name(system))])
        row += "".join(_cell(cells.get(name), best.get(name)) for name in table.columns)
        rows.append(f'<tr class="{"first" if setting != before else ""}">{row}</tr>')
        before = setting
    return (
        f'<h2>Queries by {escape(table.kind)}</h2>\n<div class="wide"><table>\n<tr>{head}</tr>\n'
        + "\n".join(rows)
        + "\n</table></div>"
    )


def _cell(cell: Cell | None, best: float | None) -> str:
    if cell is None:
        return "<td>–</td>"
    mark = "*" if cell.differs else ""
    kind = ' class="best"' if cell.map.mean == best else ""
    return f"<td{kind}>{cell.map.mean:.3f}{mark}<small>{cell.map.low:.3f} – {cell.map.high:.3f}</small></td>"


def _published(published: Published, datasets: Sequence[str]) -> str:
    names = published_of(published, datasets)
    content = "<p>There are no figures of these data sets.</p>"
    if names:
        head = '<th class="name">method</th>' + "".join(f"<th>{escape(name)}</th>" for name in names)
        rows = [
            f'<tr><td class="name">{escape(method)}</td>'
            + "".join(f"<td>{published.figures[name][i]:.3f}</td>" for name in names)
            + "</tr>"
            for i, method in enumerate(published.methods)
        ]
        content = f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
    source = f"<p>{escape(published.source)}; {escape(published.note)}.</p>"
    return f'<div class="published"><h2>Published by others, not measured here</h2>{source}{content}</div>'


def _section(one: Measurement) -> str:
    evaluation = one.evaluation
    queries = ", ".join(f"{len(evaluation.values('text', kind)):,} by {kind}" for kind in evaluation.kinds)
    known = f"{evaluation.gallery_rows:,} images, ranked by each query: {queries}."
    if one.record:
        known += f" Split: {one.record.split}. {one.record.licence}"
    parts = [
        f"<h2>{escape(one.title)}</h2>",
        f'<p class="note">{escape(known)} {escape(" · ".join(one.setting))}</p>',
        "<h3>mAP against λ, the number of images, and the seconds that they take</h3>",
        _image(plot_curves(one), "mAP against λ, K and seconds"),
        f'<p class="note">{escape(_seconds(one))}</p>',
        "<h3>Gain by class</h3>",
        _image(plot_classes(one), "gain by class"),
        "<h3>Modality gap</h3>",
        _image(plot_gaps(one.gaps), "both modalities in a plane"),
    ]
    for sheet, what in zip(one.sheets, ("gain", "lose"), strict=False):
        parts.append(f"<h3>Classes that {what} most, queries by {escape(evaluation.kinds[0])}</h3>")
        names = ", ".join(change.name for change in sheet.changes)
        parts.append(_image(sheet.picture, names, "jpeg") if sheet.changes else "<p>There is none.</p>")
    return "\n".join(parts)


def _seconds(one: Measurement) -> str:
    if one.spent is None:
        return (
            "The query set does not say what its images took: an earlier version made it, they were imported, or its"
            " job was killed when all of them were there."
        )
    each = ", ".join(f"{step} {seconds / one.spent.queries:.3f} s" for step, seconds in one.spent.seconds.items())
    return (
        f"A query with {one.images} images took, on {one.spent.device}: {each}; mean of {one.spent.queries:,} queries."
        " Of fewer images the plot has their share of that."
    )


def _image(data: bytes, alt: str, kind: str = "png") -> str:
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
