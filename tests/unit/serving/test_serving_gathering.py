"""Requests that go together: which do, who gets which answer, and what those who leave or fail mean to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
from waiting import until

from cluster.profile import Replicas
from serving.deployments.calls import Unavailable
from serving.deployments.gathering import Gathering

SECONDS = 60.0


class Asked:
    """What is asked: keeps each call until it is let go. An item that is negative gets an exception."""

    def __init__(self, *, calls: int = 1, most: int = 4) -> None:
        self.calls: list[list[int]] = []
        self.seconds: list[float] = []
        self.cancelled: list[list[int]] = []
        self.may = asyncio.Event()
        self.error: Exception | None = None
        self.gathering: Gathering[int, str] = Gathering("the part", self._send, calls=calls, most=most)

    async def _send(self, items: list[int], seconds: float) -> Sequence[str | Exception]:
        self.calls.append(items)
        self.seconds.append(seconds)
        try:
            await self.may.wait()
        except asyncio.CancelledError:
            self.cancelled.append(items)
            raise
        if self.error:
            raise self.error
        return [Unavailable("the rest", "down") if item < 0 else str(item) for item in items]

    async def ask(self, *items: int, seconds: float = SECONDS) -> list[asyncio.Task[str]]:
        asking = [asyncio.create_task(self.gathering.ask(item, seconds=seconds)) for item in items]
        await settled()
        return asking


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


async def trouble(asking: asyncio.Task[str]) -> tuple[str, str]:
    with pytest.raises(Unavailable) as raised:
        await asking
    return raised.value.part, raised.value.trouble


def test_what_comes_at_once_goes_at_once_and_what_comes_meanwhile_goes_together() -> None:
    async def check() -> None:
        asked = Asked()
        first, rest = await asked.ask(1, 2), [*await asked.ask(3), *await asked.ask(4, 5, 6, 7)]
        assert asked.calls == [[1, 2]]
        asked.may.set()
        assert [await one for one in first + rest] == list("1234567")
        assert asked.calls == [[1, 2], [3, 4, 5, 6], [7]]
        await asked.ask(8)
        assert asked.calls[-1] == [8]  # the place of the calls that ended is free again

    run(check())


def test_so_many_calls_are_under_way_and_the_next_waits() -> None:
    async def check() -> None:
        asked = Asked(calls=2)
        for item in range(5):
            await asked.ask(item)
        assert asked.calls == [[0], [1]]
        asked.may.set()
        await until(lambda: len(asked.calls) == 3)
        assert asked.calls[2] == [2, 3, 4]

    run(check())


@pytest.mark.parametrize(("replicas", "calls"), [(1, 2), (2, 2), (3, 3)])
def test_a_deployment_has_a_call_for_each_replica_and_the_next_is_on_its_way(replicas: int, calls: int) -> None:
    async def check() -> None:
        asked = Asked()
        asked.gathering = Gathering.of("the part", asked._send, Replicas(max_replicas=replicas, batch=3))
        for item in range(calls + 5):
            await asked.ask(item)
        assert asked.calls == [[item] for item in range(calls)]
        asked.may.set()
        await until(lambda: len(asked.calls) == calls + 2)
        assert [len(items) for items in asked.calls[calls:]] == [3, 2]

    run(check())


def test_each_has_an_error_of_its_own_and_shares_that_of_the_call() -> None:
    async def check() -> None:
        asked = Asked()
        good, bad = await asked.ask(1, -1)
        asked.may.set()
        assert await good == "1"
        assert await trouble(bad) == ("the rest", "down")
        asked.error = Unavailable("the part", "busy")
        both = await asked.ask(2, 3)
        raised = [await trouble(one) for one in both]
        assert raised == [("the part", "busy")] * 2
        assert both[0].exception() is not both[1].exception()  # a traceback is of one task

    run(check())


def test_who_has_waited_for_too_long_is_told_so_and_the_others_are_answered() -> None:
    async def check() -> None:
        asked = Asked()
        [first] = await asked.ask(1)
        [hurried], [patient] = await asked.ask(2, seconds=0.01), await asked.ask(3)
        assert await trouble(hurried) == ("the part", "late")
        asked.may.set()
        assert [await first, await patient] == ["1", "3"]
        assert asked.calls == [[1], [3]]  # nobody waited for the second any more

    run(check())


def test_a_call_has_the_time_of_the_most_patient() -> None:
    async def check() -> None:
        asked = Asked()
        await asyncio.gather(asked.ask(1, seconds=5), asked.ask(2, seconds=50))
        assert asked.calls == [[1, 2]]
        assert 40 < asked.seconds[0] <= 50
        asked.may.set()

    run(check())


def test_a_call_is_cancelled_when_the_last_has_left_and_gives_its_place_to_the_next() -> None:
    async def check() -> None:
        asked = Asked()
        one, other = await asked.ask(1, 2)
        [waiting] = await asked.ask(3)
        one.cancel()
        await settled()
        assert asked.cancelled == []
        other.cancel()
        await settled()
        assert asked.cancelled == [[1, 2]]
        asked.may.set()
        assert await waiting == "3"

    run(check())
