"""The plot of an evaluation: mAP of each system, and what imagining gains query by query."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.evaluate import Evaluation
from pipelines.rounds import SYSTEMS, Rounds

_COLOURS = ("#8a8f98", "#5b8fd6", "#d9822b", "#3d9970", "#a05195")


def plot_evaluation(evaluation: Evaluation) -> bytes:
    """Draw mAP by kind and system beside the gains over text of the last system; return PNG bytes."""
    figure = Figure(figsize=(12, 4.2))
    means, gains = figure.subplots(1, 2, width_ratios=(3, 4))
    _draw_means(means, evaluation)
    _draw_gains(gains, evaluation)
    for axes in (means, gains):
        axes.spines[["top", "right"]].set_visible(False)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=120, bbox_inches="tight")
    return png.getvalue()


def _draw_means(axes: Axes, evaluation: Evaluation) -> None:
    """Draw a bar for each kind and system, with its bootstrap interval."""
    systems, kinds = evaluation.systems, evaluation.kinds
    width = 0.8 / len(systems)
    for i, system in enumerate(systems):
        means = [evaluation.mean(system, kind) for kind in kinds]
        errors = np.array([[m.mean - m.low for m in means], [m.high - m.mean for m in means]])
        places = np.arange(len(kinds)) + (i - (len(systems) - 1) / 2) * width
        heights = [m.mean for m in means]
        colour = _COLOURS[i % len(_COLOURS)]
        bars = axes.bar(places, heights, width * 0.92, yerr=errors, capsize=3, label=system, color=colour)
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7, rotation=90)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("mAP")
    axes.set_title("Ranked by text, by imagined images, by both", loc="left", fontsize=10)
    axes.legend(frameon=False, ncols=len(systems), loc="upper left", fontsize=8)


def _draw_gains(axes: Axes, evaluation: Evaluation) -> None:
    """Draw a line for each kind: the gain in AP of the last system over text, queries in descending order."""
    system = evaluation.systems[-1]
    for i, kind in enumerate(evaluation.kinds):
        gain_Q = np.sort(evaluation.values(system, kind) - evaluation.values("text", kind))[::-1]
        share_Q = (np.arange(len(gain_Q)) + 0.5) / len(gain_Q)
        label = f"{kind}: {np.mean(gain_Q > 0):.0%} of {len(gain_Q)} queries gain"
        axes.plot(share_Q, gain_Q, label=label, color=_COLOURS[1 + i], linewidth=2)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("share of queries")
    axes.set_ylabel(f"AP {system} − AP text")
    title = f"What imagining adds, query by query (λ = {evaluation.weights[system]:.2f})"
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def plot_rounds(rounds: Rounds) -> bytes:
    """Draw cumulative hits at k, and mAP beside that of the first search over the same rest, by round; return PNG
    bytes.
    """
    figure = Figure(figsize=(12, 4.2))
    hits, means = figure.subplots(1, 2, width_ratios=(3, 4))
    numbers = np.arange(rounds.rounds + 1)
    for i, kind in enumerate(rounds.kinds):
        colour = _COLOURS[(1 + i) % len(_COLOURS)]
        hits.plot(numbers, rounds.hits(kind), "o-", color=colour, label=kind)
        for system, style in zip(SYSTEMS, ("o-", ":"), strict=True):
            known = {number: mean for number in numbers.tolist() if (mean := rounds.mean(kind, number, system))}
            values, ours = list(known.values()), system == SYSTEMS[0]
            means.plot(list(known), [v.mean for v in values], style, color=colour, label=kind if ours else None)
            if ours:
                low, high = [v.low for v in values], [v.high for v in values]
                means.fill_between(list(known), low, high, color=colour, alpha=0.12, linewidth=0)
    hits.set_title(f"Queries that have found something among the first {rounds.k}", loc="left", fontsize=10)
    means.set_title("mAP over what has not been seen; dotted: the first search", loc="left", fontsize=10)
    for axes in (hits, means):
        axes.set_xticks(numbers)
        axes.set_xlabel("round")
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=120, bbox_inches="tight")
    return png.getvalue()
