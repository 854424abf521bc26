"""Server-sent events: the stages of an answer, each as it comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any, ClassVar

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from serving import metrics
from serving.faults import EXPECTED, fault_of
from serving.guards.middleware import INTERNAL, request_id
from serving.stages import Event

log = logging.getLogger("ray.serve")

READING_SECONDS = 10
"""Beyond its deadline that a stream may take to be read, before its place goes to another search."""


class EventStream(StreamingResponse):
    """Server-sent events (WHATWG HTML, §9.2): ``text``, ``imagined``, ``fused`` and ``done``, or ``error`` at last."""

    _stages: AsyncGenerator[Event]
    _seconds: float
    media_type = "text/event-stream"
    DOCUMENTED: ClassVar[dict[int | str, dict[str, Any]]] = {
        200: {
            "description": "Events `text` and `fused` (a SearchAnswer), `imagined` (an ImaginedEvent), `done` ({}) or,"
            " in the place of what is missing, `error` (a FaultAnswer).",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    }

    @classmethod
    async def of(cls, stages: AsyncGenerator[Event], *, seconds: float) -> EventStream:
        """Wait for the first stage, so that a search that fails at once is answered by an error in the usual way.

        Args:
            stages: of the answer; they hold the place of the search.
            seconds: that the answer may take; who reads it slower than that and ``READING_SECONDS`` is cut off.
        """
        try:
            first = await anext(stages)
        except BaseException:
            await stages.aclose()
            raise
        response = cls(_events(first, stages), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        response._stages, response._seconds = stages, seconds + READING_SECONDS
        return response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Who leaves while an event is sent leaves the stages between two steps: only garbage collection would end them.
        with suppress(TimeoutError):
            async with aclosing(self._stages), asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)


async def _events(first: Event, stages: AsyncGenerator[Event]) -> AsyncGenerator[str]:
    try:
        yield _event(*first)
        async for name, data in stages:
            yield _event(name, data)
    except EXPECTED as error:
        yield _event("error", fault_of(error)[1])
    except Exception:
        log.exception("the stream of request %s failed", request_id.get())
        metrics.refused.count(code="internal")
        yield _event("error", fault_of(HTTPException(500, INTERNAL))[1])
    else:
        yield "event: done\ndata: {}\n\n"


def _event(name: str, data: BaseModel) -> str:
    return f"event: {name}\ndata: {data.model_dump_json()}\n\n"
