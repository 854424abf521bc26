"""Single flight: one making of an entry for all who ask for it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, Generic, TypeVar

E = TypeVar("E")


class Flight(Generic[E]):
    """The making of one entry, and those who wait for it: for the entry, and whether it was there already."""

    def __init__(self, making: Coroutine[Any, Any, tuple[E, bool]]) -> None:
        # In a context of its own: Serve would cancel the calls of the making together with the first request.
        self.task: asyncio.Task[tuple[E, bool]] = asyncio.create_task(making, context=Context())
        self._waiting = 0
        self._detached = False

    async def wait(self, seconds: float | None) -> tuple[E, bool]:
        self._waiting += 1
        try:
            # asyncio.wait neither cancels the task when the waiter is cancelled, nor raises at the time limit.
            done, _ = await asyncio.wait([self.task], timeout=seconds)
            if not done:
                self._detached = True
                raise TimeoutError(f"it was not made within {seconds:g} s")
            return self.task.result()
        finally:
            self._waiting -= 1
            if not self._waiting and not self._detached:
                self.task.cancel()
