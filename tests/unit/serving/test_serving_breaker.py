"""The circuit breaker by itself: what opens it, what it says meanwhile, and what closes it."""

from __future__ import annotations

import asyncio

import pytest
from waiting import until

from serving.breaker import Breaker
from serving.deployments.calls import Trouble, Unavailable


class Deployment:
    """Answers once it ``may``, or gives up with ``error``."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.error: Unavailable | None = None
        self.probes = 0

    async def probe(self) -> None:
        self.probes += 1
        await self.may.wait()
        if self.error:
            raise self.error


def is_open(breaker: Breaker) -> bool:
    try:
        breaker.check()
    except Unavailable:
        return True
    return False


def test_what_opens_it_can_be_said() -> None:
    async def check() -> None:
        breaker = Breaker("it", Deployment().probe, frozenset({"busy"}))
        for trouble in ("down", "busy"):
            breaker.record(Unavailable("it", trouble))
            assert is_open(breaker) == (trouble == "busy")

    asyncio.run(check())


@pytest.mark.parametrize("trouble", ["down", "late"])
@pytest.mark.parametrize("gives_up", [False, True])
def test_it_is_open_from_a_call_without_replica_until_the_probe_ends(trouble: Trouble, gives_up: bool) -> None:
    async def check() -> None:
        deployment = Deployment()
        breaker = Breaker("it", deployment.probe)
        assert not is_open(breaker)
        breaker.record(Unavailable("it", trouble))
        with pytest.raises(Unavailable) as error:
            breaker.check()
        assert (error.value.part, error.value.trouble) == ("it", trouble)
        deployment.error = Unavailable("it", "late") if gives_up else None
        deployment.may.set()
        await until(lambda: not is_open(breaker))
        assert deployment.probes == 1

    asyncio.run(check())


@pytest.mark.parametrize("trouble", ["busy", "failed", "starting"])
def test_a_replica_that_answers_badly_does_not_open_it(trouble: Trouble) -> None:
    async def check() -> None:
        deployment = Deployment()
        breaker = Breaker("it", deployment.probe)
        breaker.record(Unavailable("it", trouble))
        assert not is_open(breaker)
        assert deployment.probes == 0

    asyncio.run(check())
