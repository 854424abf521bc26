"""CVG-Text: what is seen from a street, as text, to the satellite image or map of the place (Ye et al., 2024).

The format is that of ``dataset.py`` and ``config.yaml`` of github.com/yejy53/CVG-Text (arXiv 2412.17007):
``CVG-text/VERSION/test.json`` is a dict from the name of an image to its text, for versions such as NewYork and
NewYork-photos, and the images of that name lie in ``VERSION-satellite`` and ``VERSION-OSM``. A part is a version and
one of the two, such as ``NewYork/satellite``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.published.files import checked, read_json
from retrieval.published.query import Benchmark, BenchmarkQuery


def read(folder: Folder, part: str) -> Iterator[BenchmarkQuery]:
    """Yield the texts of a version."""
    version, _, kind = part.partition("/")
    if kind not in ("satellite", "OSM"):
        message = f"a part of CVG-Text is a version and satellite or OSM, such as NewYork/satellite, not {part!r}"
        raise UserError(message, code="unknown", field="part")
    name = f"CVG-text/{version}/test.json"
    texts: dict[str, Any] = read_json(folder, name, dict)
    for image, text in texts.items():
        where = f"{folder.uri}/{name}: {image}"
        yield BenchmarkQuery(image, (f"{version}-{kind}/{image}",), text=checked(text, str, where))


BENCHMARK = Benchmark(
    "cvg-text", ("NewYork/satellite",), ("recall_at_1", "recall_at_5", "recall_at_10"), read, any_part=True
)
