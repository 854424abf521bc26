"""Describing: what images of a class show, in words that do not name the class.

As CuPL (Pratt et al. 2023) and the work of Menon and Vondrick (2023) ask a language model about classes; here the name
must not be in the answer, since the descriptions are queries of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol

from pydantic import BaseModel

from retrieval.assistant.endpoint import AssistantFault, Spent, Talks
from retrieval.assistant.material import MAX_GIVEN, clean, cleaned, parsed, said

PROMPT: Final = "1"
"""The version of what is asked; another text below is another version."""
_INSTRUCTIONS = (
    "An image search is tested with descriptions in the place of names. 'name' is what some images show, and 'count'"
    " how many descriptions of such images to give. Each is one plain phrase of at most 25 words, by which somebody who"
    " does not know the name could tell these images from others: shape, parts, colours, material, pattern,"
    " surroundings, use. No description may have the name in it, nor a word of it, another spelling, an abbreviation, a"
    " translation or a synonym. 'others' are there already: give different ones."
)
_TOKENS = 100
"""Of a description, at most; and as many for what is around them."""
_ITEM = re.compile(r"\s*(?:[-*•–]|\d+[.):])\s")
"""What an entry of a list begins with."""
_BEFORE = re.compile(r"(?:[\s•–=+@-]|\*\s|\d+[.):]\s)*")
"""What stands before a description and is none of it: marks of a list, and what a spreadsheet takes for a formula."""
_OPENING, _CLOSING = "\"'“‘`*", "\"'”’`*"


class Describer(Protocol):
    """A chat model that can be asked for descriptions: an ``Assistant``, or a model of this machine."""

    model: str
    at_once: int
    """Calls under way at a time."""
    spent: Spent

    def talk(self) -> Talks:
        """Begin what one class has to ask."""

    async def close(self) -> None:
        """Let go of what it holds."""


class _Described(BaseModel):
    descriptions: list[str]


async def described(talk: Talks, name: str, count: int, others: Sequence[str]) -> list[str]:
    """Return descriptions of a class as the model gave them, cleaned, at most ``count``; it may have given none.

    Args:
        name: of the class.
        count: how many are wanted.
        others: that the new ones shall differ from.

    Raises:
        AssistantFault: there is no answer, or half of one.
    """
    data = {"name": clean(name), "count": count, "others": list(filter(None, cleaned(others)))}
    text = await said(talk, "describe", _Described, _INSTRUCTIONS, data, max_tokens=_TOKENS * (count + 1))
    return [_taken(each) for each in _texts(text)][:count]


def _texts(text: str) -> list[str]:
    """Return what an answer has: of the object that was asked for, else its lines, of a list if it has one."""
    try:
        return parsed(text, _Described).descriptions
    except AssistantFault:
        if "{" in text:
            raise
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [line for line in lines if _ITEM.match(line)] or lines


def _taken(text: str) -> str:
    text = _BEFORE.sub("", clean(text, MAX_GIVEN), count=1)
    if text.startswith(tuple(_OPENING)) and text.endswith(tuple(_CLOSING)):
        text = _BEFORE.sub("", text.lstrip(_OPENING).rstrip(_CLOSING), count=1)
    return text.strip()
