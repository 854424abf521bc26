"""Which colours, patterns and shapes a text of the demo world speaks of, by name or by a clause that stands for one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from demo.grammar import COLOURS, PATTERNS, SHAPES, Wording

ASPECTS: dict[str, dict[str, Wording]] = {"colour": COLOURS, "pattern": PATTERNS, "shape": SHAPES}
"""In the order in which a category's name has them."""


def slots(text: str) -> dict[str, list[str]]:
    """Return the values of each aspect that a text names, in its order; without those aspects that it leaves open."""
    found: dict[str, dict[str, None]] = {}
    for match in _speaking().finditer(text.lower()):
        aspect, value = _meant()[match[0]]
        found.setdefault(aspect, {})[value] = None
    return {aspect: list(values) for aspect, values in found.items()}


def named(values: dict[str, str]) -> str:
    """Return a phrase for one value of each aspect, in the order of a category's name."""
    return " ".join(values[aspect] for aspect in ASPECTS if aspect in values)


def merged(texts: Iterable[str]) -> dict[str, list[str]]:
    """Return the values of each aspect that any of the texts names."""
    found: dict[str, dict[str, None]] = {}
    for text in texts:
        for aspect, values in slots(text).items():
            found.setdefault(aspect, {}).update(dict.fromkeys(values))
    return {aspect: list(values) for aspect, values in found.items()}


@cache
def _meant() -> dict[str, tuple[str, str]]:
    return {
        phrase.lower(): (aspect, value)
        for aspect, table in ASPECTS.items()
        for value, wording in table.items()
        for phrase in (value, *wording.training, *wording.evaluation)
    }


@cache
def _speaking() -> re.Pattern[str]:
    longest_first = sorted(_meant(), key=len, reverse=True)
    return re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b")
