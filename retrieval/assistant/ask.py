"""Asking back: which question would narrow a search most, and which of some words would answer it.

As ChatIR (Levy et al. 2023) and PlugIR (Lee et al. 2024) let a chat model ask; the answers to choose from are given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from retrieval.assistant.endpoint import AssistantFault, Talk
from retrieval.assistant.material import MAX_TAKEN, Wanted, ask_for, clean, cleaned, taken

_INSTRUCTIONS = (
    "Somebody looks for images: 'wanted', 'unwanted' and 'picture' say for what. 'found' holds words that the images"
    " found so far differ in, numbered from 1. Ask the one short question whose answer would narrow the search most,"
    " and give the numbers of the words that could answer it, 2 to 8 of them, the likeliest first."
)
MAX_CHOICES = 8
NOTHING_TO_ASK = "there are no words that the results differ in"


class _Asked(BaseModel):
    question: str
    choices: list[int]


@dataclass(frozen=True)
class AskedBack:
    """A question, and words of those that were given which could answer it."""

    question: str
    choices: list[str]


def differing(labels: Sequence[str | None], refinements: Sequence[str], wanted: Wanted) -> list[str]:
    """Return the words that results differ in, those that split them best first; none, if there are not two.

    Args:
        labels: of all results; one that all of them have says nothing, and one that is longer than a text to search
            for (MAX_TAKEN) answers nothing.
        refinements: words of a dictionary that split the results (``retrieval.bridge.refinements``).
        wanted: whose texts, for and against, are no answers: the search has them.
    """
    had = {clean(text).casefold() for text in (*wanted.wanted, *wanted.unwanted)}
    counts = Counter(label for label in labels if label)
    some = [label for label, count in counts.most_common() if count < len(labels)]
    words = dict.fromkeys(clean(text, MAX_TAKEN + 1) for text in (*refinements, *some))
    kept = [word for word in words if 0 < len(word) <= MAX_TAKEN and word.casefold() not in had]
    return kept if len(kept) > 1 else []


async def asked_back(talk: Talk, wanted: Wanted, found: Sequence[str]) -> AskedBack:
    """Return the next question to somebody who searches.

    Args:
        found: words that results differ in (``differing``); the first MAX_TEXTS are used.

    Raises:
        AssistantFault: the assistant gave none, or named a word that was not given.
    """
    given = {number: word for number, word in enumerate(cleaned(found), 1) if word}
    data = {**wanted.fields(), "found": {str(number): word for number, word in given.items()}}
    answer = await ask_for(talk, "ask", _Asked, _INSTRUCTIONS, data, max_tokens=300)
    numbers = list(dict.fromkeys(answer.choices))
    if not numbers or not given.keys() >= set(numbers):
        raise AssistantFault("malformed", "the assistant chose words that were not given")
    return AskedBack(taken(answer.question), [given[number] for number in numbers[:MAX_CHOICES]])
