"""A circuit breaker: while a deployment has no replica that answers, nobody waits for the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from serving.deployments.calls import Trouble, Unavailable


class Breaker:
    """Fails calls at once after one that found no replica, until ``probe`` gets an answer or gives up.

    Serve holds a call, and with it the client, until there is a replica. That an idle one died is noticed only when the
    next call is late.

    Args:
        part: what to call the deployment in messages.
        probe: waits for an answer of the deployment.
        trips: what opens the circuit.
    """

    TRIPS: frozenset[Trouble] = frozenset({"down", "late"})

    def __init__(self, part: str, probe: Callable[[], Awaitable[Any]], trips: frozenset[Trouble] = TRIPS) -> None:
        self._part = part
        self._probe = probe
        self._trips = trips
        self._trouble: Trouble = "down"
        self._probing: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Pass while the circuit is closed.

        Raises:
            Unavailable: it is open, with the trouble that opened it.
        """
        if self._probing and not self._probing.done():
            raise Unavailable(self._part, self._trouble)

    def record(self, error: Unavailable) -> None:
        """Open the circuit if a call failed for want of a replica."""
        if error.trouble in self._trips:
            self._trouble = error.trouble
            self._probing = asyncio.create_task(self._until_it_answers())

    async def _until_it_answers(self) -> None:
        with suppress(Unavailable):
            await self._probe()
