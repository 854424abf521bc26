"""DeepPatent2: names of objects to the drawings of design patents that show them (Ajayi et al., Scientific Data 2023).

The fields are those of table 4 of the paper (doi 10.1038/s41597-023-02653-7): a list of figures, each with ``object``
and ``subfigure_file``; the file of a year is ``YEAR/designYEAR.json``, as the scripts of
github.com/TIBHannover/patent-figure-classification read it. The paper has no queries of its own: here each name of an
object is one, in lower case, and every drawing of that name is relevant. Drawings without a name are relevant to none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from retrieval.folder import Folder
from retrieval.published.files import checked, read_json, value
from retrieval.published.query import Benchmark, BenchmarkQuery


def read(folder: Folder, part: str) -> Iterator[BenchmarkQuery]:
    """Yield the names of the objects of a year."""
    name = f"{part}/design{part}.json"
    figures: list[Any] = read_json(folder, name, list)
    drawings: defaultdict[str, list[str]] = defaultdict(list)
    for number, figure in enumerate(figures):
        where = f"{folder.uri}/{name}, figure {number}"
        file = value(checked(figure, dict, where), "subfigure_file", str, where)
        if figure.get("object"):
            drawings[" ".join(value(figure, "object", str, where).lower().split())].append(file)
    for object, files in sorted(drawings.items()):
        yield BenchmarkQuery(object, tuple(files), text=object, kind="name")


BENCHMARK = Benchmark("deeppatent2", ("2020",), ("ap", "recall_at_10"), read, any_part=True)
