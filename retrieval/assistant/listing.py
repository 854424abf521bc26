"""Ordering a list: the first results on one picture, with numbers, answered by their order.

As CoTRR and SQUARE show a grid to a vision model. What the answer leaves out follows in the order it had, and of what
it names twice the first counts (as Sun et al. 2023 read lists); a number that is not on the picture makes it void.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from retrieval.assistant import grid
from retrieval.assistant.endpoint import AssistantFault, Talk
from retrieval.assistant.material import Wanted, ask_for, jpeg

_INSTRUCTIONS = (
    "Somebody looks for images: 'wanted' and 'picture' say what an image shall show, 'unwanted' what it shall not. The"
    " picture shows 'count' images in 'columns' columns, each under its number. Give the numbers in the order in which"
    " the images fit, the best first."
)


class _Ordered(BaseModel):
    order: list[int]


async def ordered(talk: Talk, wanted: Wanted, pictures: Sequence[bytes]) -> list[int]:
    """Return the places of the pictures, from 0, best first.

    Args:
        pictures: JPEG files, in the order so far.

    Raises:
        AssistantFault: the assistant gave no order, or one of other pictures.
    """
    count = len(pictures)
    sheet = jpeg(grid.numbered(pictures))
    data = {**wanted.fields(), "count": count, "columns": grid.columns(count)}
    answer = await ask_for(talk, "list", _Ordered, _INSTRUCTIONS, data, [sheet], max_tokens=8 * count + 40)
    places = [number - 1 for number in dict.fromkeys(answer.order)]
    if not places or not all(0 <= place < count for place in places):
        raise AssistantFault("malformed", "the assistant ordered images that it was not shown")
    named = set(places)
    return places + [place for place in range(count) if place not in named]
