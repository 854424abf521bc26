"""Server-sent events: the stages of an answer, each as it comes."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, ClassVar

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from serving import metrics
from serving.faults import EXPECTED, fault_of
from serving.guards.middleware import INTERNAL, request_id
from serving.search import Event

log = logging.getLogger("ray.serve")


class EventStream(StreamingResponse):
    """Server-sent events (WHATWG HTML, §9.2): ``text``, ``imagined``, ``fused`` and ``done``, or ``error`` at last."""

    media_type = "text/event-stream"
    DOCUMENTED: ClassVar[dict[int | str, dict[str, Any]]] = {
        200: {
            "description": "Events `text` and `fused` (a SearchAnswer), `imagined` (an ImaginedEvent), `done` ({}) or,"
            " in the place of what is missing, `error` (a FaultAnswer).",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    }

    @classmethod
    async def of(cls, stages: AsyncGenerator[Event]) -> EventStream:
        """Wait for the first stage, so that a search that fails at once is answered by an error in the usual way."""
        try:
            first = await anext(stages)
        except BaseException:
            await stages.aclose()
            raise
        return cls(_events(first, stages), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


async def _events(first: Event, stages: AsyncGenerator[Event]) -> AsyncGenerator[str]:
    async with aclosing(stages):
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
