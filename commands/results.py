"""The results of an evaluation as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:  # what a command computes with is loaded when it runs
    from pipelines.evaluate import Evaluation
    from pipelines.rounds import Rounds
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


def rounds_table(rounds: Rounds) -> Table:
    """Return the table of what simulated users found, round by round."""
    table = Table(title="Rounds of a simulated user", title_justify="left", caption_justify="left")
    table.caption = (
        "mAP over what the user has not seen; gain: paired, over the first search on the same rest;"
        f" hits@{rounds.k}: queries that found something in any round so far"
    )
    for heading in ("query", "round", f"hits@{rounds.k}", "relevant of those shown", "mAP", "gain over first search"):
        table.add_column(heading, justify="left" if heading == "query" else "right", no_wrap=True)
    for kind in rounds.kinds:
        for number, (hits, shown) in enumerate(zip(rounds.hits(kind), rounds.shown(kind), strict=True)):
            mean, gain = rounds.mean(kind, number), rounds.gain(kind, number)
            table.add_row(
                "" if number else kind,
                str(number),
                f"{hits:.3f}",
                f"{shown:.3f}",
                f"{mean.mean:.3f}" if mean else "",
                _signed(gain) if number and gain else "",
                end_section=number == rounds.rounds,
            )
    return table


def _signed(gain: Interval) -> str:
    return f"{gain.mean:+.3f} ({gain.low:+.3f}…{gain.high:+.3f})"
