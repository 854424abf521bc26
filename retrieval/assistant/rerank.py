"""The second stage by an assistant: the first results anew, judged one by one (``judge``) or on one grid (``list``).

Only the order of what was found changes. A result whose picture cannot be shown or was not judged in time keeps its
place, and the others are sorted among the places that remain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal, NamedTuple

from retrieval.assistant.endpoint import Assistant, AssistantFault, Reason, Spent, Talk
from retrieval.assistant.judge import judged
from retrieval.assistant.listing import ordered
from retrieval.assistant.material import Wanted
from retrieval.errors import UserError

Way = Literal["judge", "list"]
HOPELESS: frozenset[Reason] = frozenset({"down", "busy", "rejected"})
"""After one of these the other pictures are not shown."""


class Reranked(NamedTuple):
    """What became of an order.

    Attributes:
        order: places in the order before, best first; None if it stays as it was.
        scores: P(yes) of each place, None of those that were not judged; empty if nothing was judged.
        shortfall: what the assistant did not do of what it was asked; None if it did all.
        fault: the first that it made.
        spent: calls and tokens.
    """

    order: list[int] | None
    scores: list[float | None]
    shortfall: str | None
    fault: AssistantFault | None
    spent: Spent

    def places(self, count: int) -> list[tuple[int, float | None]]:
        """Return the places of ``count`` results in their new order, each with its P(yes)."""
        return in_order(self.order, self.scores, count)


def in_order(order: Sequence[int] | None, scores: Sequence[float | None], count: int) -> list[tuple[int, float | None]]:
    """Return the places of ``count`` results with the first of them in a new order, if there is one, and scored."""
    places = list(order or ())
    known = scores or [None] * len(places)
    return [*((place, known[place]) for place in places), *((place, None) for place in range(len(places), count))]


def check_can_judge(assistant: Assistant | None, wanted: Wanted | None) -> Assistant:
    """Return the assistant that is to judge by such words; None if they are still to be read from pictures.

    Raises:
        UserError: there is none (code ``no-assistant``), or there are no words for what is wanted (``no-words``). The
            field is ``rerank``.
    """
    if assistant is None:
        raise UserError(
            "there is no assistant to judge what was found: a profile names one as models.assistant",
            code="no-assistant",
            field="rerank",
        )
    if wanted is not None and not wanted:
        raise UserError(
            "an assistant judges by words, and there is no text among what is wanted: give one",
            code="no-words",
            field="rerank",
        )
    return assistant


async def reranked(talk: Talk, way: Way, wanted: Wanted, pictures: Sequence[bytes | None]) -> Reranked:
    """Order the first results anew. It never fails: an assistant that does is named in ``shortfall``.

    Args:
        pictures: of the results in their order, small JPEG files; None where there is none to show. Those beyond the
            assistant's depth are not shown.
    """
    shown = [place for place, picture in enumerate(pictures[: talk.assistant.depth]) if picture]
    files = [picture for picture in pictures[: talk.assistant.depth] if picture]
    if len(shown) < 2:
        return Reranked(None, [], "fewer than two results have a picture to be shown", None, talk.spent)
    if way == "judge":
        return await _judged(talk, wanted, files, shown, len(pictures))
    try:
        order = await ordered(talk, wanted, files)
    except AssistantFault as fault:
        return Reranked(None, [], str(fault), fault, talk.spent)
    return Reranked(_placed(shown, order, len(pictures)), [], None, None, talk.spent)


async def _judged(talk: Talk, wanted: Wanted, files: Sequence[bytes], shown: Sequence[int], count: int) -> Reranked:
    at_once = asyncio.Semaphore(talk.assistant.at_once)
    ended: AssistantFault | None = None

    async def one(picture: bytes) -> float | AssistantFault:
        nonlocal ended
        async with at_once:
            if ended:
                return ended
            try:
                return await judged(talk, wanted, picture)
            except AssistantFault as fault:
                if fault.reason in HOPELESS or not talk.left:
                    ended = fault
                return fault

    answers = await asyncio.gather(*map(one, files))
    faults = [answer for answer in answers if isinstance(answer, AssistantFault)]
    known = {place: answer for place, answer in zip(shown, answers, strict=True) if isinstance(answer, float)}
    if len(known) < 2:
        return Reranked(None, [], str(faults[0]), faults[0], talk.spent)
    shortfall = f"{len(faults)} of {len(files)} pictures were not judged: {faults[0]}" if faults else None
    free = sorted(known)
    order = sorted(range(len(free)), key=lambda i: -known[free[i]])  # equals stay as they were
    scores = [known.get(place) for place in range(count)]
    return Reranked(_placed(free, order, count), scores, shortfall, faults[0] if faults else None, talk.spent)


def _placed(free: Sequence[int], order: Sequence[int], count: int) -> list[int]:
    """Sort what stands in the ``free`` places by ``order``; everything else stays where it is."""
    places = list(range(count))
    for place, i in zip(free, order, strict=True):
        places[place] = free[i]
    return places
