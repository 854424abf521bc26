"""Revisited Oxford and Paris: landmarks by a part of a picture, in three protocols (Radenović et al., CVPR 2018).

The format is that of ``python/dataset.py`` of github.com/filipradenovic/revisitop: ``gnd_roxford5k.pkl`` or
``gnd_rparis6k.pkl`` is a dict with ``imlist`` and ``qimlist``, names of images without ``.jpg``, and ``gnd``, for each
query a dict of ``bbx`` (left, top, right, bottom) and of places in ``imlist``: ``easy``, ``hard`` and ``junk``. Images
lie in ``jpg``. Which are relevant and which junk is as in their ``python/example_evaluate.py``:

| protocol | relevant | junk |
| --- | --- | --- |
| easy | easy | junk, hard |
| medium | easy, hard | junk |
| hard | hard | junk, easy |

The protocol removes the pictures of the queries from the gallery: those that it has are left out of every ranking.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.published.files import checked, read_bytes, value
from retrieval.published.query import Benchmark, BenchmarkQuery
from retrieval.unpickle import unpickle

_PROTOCOLS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def read(folder: Folder, part: str) -> Iterator[BenchmarkQuery]:
    """Yield the queries of a protocol. A query without a relevant image there is yielded, with none."""
    files = [name for name in ("gnd_roxford5k.pkl", "gnd_rparis6k.pkl") if folder.exists(name)]
    if len(files) != 1:
        message = f"{folder.uri} must have gnd_roxford5k.pkl or gnd_rparis6k.pkl, one of them"
        raise UserError(message, code="missing", field="folder")
    where = f"{folder.uri}/{files[0]}"
    found = checked(unpickle(read_bytes(folder, files[0]), where), dict, where)
    images, pictures, truths = (value(found, name, list, where) for name in ("imlist", "qimlist", "gnd"))
    if len(pictures) != len(truths):
        message = f"{where} has {len(pictures)} queries in qimlist and {len(truths)} in gnd"
        raise UserError(message, code="damaged", field="folder")
    queries = tuple(f"jpg/{name}.jpg" for name in pictures)
    relevant, junk = _PROTOCOLS[part]
    for number, (picture, truth) in enumerate(zip(queries, truths, strict=True)):
        of_query = f"{where}, query {number}"
        checked(truth, dict, of_query)
        yield BenchmarkQuery(
            id=pictures[number],
            picture=picture,
            box=_box(truth.get("bbx"), of_query),
            relevant=_paths(truth, relevant, images, of_query),
            junk=_paths(truth, junk, images, of_query),
            excluded=queries,
        )


def _paths(truth: dict[str, Any], names: tuple[str, ...], images: list[str], where: str) -> tuple[str, ...]:
    """Return the paths of the images that some lists name by their places."""
    paths = []
    for name in names:
        for place in np.asarray(truth.get(name, ())).ravel().tolist():
            if not isinstance(place, int | float) or place != int(place) or not 0 <= place < len(images):
                message = f"{where}: {name} has the place {place!r}, and there are {len(images)} images"
                raise UserError(message, code="damaged", field="folder")
            paths.append(f"jpg/{images[int(place)]}.jpg")
    return tuple(paths)


def _box(found: Any, where: str) -> tuple[float, float, float, float] | None:
    if found is None:
        return None
    numbers = [float(number) for number in np.asarray(found, dtype=object).ravel()]
    if len(numbers) != 4:
        message = f"{where}: bbx must be left, top, right and bottom, not {numbers}"
        raise UserError(message, code="damaged", field="folder")
    return numbers[0], numbers[1], numbers[2], numbers[3]


BENCHMARK = Benchmark("revisited", ("medium", "easy", "hard"), ("ap", "precision_at_10"), read)
