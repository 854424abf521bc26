"""Contact sheets of the classes that gain and lose most by imagining: what was imagined, and what was found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipelines.contact_sheet import draw, sections_of
from pipelines.evaluate import Evaluation
from retrieval.artifacts import Gallery, QuerySet

_FOUND = 10
"""Results of each ranking that are drawn."""
_QUALITY = 85
"""Of the JPEG: some 4 KB a picture, so that a report of many data sets can still be sent on."""


class Change(NamedTuple):
    """What imagining does to a class.

    Attributes:
        name: of the class; the text of a query that has none.
        query: id of its first query, which is drawn.
        text: AP by text alone, the mean of its queries.
        both: AP by both.
    """

    name: str
    query: str
    text: float
    both: float

    @property
    def gain(self) -> float:
        return self.both - self.text


class ClassSheet(NamedTuple):
    """Some classes, and a picture of them: JPEG bytes."""

    changes: list[Change]
    picture: bytes


def most_changed(evaluation: Evaluation, kind: str, *, count: int, system: str = "fused") -> list[list[Change]]:
    """Return the classes whose queries of a kind gain most over text, and those that lose most; the most first, at most
    ``count`` of each.
    """
    of_class: defaultdict[str, dict[str, list[tuple[str, float]]]] = defaultdict(lambda: {"text": [], system: []})
    for row in evaluation.table.sort_by("query").to_pylist():
        if row["kind"] == kind and row["system"] in ("text", system):
            of_class[row["label"] or row["text"]][row["system"]].append((row["query"], row["ap"]))
    changes = [
        Change(name, of["text"][0][0], *(float(np.mean([ap for _, ap in of[each]])) for each in ("text", system)))
        for name, of in of_class.items()
    ]
    changes.sort(key=lambda change: (-change.gain, change.name))
    gained = [change for change in changes if change.gain > 0][:count]
    lost = [change for change in reversed(changes) if change.gain < 0][:count]
    return [gained, lost]


def class_sheets(gallery: Gallery, query_set: QuerySet, evaluation: Evaluation, *, count: int = 3) -> list[ClassSheet]:
    """Draw the classes that gain most and those that lose most, of the first kind of query.

    Args:
        gallery: its images must be there.
        query_set: that was measured.
        evaluation: of both.
        count: classes of each sheet, at most.

    Returns:
        Two sheets, the second of those that lose; of no class where there is none.
    """
    return [
        ClassSheet(changes, _drawn(gallery, query_set, changes, evaluation.weights["fused"]))
        for changes in most_changed(evaluation, evaluation.kinds[0], count=count)
    ]


def _drawn(gallery: Gallery, query_set: QuerySet, changes: Sequence[Change], weight: float) -> bytes:
    if not changes:
        return b""
    titles = [
        f"{change.name}: AP {change.text:.3f} by text, {change.both:.3f} by both ({change.gain:+.3f})"
        for change in changes
    ]
    queries = query_set.chosen([change.query for change in changes])
    return draw(sections_of(gallery, queries, titles, weight, k=_FOUND), quality=_QUALITY)
