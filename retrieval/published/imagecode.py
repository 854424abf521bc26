"""ImageCoDe: a text that fits one of ten images that are nearly alike (Krojer et al., ACL 2022).

The format is that of the README of github.com/McGill-NLP/imagecode: ``data/valid_data.json`` and ``train_data.json``
are dicts of sets, and each of these a dict from the number of the image, as a string, to its text. A set's images are
``img0.jpg``, ``img7.jpg``, … in a folder of its name, below ``data`` or ``data/image-sets``; the number counts them
in the order of the numbers in their names (``baselines/clip/dataset.py``). The unlabelled test set has no numbers. The
authors rank the ten images of the set; here the whole gallery is ranked, which is harder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.published.files import checked, no_truth, read_json
from retrieval.published.query import Benchmark, BenchmarkQuery

_NUMBERED = re.compile(r"img(\d+)\.jpg$")


def read(folder: Folder, part: str) -> Iterator[BenchmarkQuery]:
    """Yield the queries of a split."""
    name = f"data/{part}_data.json"
    sets: dict[str, Any] = read_json(folder, name, dict)
    for of_set, texts in sets.items():
        where = f"{folder.uri}/{name}: {of_set}"
        if isinstance(texts, list):
            raise no_truth("ImageCoDe", part, where)
        images = _images(folder, of_set)
        for number, text in checked(texts, dict, where).items():
            if not number.isdecimal() or int(number) >= len(images):
                message = f"{where} names image {number!r}, and the set has {len(images)}"
                raise UserError(message, code="damaged", field="folder")
            yield BenchmarkQuery(
                id=f"{of_set}/{number}", text=checked(text, str, where), relevant=(images[int(number)],)
            )


def _images(folder: Folder, name: str) -> list[str]:
    """Return the paths of a set's images, with its folder, in the order of the numbers in their names."""
    for place in (f"data/image-sets/{name}", f"data/{name}"):
        numbered = [(int(found[1]), file) for file in folder.files(place) if (found := _NUMBERED.search(file))]
        if numbered:
            return [f"{name}/{file.rsplit('/', 1)[-1]}" for _, file in sorted(numbered)]
    message = f"{folder.uri} has no images of the set {name}, in data/image-sets/{name} or data/{name}"
    raise UserError(message, code="missing", field="folder")


BENCHMARK = Benchmark("imagecode", ("valid", "train", "test"), ("recall_at_1", "recall_at_5", "recall_at_10"), read)
