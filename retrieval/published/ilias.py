"""ILIAS: one particular object by picture or by text, among many distractors (Kordopatis-Zilos et al., CVPR 2025).

The format is that of ``download/README.md`` of github.com/ilias-vrg/ilias: ``ilias_core/NAME_xxx`` has ``query`` with
``Qxxx_yy.jpg``, ``Qxxx_yy_bbox.txt`` (lines of x, y, width, height) and ``Txxx.txt``, and ``pos`` with ``Pxxx_zz.jpg``.
The folder is ``ilias_core``. Of several boxes the one around all of them is taken, as ``crop_resize`` of the authors'
``feature_extraction/src/datasets/generators.py`` does. Their ``evaluation/src/dataset.py`` gives AP at 1000, divided by
min(1000, positives). Figures are the benchmark's only where the gallery has its distractors, and of ``ilias_core`` the
positives alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.published.files import damaged, read_text
from retrieval.published.query import Benchmark, BenchmarkQuery


def read(folder: Folder, part: str) -> Iterator[BenchmarkQuery]:
    """Yield the queries of all objects, by their texts or by their pictures."""
    objects = folder.folders()
    if not objects:
        message = f"{folder.uri} has no folders of objects; give the folder ilias_core"
        raise UserError(message, code="missing", field="folder")
    for name in (object.rsplit("/", 1)[-1] for object in objects):
        relevant = tuple(sorted(folder.files(f"{name}/pos", ".jpg")))
        files = sorted(folder.files(f"{name}/query"))
        for file in files:
            stem = file.rsplit("/", 1)[-1]
            if part == "text" and stem.startswith("T") and stem.endswith(".txt"):
                yield BenchmarkQuery(file, relevant, text=read_text(folder, file).strip())
            elif part == "image" and stem.startswith("Q") and stem.endswith(".jpg"):
                boxes = file.removesuffix(".jpg") + "_bbox.txt"
                box = _box(folder, boxes) if boxes in files else None
                yield BenchmarkQuery(file, relevant, picture=file, box=box)


def _box(folder: Folder, name: str) -> tuple[float, float, float, float]:
    """Return the box around all boxes of a file, as left, top, right and bottom."""
    lines = [line.split() for line in read_text(folder, name).split("\n") if line.strip()]
    try:
        boxes = [[float(number) for number in line] for line in lines]
        corners = [(x, y, x + width, y + height) for x, y, width, height in boxes]
    except ValueError as error:
        raise damaged(folder, name, "a box is a line of x, y, width and height") from error
    if not corners:
        raise damaged(folder, name, "it has no box")
    left, top, right, bottom = zip(*corners, strict=True)
    return min(left), min(top), max(right), max(bottom)


BENCHMARK = Benchmark("ilias", ("text", "image"), ("ap_at_1000",), read)
