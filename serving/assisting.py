"""The assistant as the ingress asks it: with a circuit breaker, within a share of the places, and counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

from cachetools import LRUCache

from retrieval.assistant import grid
from retrieval.assistant.ask import AskedBack, asked_back, differing
from retrieval.assistant.endpoint import Assistant, AssistantFault, Call, Talk
from retrieval.assistant.judge import SIDE
from retrieval.assistant.material import Wanted, small_jpeg
from retrieval.assistant.rerank import Way, in_order, reranked
from retrieval.assistant.rewrite import rewritten
from serving import metrics
from serving.asked import Shortfall
from serving.breaker import Breaker
from serving.deployments.calls import Deadline, Trouble, Unavailable
from serving.deployments.messages import Row
from serving.protocol import QuestionAnswer, SearchAnswer

T = TypeVar("T")

PAUSE_SECONDS = 30.0
"""How long nobody asks an assistant that was found down, busy or silent."""
SHARE, SHARE_OF_PICTURES, SHARE_OF_WORDS = 0.9, 0.4, 0.3
"""Of the time that a request has left: all of the second stage, or a question; reading the pictures for the first; and
wording a query.
"""
CACHED = 1_000
"""Orders, and questions, that are cached: what was paid for is not asked again by a page that is loaded again."""
_TRIPS: frozenset[Trouble] = frozenset({"down", "busy", "late"})
_TROUBLES: dict[str, Trouble] = {"down": "down", "busy": "busy", "late": "late"}

log = logging.getLogger("ray.serve")


class Reordered(NamedTuple):
    """The places of the first rows, best first, None if their order stays; P(yes) of each that was judged; and what the
    assistant did not do.
    """

    order: list[int] | None
    scores: list[float | None]
    shortfall: Shortfall | None

    def places(self, count: int) -> list[tuple[int, float | None]]:
        """Return the places of ``count`` rows in their new order, each with its P(yes)."""
        return in_order(self.order, self.scores, count)


class Assisting:
    """Has an assistant put results in order, ask back, and word queries. It fails no search. For one event loop.

    Args:
        assistant: of the profile.
        picture: reads the file of a row's picture; None if it has none.
        seconds: the longest that a search may take.
        at_once: searches that may wait for the assistant at a time, so that others have places left.
    """

    def __init__(
        self,
        assistant: Assistant,
        picture: Callable[[Row], Awaitable[bytes | None]],
        *,
        seconds: float,
        at_once: int,
    ) -> None:
        self._assistant = assistant
        self._picture = picture
        self._long_enough = min(assistant.seconds, SHARE * seconds) / 2
        """How long it must have been waited for to be called silent: else who gives it no time would end it for all."""
        self._free = at_once
        self._breaker = Breaker("the assistant", partial(asyncio.sleep, PAUSE_SECONDS), _TRIPS)
        self._orders: LRUCache[tuple[str, ...], Reordered] = LRUCache(CACHED)
        self._questions: LRUCache[tuple[str, ...], AskedBack] = LRUCache(CACHED)

    async def reorder(
        self, way: Way, wanted: Wanted, rows: Sequence[Row], version: str, *, seconds: float
    ) -> Reordered:
        """Order rows anew, as many as the assistant may be shown.

        Args:
            wanted: in words, some of them for something.
            rows: best first.
            version: URI of the index that they are of.
            seconds: that the request has left.
        """
        rows = rows[: self._assistant.depth]
        key = (way, repr(wanted.fields()), version, *(row.id for row in rows))
        if (known := self._orders.get(key)) is not None:
            return known
        if not wanted:
            return Reordered(None, [], Shortfall("assistant", "the assistant judges by words, and none were read"))
        deadline = Deadline(SHARE * seconds)
        try:
            with self._place():
                side = SIDE if way == "judge" else grid.TILE
                pictures = await self._pictures(side, rows, SHARE_OF_PICTURES * seconds)
                allowed = deadline.left
                found = await reranked(self._assistant.talk(allowed), way, wanted, pictures)
        except Unavailable as error:
            return Reordered(None, [], Shortfall("assistant", str(error)))
        if found.order is None and found.fault:
            self._record(found.fault, allowed)
        if found.fault:
            log.warning("%s", found.shortfall)
        shortfall = Shortfall("assistant", found.shortfall) if found.shortfall else None
        reordered = Reordered(found.order, found.scores, shortfall)
        if not shortfall:
            self._orders[key] = reordered
        return reordered

    async def reword(self, wanted: Wanted, *, seconds: float) -> str:
        """Return one text for what is wanted.

        Raises:
            Unavailable: the assistant is not asked just now.
            AssistantFault: it gave none.
        """
        return await self._asked(lambda talk: rewritten(talk, wanted), SHARE_OF_WORDS * seconds)

    async def question(self, wanted: Wanted, found: SearchAnswer, *, seconds: float) -> QuestionAnswer:
        """Return what would narrow a search most, or why there is no question: where nothing could, nothing fell short.

        Args:
            wanted: in words, as far as they are known.
            found: what the search has found.
            seconds: that the request has left.
        """
        words = differing([result.label for result in found.results], found.refinements, wanted)
        key = (repr(wanted.fields()), *words)
        asked, sentence = self._questions.get(key), None
        if not wanted:
            sentence = "the assistant asks by words, and none were read"
        elif words and not asked:
            try:
                asked = await self._asked(lambda talk: asked_back(talk, wanted, words), SHARE * seconds)
                self._questions[key] = asked
            except (Unavailable, AssistantFault) as error:
                sentence = str(error)
                metrics.degraded.count(reason="assistant")
        return QuestionAnswer(
            question=asked.question if asked else None,
            choices=asked.choices if asked else [],
            degraded=sentence,
            request_id=found.request_id,
        )

    async def _asked(self, ask: Callable[[Talk], Awaitable[T]], seconds: float) -> T:
        with self._place():
            try:
                return await ask(self._assistant.talk(seconds))
            except AssistantFault as fault:
                log.warning("%s", fault)
                self._record(fault, seconds)
                raise

    @contextmanager
    def _place(self) -> Iterator[None]:
        self._breaker.check()
        if not self._free:
            raise Unavailable("the assistant", "busy")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def _pictures(self, side: int, rows: Sequence[Row], seconds: float) -> list[bytes | None]:
        async def one(row: Row) -> bytes | None:
            try:
                async with asyncio.timeout(seconds):
                    data = await self._picture(row)
                    return await asyncio.to_thread(small_jpeg, data, side) if data else None
            except (Unavailable, TimeoutError):
                return None

        return await asyncio.gather(*map(one, rows))

    def _record(self, fault: AssistantFault, allowed: float) -> None:
        trouble = _TROUBLES.get(fault.reason)
        if trouble and (trouble != "late" or allowed >= self._long_enough):
            self._breaker.record(Unavailable("the assistant", trouble))


def counted(call: Call) -> None:
    """Count a call in the metrics."""
    metrics.assistant_calls.count(task=call.task, outcome=call.outcome)
    metrics.assistant_tokens.count(call.tokens_in, task=call.task, direction="in")
    metrics.assistant_tokens.count(call.tokens_out, task=call.task, direction="out")
    metrics.assistant_seconds.observe(call.seconds, task=call.task)
