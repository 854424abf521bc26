"""The curves of a run: loss, mAP on held-out labels and λ by step."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt


def draw_curves(history: Sequence[dict[str, Any]]) -> bytes:
    """Draw the history of a run; return PNG bytes."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.4))
    names = {"loss": "loss, mean since the last", "map": "mAP on held-out labels", "weight": "λ"}
    for panel, (name, title) in zip(panels, names.items(), strict=True):
        points = [(line["step"], line[name]) for line in history if line[name] is not None]
        panel.plot(*zip(*points, strict=True) if points else ((), ()), marker=".", color="#5b8fd6")
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_xlabel("step")
        panel.spines[["top", "right"]].set_visible(False)
    best = max(history, key=lambda line: line["map"])
    panels[1].plot(best["step"], best["map"], marker="o", color="#d9822b")
    panels[1].annotate(f"{best['map']:.3f}", (best["step"], best["map"]), textcoords="offset points", xytext=(6, -12))
    figure.tight_layout()
    out = BytesIO()
    figure.savefig(out, format="png", dpi=120)
    plt.close(figure)
    return out.getvalue()
