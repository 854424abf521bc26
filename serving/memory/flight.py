"""Single flight: one making of an entry for all who ask for it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

from serving.memory.entry import Remembered

Made = tuple[Remembered, bool]
"""An entry, and whether it was there already."""


class Flight:
    """The making of one entry, and those who wait for it."""

    def __init__(self, making: Coroutine[Any, Any, Made]) -> None:
        # In a context of its own: Serve would cancel the calls of the making together with the first request.
        self.task: asyncio.Task[Made] = asyncio.create_task(making, context=Context())
        self._waiting = 0
        self._detached = False

    async def wait(self, seconds: float | None) -> Made:
        self._waiting += 1
        try:
            # asyncio.wait neither cancels the task when the waiter is cancelled, nor raises at the time limit.
            done, _ = await asyncio.wait([self.task], timeout=seconds)
            if not done:
                self._detached = True
                raise TimeoutError(f"the query was not imagined within {seconds:g} s")
            return self.task.result()
        finally:
            self._waiting -= 1
            if not self._waiting and not self._detached:
                self.task.cancel()
