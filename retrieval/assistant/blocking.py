"""An assistant, asked by code that has no event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from retrieval.assistant.endpoint import Assistant, Talk

T = TypeVar("T")


def talked(assistant: Assistant, ask: Callable[[Talk], Awaitable[T]]) -> T:
    """Return what ``ask`` returns, in an event loop of its own; a notebook's thread has one that cannot be used."""

    async def run() -> T:
        try:
            return await ask(assistant.talk())
        finally:
            await assistant.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(run())).result()
