"""Visual-RAG: questions whose answer is to be seen in some images of a species (Wu et al., 2025, arXiv 2502.16636).

The format is that of the README of github.com/visual-rag/visual-rag: ``v2_anno.jsonl`` has a line for each question
with ``question``, ``sn`` (the scientific name), ``answer`` and ``images``, a dict from an image of iNat21's train set,
``00855_…/83f81be6….jpg``, to 1 where it shows the answer and 0 where it does not. Here the whole gallery is ranked.
"""

from __future__ import annotations

from collections.abc import Iterator

from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.published.files import read_json_lines, value
from retrieval.published.query import Benchmark, BenchmarkQuery


def read(folder: Folder, part: str) -> Iterator[BenchmarkQuery]:
    """Yield the questions."""
    for number, (row, where) in enumerate(read_json_lines(folder, f"{part}.jsonl")):
        images = value(row, "images", dict, where)
        if wrong := [image for image, shows in images.items() if shows not in (0, 1)]:
            message = f"{where}: images are marked by 0 or 1, and {wrong[0]} by {images[wrong[0]]!r}"
            raise UserError(message, code="damaged", field="folder")
        yield BenchmarkQuery(
            id=str(number),
            text=value(row, "question", str, where),
            relevant=tuple(image for image, shows in images.items() if shows),
        )


BENCHMARK = Benchmark("visual-rag", ("v2_anno",), ("hit_at_1", "hit_at_10", "ndcg_at_10"), read, any_part=True)
