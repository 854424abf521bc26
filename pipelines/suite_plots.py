"""The plots of a suite's report, PNG bytes each: mAP against λ, K and seconds, gain by class, modality gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.suite import Gap, Measurement
from retrieval.metrics import Interval

_COLOURS = ("#5b8fd6", "#d9822b", "#3d9970")
_CLASSES = 10


def plot_curves(one: Measurement) -> bytes:
    """Draw mAP by λ, by the number of images and, where it is known, by the seconds that these took, a line for each
    kind of query, with 95% intervals.
    """
    count = 3 if one.spent else 2
    figure = Figure(figsize=(5 * count, 3.2))
    by_weight, by_images, *by_seconds = figure.subplots(1, count)
    _draw_curves(by_weight, one.by_weight, "λ: 0 text alone, 1 images alone (mean)")
    _draw_curves(by_images, one.by_images, "K, images of a query (mean, λ = 0.5)")
    by_images.set_xscale("log", base=2)
    counts = sorted({count for curve in one.by_images.values() for count in curve})
    by_images.set_xticks(counts, [str(count) for count in counts])
    for axes in by_seconds:
        _draw_seconds(axes, one)
    return _png(figure)


def _draw_seconds(axes: Axes, one: Measurement) -> None:
    """Draw mAP by what a query takes; text alone is the query without an image."""
    assert one.spent is not None
    counts = {0, *(count for curve in one.by_images.values() for count in curve)}
    seconds = {count: one.seconds(count) or 0.0 for count in sorted(counts)}
    curves = {
        kind: {seconds[count]: mean for count, mean in ({0: one.by_weight[kind][0.0]} | curve).items()}
        for kind, curve in one.by_images.items()
    }
    _draw_curves(axes, curves, f"seconds of a query on {one.spent.device}")
    axes.set_xscale("log")
    for count, at in seconds.items():
        label = f"K = {count}" if count else "text"
        axes.text(at, 0.02, label, transform=axes.get_xaxis_transform(), rotation=90, fontsize=6, ha="right")


def _draw_curves(axes: Axes, curves: Mapping[str, Mapping[float, Interval] | Mapping[int, Interval]], x: str) -> None:
    for (kind, curve), colour in zip(curves.items(), _COLOURS, strict=False):
        places, means = list(curve), list(curve.values())
        axes.plot(places, [m.mean for m in means], marker="o", markersize=3, color=colour, label=kind)
        axes.fill_between(places, [m.low for m in means], [m.high for m in means], color=colour, alpha=0.15)
    axes.set_xlabel(x)
    axes.set_ylabel("mAP")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


def plot_classes(one: Measurement, system: str = "fused") -> bytes:
    """Draw the gain in AP of a system over text by class: the ten that gain most and the ten that lose most."""
    evaluation = one.evaluation
    kinds = evaluation.kinds
    figure = Figure(figsize=(5 * len(kinds), 4.4))
    for axes, kind in zip(np.atleast_1d(figure.subplots(1, len(kinds))), kinds, strict=True):
        rows = evaluation.table.sort_by("query").to_pylist()
        of_kind = {name: [r for r in rows if r["kind"] == kind and r["system"] == name] for name in ("text", system)}
        gains = [
            (mine["ap"] - text["ap"], mine["label"] or mine["text"])
            for mine, text in zip(of_kind[system], of_kind["text"], strict=True)
        ]
        gains.sort()
        shown = gains if len(gains) <= 2 * _CLASSES else gains[:_CLASSES] + gains[-_CLASSES:]
        heights = [gain for gain, _ in shown]
        axes.barh(range(len(shown)), heights, color=["#c2504b" if gain < 0 else "#3d9970" for gain in heights])
        axes.set_yticks(range(len(shown)), [label[:28] for _, label in shown], fontsize=7, parse_math=False)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("AP joint − AP text")
        left_out = len(gains) - len(shown)
        axes.set_title(f"{kind}{f' ({left_out} between are left out)' if left_out else ''}", loc="left", fontsize=9)
    return _png(figure)


def plot_gaps(gaps: Sequence[Gap]) -> bytes:
    """Draw both modalities in the plane of their two main directions, for each space."""
    figure = Figure(figsize=(5 * len(gaps), 3.6))
    for axes, gap in zip(np.atleast_1d(figure.subplots(1, len(gaps))), gaps, strict=True):
        axes.scatter(*gap.second_N2.T, s=5, alpha=0.4, color=_COLOURS[0], label=gap.names[1], linewidths=0)
        axes.scatter(*gap.first_N2.T, s=9, alpha=0.7, color=_COLOURS[1], label=gap.names[0], linewidths=0)
        axes.set_title(f"{gap.space}: distance of the means {gap.distance:.2f}", loc="left", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    png = BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
