"""The results of an evaluation as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:  # what a command computes with is loaded when it runs
    from pipelines.evaluate import Evaluation
    from retrieval.metrics import Interval


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
