"""Making the descriptions that a file lacks, with a chat model: some classes at a time, each kept once it is there.

What is wrong with an answer is seen here as far as a program can (``wording``): such an answer is kept as rejected,
with the reason, and the class stays without. The others wait for a person.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from retrieval.assistant.describe import PROMPT, Describer, described
from retrieval.assistant.endpoint import AssistantFault
from retrieval.datasets.classes import Vocabulary
from retrieval.datasets.description_file import Description
from retrieval.datasets.wording import fault_of, spelled

_ANSWERS = ("refused", "malformed")
"""Faults that are an answer all the same: the model has spoken, and would again."""


class _Ended(Exception):
    """The model does not answer any more."""


@dataclass
class Making:
    """What a file has of the descriptions of some classes, and what became of those that it lacks.

    Attributes:
        names: what the classes are called, by key.
        wanted: how many descriptions each class lacked, by key; of those that lacked some.
        rows: what the file has of each class, by key.
        added: what was added to the file.
        again: keys of classes of which the model gave nothing but what the file has already, with what that was.
        failed: keys of classes of which there was no answer, with the reason.
        ended: why no more was asked, if so.
    """

    names: Mapping[str, str]
    wanted: dict[str, int]
    rows: dict[str, list[Description]]
    added: list[Description] = field(default_factory=list)
    again: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    ended: str | None = None

    @classmethod
    def of(cls, classes: Vocabulary, there: Iterable[Description], count: int) -> Making:
        """Return what is to be made for ``count`` descriptions of each class, beside those that are there."""
        rows: defaultdict[str, list[Description]] = defaultdict(list)
        for each in there:
            if key := classes.match(each.label).key:
                rows[key].append(each)
        making = cls(classes.names, {}, dict(rows))
        making.wanted = making.lacking(count)
        return making

    def lacking(self, count: int) -> dict[str, int]:
        """Return how many of ``count`` descriptions each class lacks now, by key; of those that lack some."""
        lacks = {key: count - sum(each.is_used for each in self.rows.get(key, ())) for key in self.names}
        return {key: number for key, number in lacks.items() if number > 0}

    @property
    def unreviewed(self) -> int:
        """How many descriptions a person has still to review."""
        return sum(each.status == "made" and bool(each.text) for rows in self.rows.values() for each in rows)

    def sorted_out(self, key: str, texts: Sequence[str], model: str, fault: str | None = None) -> list[Description]:
        """Return what is to be added of an answer, and note the rest.

        Args:
            key: of the class.
            texts: that were given.
            model: that gave them.
            fault: what is wrong with the answer as a whole.
        """
        new = []
        for text in texts or [""]:
            there = self.rows.setdefault(key, [])
            if spelled(text) in [spelled(each.text) for each in there]:
                self.again[key] = text or fault or "nothing"
                continue
            problem = fault or fault_of(text, self.names[key]) or self._of_another(key, text)
            status = "rejected" if problem else "made"
            new.append(Description(key, text, status, problem or "", self.names[key], model, PROMPT))  # type: ignore[arg-type]
            there.append(new[-1])
            if not problem:
                self._of_words[spelled(text)] = key
        if new:
            self.again.pop(key, None)
        return new

    def _of_another(self, key: str, text: str) -> str | None:
        other = self._of_words.get(spelled(text), key)
        return None if other == key else f"is the description of {other} as well"

    @cached_property
    def _of_words(self) -> dict[str, str]:
        """A class that is described by some words."""
        return {spelled(each.text): key for key, rows in self.rows.items() for each in rows if each.is_used}


async def make(
    describer: Describer, making: Making, add: Callable[[Sequence[Description]], None], told: Callable[[], None]
) -> None:
    """Ask for what is wanted, and add it to the file class by class. A model that fails ends it, and is no error.

    It is given up when as many calls in a row have failed as are under way at a time.

    Args:
        describer: is closed at the end.
        making: is told what becomes of it; what was asked before an interruption is in it, too.
        add: of ``description_file.adding``.
        told: is called after each class.
    """
    waiting = iter(making.wanted.items())
    failed = 0

    async def ask() -> None:
        nonlocal failed
        for key, count in waiting:
            others = [each.text for each in making.rows.get(key, ()) if each.text]
            texts, fault = [""], None
            try:
                texts = await described(describer.talk(), making.names[key], count, others)
            except AssistantFault as error:
                if error.reason not in _ANSWERS:
                    making.failed[key] = str(error)
                    failed += 1
                    if failed >= describer.at_once:
                        making.ended = str(error)
                        raise _Ended from error
                    told()
                    continue
                fault = str(error)
            failed = 0
            new = making.sorted_out(key, texts, describer.model, fault)
            if new:
                add(new)
                making.added += new
            told()

    asking = [asyncio.create_task(ask()) for _ in range(min(describer.at_once, len(making.wanted)))]
    try:
        await asyncio.gather(*asking)
    except _Ended:
        pass
    finally:
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await describer.close()
