"""The second stage by an assistant, in one process: pictures of what was found are read from the gallery's source."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

from retrieval.assistant import grid
from retrieval.assistant.ask import NOTHING_TO_ASK, AskedBack, asked_back, differing
from retrieval.assistant.blocking import talked
from retrieval.assistant.endpoint import Assistant, AssistantFault, Spent, Talk
from retrieval.assistant.judge import SIDE
from retrieval.assistant.material import Wanted, small_jpeg
from retrieval.assistant.rerank import Reranked, Way, check_can_judge, reranked
from retrieval.assistant.rewrite import not_worded, rewritten
from retrieval.bridge import Reading
from retrieval.evidence import Evidence, Text
from retrieval.sources.lookup import ImageLookup

T = TypeVar("T")


@dataclass(frozen=True)
class Judging:
    """A second stage to come: who judges, how, and by which words."""

    assistant: Assistant
    way: Way
    wanted: Wanted

    @classmethod
    def of(cls, assistant: Assistant | None, way: Way, evidence: Sequence[Evidence]) -> Judging:
        """Return what is to judge by the texts of evidence.

        Raises:
            UserError: as ``check_can_judge``.
        """
        wanted = _texts(evidence)
        return cls(check_can_judge(assistant, wanted), way, wanted)

    def reranked(self, rows: Sequence[Mapping[str, Any]], sources: Mapping[str, str]) -> Reranked:
        """Order rows of an index anew, as ``rerank.reranked``, which never fails.

        Args:
            rows: best first; ``batch`` and ``path`` say where the picture is.
            sources: of the batches, of the index's manifest.
        """
        side = SIDE if self.way == "judge" else grid.TILE
        pictures = [_picture(sources[row["batch"]], row["path"], side) for row in rows]
        return talked(self.assistant, lambda talk: reranked(talk, self.way, self.wanted, pictures))


class AskedFor(NamedTuple, Generic[T]):
    """What an assistant answered, or why it did not, and what it was asked for it."""

    answer: T | None
    shortfall: str | None
    spent: Spent


def asked_of(
    assistant: Assistant | None,
    evidence: Sequence[Evidence],
    labels: Sequence[str | None],
    refinements: Sequence[str] = (),
    reading: Reading | None = None,
) -> AskedFor[AskedBack]:
    """Return the next question to whoever searches by evidence; it does not fail if the assistant does.

    Args:
        labels, refinements: of the results, as ``differing``.
        reading: what pictures were read as, whose text was searched for in the place of what is wanted.

    Raises:
        UserError: as ``check_can_judge``.
    """
    against = [piece for piece in evidence if piece.weight < 0]
    wanted = _texts([Text(reading.text), *against] if reading else evidence)
    asked, words = check_can_judge(assistant, wanted), differing(labels, refinements, wanted)
    if not words:
        return AskedFor(None, NOTHING_TO_ASK, Spent())
    return _asked(asked, lambda talk: asked_back(talk, wanted, words))


def reworded(assistant: Assistant, evidence: Sequence[Evidence], read: Sequence[str]) -> AskedFor[str]:
    """Return one text for the texts of evidence and what was read from its pictures; as ``asked_of``."""
    wanted = _texts(evidence, read)
    asked = _asked(check_can_judge(assistant, wanted), lambda talk: rewritten(talk, wanted))
    return asked._replace(shortfall=not_worded(asked.shortfall)) if asked.shortfall else asked


def _asked(assistant: Assistant, ask: Callable[[Talk], Awaitable[T]]) -> AskedFor[T]:
    async def tried(talk: Talk) -> AskedFor[T]:
        try:
            return AskedFor(await ask(talk), None, talk.spent)
        except AssistantFault as fault:
            return AskedFor(None, str(fault), talk.spent)

    return talked(assistant, tried)


def _texts(evidence: Sequence[Evidence], read: Sequence[str] = ()) -> Wanted:
    return Wanted.of(((piece.text, piece.weight) for piece in evidence if isinstance(piece, Text)), read)


def _picture(source: str, path: str, side: int) -> bytes | None:
    try:
        data = _lookup(source).bytes_of(path)
    except OSError:  # the source is away: the row keeps its place
        return None
    return small_jpeg(data, side) if data else None


@lru_cache(maxsize=8)
def _lookup(source: str) -> ImageLookup:
    return ImageLookup(source)
