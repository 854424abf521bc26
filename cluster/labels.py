"""Ray's label selectors: how they are written, and which nodes they select. Without Ray, whose own are private.

A selector maps keys of labels to conditions: ``value``, ``!value``, ``in(a,b)`` or ``!in(a,b)``. A node fits if it
meets all of them; one that has no label of a key meets its negated conditions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

Labels = Mapping[str, str]
"""Of a node; or a selector, whose values are conditions."""
_WORD = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_KEY = re.compile(rf"(?:(?=[^/]{{1,253}}/){_WORD}(?:\.{_WORD})*/)?{_WORD}")
_CONDITION = re.compile(rf"(?P<no>!)?(?:in\((?P<several>{_WORD}(?:,{_WORD})*)\)|(?P<one>{_WORD}))")


def check_selector(selector: Labels) -> None:
    """Refuse a selector that Ray would refuse once the job runs, or read as another: it takes ``in(a, b)``, and then
    finds no node of b.

    Raises:
        ValueError: a key or a condition is malformed.
    """
    for key, condition in selector.items():
        if not _KEY.fullmatch(key):
            raise ValueError(
                f"{key!r} is no key of a label: give NAME or DOMAIN/NAME, of letters, digits and ._- inside, each name"
                " of 63 characters at most"
            )
        if not _CONDITION.fullmatch(condition):
            raise ValueError(
                f"{condition!r} is no condition on the label {key}: give VALUE, !VALUE, in(A,B) or !in(A,B), each value"
                " of letters, digits and ._- inside, of 63 characters at most"
            )


def selects(selector: Labels, labels: Labels) -> bool:
    """Return whether a node of these labels meets every condition of a selector."""
    return all(_meets(condition, labels.get(key)) for key, condition in selector.items())


def _meets(condition: str, value: str | None) -> bool:
    found = _CONDITION.fullmatch(condition)
    assert found, condition
    values = (found["several"] or found["one"]).split(",")
    return (value in values) != bool(found["no"])
