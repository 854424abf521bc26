"""Waiting in tests for what will be so, in the place of a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any]) -> None:
    """Wait until it is so; the test's own time limit ends it."""
    while not condition():
        await asyncio.sleep(0.01)


def wait_until(condition: Callable[[], Any]) -> None:
    """Wait until it is so, outside asyncio."""
    while not condition():
        time.sleep(0.02)
