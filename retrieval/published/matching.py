"""Paths as a benchmark writes them to the rows of a gallery that was made from its images.

A gallery's paths begin in the folder that was indexed, a benchmark's in its own. They are the same image where one path
is the end of the other, name by name: ``unlabeled2017/000000009761.jpg`` and ``000000009761.jpg``. Upper and lower case
count. Where several rows or several paths would fit, none is taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from retrieval.artifacts import Gallery


class Matched(NamedTuple):
    """Which row each path is.

    Attributes:
        ids: of the paths that one row fits.
        ambiguous: paths that several rows fit, or that end like others, sorted.
    """

    ids: dict[str, str]
    ambiguous: list[str]


def match(gallery: Gallery, paths: Iterable[str]) -> Matched:
    """Find the rows of some paths, in one pass over the gallery's paths."""
    wanted = set(paths)
    with_end: defaultdict[str, list[str]] = defaultdict(list)
    for path in wanted:
        for end in _ends(path):
            with_end[end].append(path)
    found: defaultdict[str, list[str]] = defaultdict(list)
    exact: dict[str, str] = {}
    ambiguous: set[str] = set()
    for table in gallery.tables(["id", "path"]):
        for id, path in zip(table["id"].to_pylist(), table["path"].to_pylist(), strict=True):
            if path in wanted:
                exact[path] = id
            fitting = with_end.get(path) or [end for end in _ends(path) if end in wanted]
            if len(fitting) > 1 and path not in wanted:
                ambiguous.update(fitting)
            for one in fitting if len(fitting) == 1 else ():
                found[one].append(id)
    ids = {path: rows[0] for path, rows in found.items() if len(rows) == 1} | exact
    ambiguous.update(path for path, rows in found.items() if len(rows) > 1)
    return Matched(
        {path: id for path, id in ids.items() if path in exact or path not in ambiguous},
        sorted(ambiguous - exact.keys()),
    )


def _ends(path: str) -> Iterator[str]:
    """Yield a path and each of its ends, from the longest."""
    names = path.split("/")
    for start in range(len(names)):
        yield "/".join(names[start:])
