"""Index a folder of pictures and search it by words.

python examples/index_and_search.py example-out
"""

from __future__ import annotations

import sys
from pathlib import Path

import mindseye
from demo.collection import render_gallery
from demo.world import split


def main(folder: Path, text: str = "orange dotted square") -> list[mindseye.Found]:
    """Index pictures that are rendered for it, and print the five best for ``text``."""
    # "none" runs in this process; without it, jobs run on a Ray of this machine, or on a cluster ("head:6379").
    with mindseye.session("none"):
        render_gallery(folder / "pictures", split("unseen")[:12], 8)  # in place of pictures of your own
        mindseye.index(folder / "pictures", folder / "target")

    finder = mindseye.open_finder(folder / "target")
    answer = finder.search(text, k=5)
    for found in answer:
        print(f"{found.score:.3f} = {found.text_part:.3f} by text + {found.visual_part:.3f} by images  {found.path}")
    (folder / "answer.png").write_bytes(mindseye.answer_sheet(text, answer, finder.index))
    return answer.results


if __name__ == "__main__":
    main(Path(sys.argv[1]))
