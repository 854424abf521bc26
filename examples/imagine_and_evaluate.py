"""Imagine a vocabulary once, and measure how well it finds the pictures of its categories.

python examples/imagine_and_evaluate.py example-out
"""

from __future__ import annotations

import sys
from pathlib import Path

import mindseye
from demo.collection import render_gallery, vocabulary
from demo.world import split


def main(folder: Path) -> dict[str, float]:
    """Return the mAP of each way to rank, over queries by name and by description."""
    categories = split("unseen")[:8]
    with mindseye.session("none"):
        # Labels are the first-level folders: pictures/orange dotted square/0001.jpg
        render_gallery(folder / "pictures", categories, 8)
        mindseye.index(folder / "pictures", folder / "target")
        # Entries of your own: VocabularyEntry("Ragdoll cat", label="ragdoll"), or the path of a CSV file.
        entries = vocabulary(categories, ("name", "description"))
        queries = mindseye.imagine(entries, folder / "queries", images=4)
        measured = mindseye.measure(folder / "target/gallery", queries.uri, folder / "report")

    evaluation = measured.evaluation
    for kind in evaluation.kinds:
        for system in evaluation.systems:
            print(f"{kind:12} {system:8} mAP {evaluation.mean(system, kind).mean:.3f}")
    print(*measured.files, sep="\n")
    return {system: evaluation.mean(system, "description").mean for system in evaluation.systems}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
