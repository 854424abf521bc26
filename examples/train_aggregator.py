"""Train the aggregator and λ on some categories, and search others with it.

python examples/train_aggregator.py example-out
"""

from __future__ import annotations

import sys
from pathlib import Path

import mindseye
from demo.collection import render_gallery, vocabulary
from demo.world import split


def main(folder: Path) -> float:
    """Return the λ that was learned."""
    fitting, unseen = split("fitting")[:16], split("unseen")[:8]
    settings = mindseye.load_profile("tiny")
    short = settings.train.model_copy(update={"steps": 20, "validate_every": 5, "holdout": 0.5})
    settings = settings.model_copy(update={"train": short})
    with mindseye.session("none"):
        for name, categories in (("fitting", fitting), ("unseen", unseen)):
            render_gallery(folder / "pictures" / name, categories, 8)
            mindseye.index(folder / "pictures" / name, folder / name, settings)
        entries = vocabulary(fitting, ("description",))
        queries = mindseye.imagine(entries, folder / "queries", settings, images=4)
        trained = mindseye.train(folder / "fitting/gallery", queries, folder / "aggregator", settings)

    weight = trained.aggregator.manifest.weight
    before = trained.history[0]["map"]
    print(f"mAP on held-out labels: {before:.3f} before training, {trained.best_map:.3f} after; λ = {weight:.3f}")
    finder = mindseye.open_finder(folder / "unseen", settings, aggregator=folder / "aggregator")
    for found in finder.search("a square with dots, in orange", k=5, images=4):
        print(f"{found.score:.3f}  {found.path}")
    return weight


if __name__ == "__main__":
    main(Path(sys.argv[1]))
