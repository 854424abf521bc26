"""Places for searches: how many there are, whose turn is next, and who is refused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest
from waiting import until

from serving.admission import Admission
from serving.deployments.calls import Deadline, Unavailable


class Callers:
    """Searches by name; each runs until it is let go."""

    def __init__(self, running: int, waiting: int) -> None:
        self.now = 0.0
        self.admission = Admission(running, waiting, lambda: self.now)
        self.running: list[str] = []
        self._may_end: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, *, seconds: float = 60) -> asyncio.Task[None]:
        """A search of the caller that its name begins with: ``ann 1`` is one of ann's."""
        self._may_end[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._search(name, Deadline(seconds)))
        await settled()
        return self._tasks[name]

    async def go(self, *names: str) -> None:
        for name in names:
            self._may_end[name].set()
            await self._tasks[name]
            await settled()

    async def _search(self, name: str, deadline: Deadline) -> None:
        async with self.admission.place(name.split()[0], deadline):
            self.running.append(name)
            await self._may_end[name].wait()
        self.running.remove(name)


async def settled() -> None:
    """All that can happen now has happened."""
    for _ in range(5):
        await asyncio.sleep(0)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


async def trouble(task: asyncio.Task[None]) -> str:
    with pytest.raises(Unavailable) as raised:
        await task
    assert raised.value.part == "the service"
    return raised.value.trouble


def test_so_many_run_and_so_many_wait_and_the_next_is_refused_at_once() -> None:
    async def check() -> None:
        callers = Callers(2, 2)
        for i in range(4):
            await callers.come(f"ann {i}")
        assert callers.running == ["ann 0", "ann 1"]
        refused = await callers.come("ann 4")
        assert refused.done()
        assert await trouble(refused) == "busy"
        await callers.go("ann 1")
        assert callers.running == ["ann 0", "ann 2"]
        await callers.go("ann 0", "ann 2", "ann 3")
        assert callers.running == []
        await callers.come("ann 5")
        await callers.come("ann 6")
        assert callers.running == ["ann 5", "ann 6"]
        await callers.go("ann 5", "ann 6")

    run(check())


def test_who_asks_for_little_is_next_and_is_not_refused_beside_one_who_asks_for_much() -> None:
    async def check() -> None:
        callers = Callers(2, 2)
        waiting = [await callers.come(f"ann {i}") for i in range(4)][2:]
        bob = await callers.come("bob 0")
        assert await trouble(waiting[1]) == "busy"  # her last makes room
        assert not bob.done()
        assert await trouble(await callers.come("ann 4")) == "busy"
        await callers.go("ann 0")
        assert callers.running == ["ann 1", "bob 0"]  # before her third, which came first
        await callers.go("ann 1", "bob 0", "ann 2")

    run(check())


def test_a_search_that_comes_in_counts_before_it_has_asked_for_its_place() -> None:
    async def check() -> None:
        callers = Callers(2, 2)
        coming = callers.admission.coming
        for i in range(2):
            await callers.come(f"ann {i}")
        with coming("ann") as third, coming("ann") as fourth, coming("ann") as fifth, coming("bob") as other:
            assert (third, fourth, fifth) == (True, True, False)
            assert other  # who has fewer here is never refused before those who have more
            callers.now += 2  # they send their bodies slowly, and take no place from others
            with coming("ann") as sixth:
                assert sixth
        await callers.go("ann 0", "ann 1")

    run(check())


def test_a_search_that_has_its_place_counts_once() -> None:
    async def check() -> None:
        callers = Callers(2, 1)
        coming, place = callers.admission.coming, callers.admission.place
        with coming("ann") as first:
            async with place("ann", Deadline(60)):
                with coming("ann") as second, coming("ann") as third, coming("ann") as fourth:
                    assert (first, second, third, fourth) == (True, True, True, False)

    run(check())


def test_further_places_are_those_that_are_free_and_half_of_them_stay_so() -> None:
    async def check() -> None:
        callers = Callers(running=6, waiting=1)
        more = callers.admission.more
        await callers.come("ann 1")
        with more("ann", 9) as first, more("ann", 9) as second, more("ann", 1) as third:
            assert (first, second, third) == (2, 1, 1)
            for name in ("ann 2", "bob 1"):
                await callers.come(name)
            assert callers.running == ["ann 1", "ann 2"]
            with more("bob", 1) as none:
                assert none == 0
            await callers.come("ann 3")  # ann has more searches here than bob
            await callers.go("ann 1")
            assert callers.running == ["ann 2", "bob 1"]
        with more("ann", 9) as again:
            assert again == 2
        await callers.go("ann 2", "bob 1")
        with more("ann", 1) as one:
            assert one == 1
        assert callers.admission._free == 6
        assert not callers.admission._running

    run(check())


def test_those_who_ask_for_as_much_refuse_one_another_nothing() -> None:
    async def check() -> None:
        callers = Callers(1, 1)
        await callers.come("ann 0")
        waiting = await callers.come("bob 0")
        assert await trouble(await callers.come("eve 0")) == "busy"
        assert not waiting.done()
        await callers.go("ann 0", "bob 0")

    run(check())


def test_without_places_to_wait_in_a_full_service_refuses() -> None:
    async def check() -> None:
        callers = Callers(1, 0)
        await callers.come("ann 0")
        assert await trouble(await callers.come("bob 0")) == "busy"
        await callers.go("ann 0")

    run(check())


def test_who_waits_for_too_long_is_told_so_and_who_leaves_makes_room() -> None:
    async def check() -> None:
        callers = Callers(1, 1)
        await callers.come("ann 0")
        assert await trouble(await callers.come("bob 0", seconds=0.01)) == "late"
        gone = await callers.come("bob 1")
        gone.cancel()
        await until(gone.done)
        await callers.come("bob 2")
        await callers.go("ann 0")
        assert callers.running == ["bob 2"]
        await callers.go("bob 2")

    run(check())


def test_a_place_given_to_one_who_leaves_in_that_moment_is_not_lost() -> None:
    async def check() -> None:
        callers = Callers(1, 2)
        first = await callers.come("ann 0")
        for name in ("bob 0", "bob 1"):
            leaving = await callers.come(name)
            callers._may_end["ann 0"].set()
            while not first.done():
                await asyncio.sleep(0)
            leaving.cancel()
            await until(leaving.done)
            first = await callers.come("ann 0")
            assert callers.running == ["ann 0"]
        waiting = await callers.come("bob 2")
        waiting.cancel()  # its turn comes before it hears of that
        await callers.go("ann 0")
        await callers.come("ann 1")
        assert callers.running == ["ann 1"]
        await callers.go("ann 1")

    run(check())


def test_whoever_comes_and_goes_every_place_is_given_back() -> None:
    """Callers come, leave, are late and are cancelled, also between their turn and the next step of their task."""

    async def check(seed: int) -> None:
        chance, admission = random.Random(seed), Admission(3, 3)

        async def search() -> None:
            deadline = Deadline(chance.choice([0, 0.001, 0.002, 1]))
            with suppress(Unavailable, LookupError):
                async with admission.place(chance.choice("abcd"), deadline):
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                    if chance.random() < 0.2:
                        raise LookupError

        tasks = []
        for _ in range(300):
            tasks.append(asyncio.create_task(search()))
            if chance.random() < 0.4:
                chance.choice(tasks[-10:]).cancel()
            if chance.random() < 0.4:
                await asyncio.sleep(0)
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends} <= {type(None), asyncio.CancelledError}
        a, b, c = (admission.place(caller, Deadline(1)) for caller in "abc")
        async with a, b, c:
            pass

    for seed in range(20):
        run(check(seed))
