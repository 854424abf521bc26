"""What an evaluation leaves for people: a table for the terminal, per-query results, a plot, and a contact sheet."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from pipelines.evaluate import Evaluation
from retrieval.folder import Folder
from retrieval.metrics import Interval

mpl.use("Agg")
from matplotlib import pyplot as plt

_COLOURS = ("#8a8f98", "#5b8fd6", "#d9822b", "#3d9970", "#a05195")


def results_table(evaluation: Evaluation, title: str) -> Table:
    """Return the table of mAP by kind and system, with the paired gain over text alone."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.caption = (
        f"mAP by trapezoids over the full ranking of {evaluation.gallery_rows:,} images,"
        " 95% bootstrap interval over queries; gain: paired, over text alone"
    )
    for heading in ("query", "n", "ranked by", "mAP", "95% interval", "step AP", "P@10", "gain over text"):
        table.add_column(heading, justify="left" if heading in ("query", "ranked by") else "right", no_wrap=True)
    for kind in evaluation.kinds:
        for system in evaluation.systems:
            mean = evaluation.mean(system, kind)
            first = system == evaluation.systems[0]
            table.add_row(
                kind if first else "",
                str(len(evaluation.values(system, kind))) if first else "",
                system if system in ("text", "visual") else f"{system}, λ = {evaluation.weights[system]:.2f}",
                f"{mean.mean:.3f}",
                f"{mean.low:.3f}–{mean.high:.3f}",
                f"{evaluation.mean(system, kind, 'ap_step').mean:.3f}",
                f"{evaluation.mean(system, kind, 'precision_at_10').mean:.3f}",
                "" if system == "text" else _signed(evaluation.gain(system, kind)),
                end_section=system == evaluation.systems[-1],
            )
    return table


def _signed(gain: Interval) -> str:
    return f"{gain.mean:+.3f} ({gain.low:+.3f}…{gain.high:+.3f})"


def summary(evaluation: Evaluation) -> dict:
    """Return the table's figures as JSON-ready data."""
    kinds = {}
    for kind in evaluation.kinds:
        systems = {}
        for system in evaluation.systems:
            figures = {
                column: vars(evaluation.mean(system, kind, column)) for column in ("ap", "ap_step", "precision_at_10")
            }
            systems[system] = figures | {"gain_over_text": vars(evaluation.gain(system, kind))}
        kinds[kind] = {"queries": len(evaluation.values("text", kind)), "systems": systems}
    return {
        "gallery_rows": evaluation.gallery_rows,
        "weights": evaluation.weights,
        "unlabelled": evaluation.unlabelled,
        "labels_without_image": evaluation.without_positive,
        "kinds": kinds,
    }


def write_report(evaluation: Evaluation, target: str | Path) -> list[str]:
    """Write ``results.parquet`` (one row per query and system), ``summary.json`` and ``gains.png``; return their
    locations.
    """
    folder = Folder(target)
    folder.write_table("results.parquet", evaluation.table)
    folder.write_json("summary.json", summary(evaluation))
    sink = pa.BufferOutputStream()
    _plot(evaluation).savefig(sink, format="png", dpi=120, bbox_inches="tight")
    plt.close("all")
    folder.write_bytes("gains.png", sink.getvalue().to_pybytes())
    return [f"{folder.uri}/{name}" for name in ("results.parquet", "summary.json", "gains.png")]


def read_results(file: str | Path) -> pa.Table:
    """Read back the per-query results that ``write_report`` wrote."""
    return pq.read_table(file)


def _plot(evaluation: Evaluation) -> plt.Figure:
    figure, (bars, gains) = plt.subplots(1, 2, figsize=(12, 4.2), width_ratios=(3, 4))
    systems, kinds = evaluation.systems, evaluation.kinds
    best = systems[-1]
    width = 0.8 / len(systems)
    for i, system in enumerate(systems):
        means = [evaluation.mean(system, kind) for kind in kinds]
        errors = np.array([[m.mean - m.low for m in means], [m.high - m.mean for m in means]])
        places = np.arange(len(kinds)) + (i - (len(systems) - 1) / 2) * width
        colour = _COLOURS[i % len(_COLOURS)]
        drawn = bars.bar(
            places, [m.mean for m in means], width * 0.92, yerr=errors, capsize=3, label=system, color=colour
        )
        bars.bar_label(drawn, fmt="%.2f", padding=2, fontsize=7, rotation=90)
    bars.set_xticks(range(len(kinds)), kinds)
    bars.set_ylim(0, 1.05)
    bars.set_ylabel("mAP")
    bars.set_title("Ranked by text, by imagined images, by both", loc="left", fontsize=10)
    bars.legend(frameon=False, ncols=len(systems), loc="upper left", fontsize=8)
    for i, kind in enumerate(kinds):
        gain = np.sort(evaluation.values(best, kind) - evaluation.values("text", kind))[::-1]
        label = f"{kind}: {np.mean(gain > 0):.0%} of {len(gain)} queries gain"
        gains.plot((np.arange(len(gain)) + 0.5) / len(gain), gain, label=label, color=_COLOURS[1 + i], linewidth=2)
    gains.axhline(0, color="black", linewidth=0.8)
    gains.set_xlabel("share of queries")
    gains.set_ylabel(f"AP {best} − AP text")
    title = f"What imagining adds, query by query (λ = {evaluation.weights[best]:.2f})"
    gains.set_title(title, loc="left", fontsize=10)
    gains.legend(frameon=False, fontsize=8)
    for axes in (bars, gains):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
