"""Which searches run now and which wait. Pages and pictures need no place: nobody is shown half a page."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from serving import metrics
from serving.deployments.calls import Deadline, Unavailable

COMING_SECONDS = 1
"""For so long a search counts before it has asked for its place: who sends a body slowly takes none from others."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    caller: str
    turn: asyncio.Future[None]


@dataclass(frozen=True, eq=False)
class _Coming:
    caller: str
    since: float


_announced: ContextVar[_Coming | None] = ContextVar("announced", default=None)


class Admission:
    """Places for the searches of one replica. For one event loop.

    A place that becomes free goes to the caller with the fewest searches under way, of several to who came first. When
    nobody else may wait, the caller with the most searches here loses the one that came last, if another caller comes
    with fewer: who asks for much does not keep out who asks for little.

    Args:
        running: searches under way at most.
        waiting: searches that may wait for a place.
        clock: in seconds.
    """

    def __init__(self, running: int, waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._free = running
        self._all = running + waiting
        self._clock = clock
        self._coming: set[_Coming | None] = set()
        self._room = waiting
        self._running: Counter[str] = Counter()
        self._waiting: list[_Waiting] = []

    @contextmanager
    def coming(self, caller: str) -> Iterator[bool]:
        """Say whether a search may come in at all. If it may, it counts from then on: so many may not come in, while
        their bodies are read, that most of them have to be refused after that.
        """
        if self._crowded(caller):
            yield False
            return
        mine = _Coming(caller, self._clock())
        self._coming.add(mine)
        before = _announced.set(mine)
        try:
            yield True
        finally:
            _announced.reset(before)
            self._coming.discard(mine)

    @asynccontextmanager
    async def place(self, caller: str, deadline: Deadline) -> AsyncIterator[None]:
        """Have a place while a block lasts.

        Raises:
            Unavailable: no place was left to wait in (busy), or none became free by the deadline (late).
        """
        self._coming.discard(_announced.get())
        if self._free:
            self._free -= 1
            self._running[caller] += 1
        else:
            await self._wait(caller, deadline)
        try:
            yield
        finally:
            self._leave(caller)

    @contextmanager
    def more(self, caller: str, most: int) -> Iterator[int]:
        """Have further places while a block lasts, for a search that has one and much to do: so many, or as many as
        leave half of those that are free to others. Yields how many they are.
        """
        taken = min(most, self._free // 2)
        self._free -= taken
        self._running[caller] += taken
        try:
            yield taken
        finally:
            for _ in range(taken):
                self._leave(caller)

    async def _wait(self, caller: str, deadline: Deadline) -> None:
        if len(self._hopeful()) >= self._room:
            self._make_room(caller)
        mine = _Waiting(caller, asyncio.get_running_loop().create_future())
        self._waiting.append(mine)
        try:
            with metrics.waiting.one(part="ingress"):
                async with asyncio.timeout(deadline.left):
                    await mine.turn
        except BaseException as error:
            if mine in self._waiting:
                self._waiting.remove(mine)
            elif not mine.turn.exception():  # it was given a place in the moment in which it gave up
                self._leave(caller)
            if isinstance(error, TimeoutError):
                raise Unavailable("the service", "late") from error
            raise

    def _leave(self, caller: str) -> None:
        self._running[caller] -= 1
        if not self._running[caller]:
            del self._running[caller]
        if not (waiting := self._hopeful()):
            self._free += 1
            return
        following = min(waiting, key=lambda one: self._running[one.caller])
        self._waiting.remove(following)
        self._running[following.caller] += 1
        following.turn.set_result(None)

    def _hopeful(self) -> list[_Waiting]:
        """Who still waits: one that is cancelled, or late, is in the list until its task runs next."""
        return [one for one in self._waiting if not one.turn.done()]

    def _crowded(self, caller: str) -> bool:
        """Whether all places are taken, those to wait in too, and nobody has more searches here than this caller."""
        late = self._clock() - COMING_SECONDS
        here = self._running + Counter(one.caller for one in self._hopeful())
        here += Counter(one.caller for one in self._coming if one and one.since > late)
        return here.total() >= self._all and max(here.values()) <= here[caller] + 1

    def _make_room(self, caller: str) -> None:
        """Refuse one search: the last of the caller with the most, or the one that comes now."""
        metrics.refused.count(code="busy")
        refusal = Unavailable("the service", "busy")
        waiting = self._hopeful()
        here = self._running + Counter(one.caller for one in waiting)
        last = max(reversed(waiting), key=lambda one: here[one.caller], default=None)
        if last is None or here[last.caller] <= here[caller] + 1:
            raise refusal
        self._waiting.remove(last)
        last.turn.set_exception(refusal)
