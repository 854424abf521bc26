"""Rewriting: a query of several pieces, as far as it is in words, to the one text that is searched for and imagined.

As CIReVL (Karthik et al. 2024), SQUARE and CoTMR do it with a caption and a wanted change.
"""

from __future__ import annotations

from pydantic import BaseModel

from retrieval.assistant.endpoint import AssistantFault, Talk
from retrieval.assistant.material import Wanted, ask_for, taken
from retrieval.errors import UserError
from retrieval.prompts import usable

_INSTRUCTIONS = (
    "Somebody looks for images. 'picture' holds words that describe a picture they gave, 'wanted' what the image shall"
    " be or have, 'unwanted' what it shall not. Describe the image they look for, in one short phrase: where 'wanted'"
    " and 'picture' speak of the same aspect, 'wanted' holds; leave out what is unwanted, and do not name it."
)


class _Rewritten(BaseModel):
    text: str


def not_worded(why: object) -> str:
    """Return the sentence by which an answer says that the dictionary's own words were searched for."""
    return f"the assistant did not word the query: {why}"


async def rewritten(talk: Talk, wanted: Wanted) -> str:
    """Return one text for what is wanted.

    Raises:
        AssistantFault: the assistant gave none that could be a query.
    """
    answer = await ask_for(talk, "rewrite", _Rewritten, _INSTRUCTIONS, wanted.fields(), max_tokens=200)
    try:
        return usable(taken(answer.text))
    except UserError:
        raise AssistantFault("malformed", "the assistant's text cannot be a query") from None
