"""CIRCO: a picture and what should be different of it, several targets (Baldrati et al., ICCV 2023).

The format is that of the README of github.com/miccunifi/CIRCO: ``annotations/val.json`` and ``test.json`` are lists of
``id``, ``reference_img_id``, ``relative_caption``, ``shared_concept`` and, of val alone, ``target_img_id`` and
``gt_img_ids``. Images are COCO's of 2017, ``COCO2017_unlabeled/unlabeled2017/000000009761.jpg`` for 9761. The authors'
``src/evaluation.py`` gives mAP@5, 10, 25 and 50 over ``gt_img_ids``, divided by min(k, their number), and does not take
the reference image out of the ranking; neither does this reader.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from retrieval.folder import Folder
from retrieval.published.files import checked, no_truth, read_json, value
from retrieval.published.query import Benchmark, BenchmarkQuery


def read(folder: Folder, part: str) -> Iterator[BenchmarkQuery]:
    """Yield the queries of a split."""
    name = f"annotations/{part}.json"
    rows: list[Any] = read_json(folder, name, list)
    for number, row in enumerate(rows):
        where = f"{folder.uri}/{name}, entry {number}"
        if "gt_img_ids" not in checked(row, dict, where):
            raise no_truth("CIRCO", part, where)
        targets = [checked(target, int, f"{where}: gt_img_ids") for target in value(row, "gt_img_ids", list, where)]
        yield BenchmarkQuery(
            id=str(value(row, "id", int, where)),
            text=value(row, "relative_caption", str, where),
            picture=_path(value(row, "reference_img_id", int, where)),
            relevant=tuple(map(_path, targets)),
        )


def _path(image: int) -> str:
    return f"COCO2017_unlabeled/unlabeled2017/{image:012d}.jpg"


BENCHMARK = Benchmark("circo", ("val", "test"), ("ap_at_5", "ap_at_10", "ap_at_25", "ap_at_50"), read)
