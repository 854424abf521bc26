"""Waiting in tests for what will be so, in the place of a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any]) -> None:
    """Wait until it is so; the test's own time limit ends it."""
    while not condition():
        await asyncio.sleep(0.01)
