"""Requests that wait for the same method of a deployment go there together: a call costs about as much for one as for
many, and under load it costs more than the work that is asked for.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cluster.profile import Replicas
from serving.deployments.calls import Deadline, Unavailable

Item = TypeVar("Item")
Answer = TypeVar("Answer")

CALLS_A_REPLICA = 1.5
"""Calls under way on a replica above which Serve adds one: while one is worked on, the next is there already."""


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[Item, Answer]):
    item: Item
    deadline: Deadline
    answer: asyncio.Future[Answer]


class Gathering(Generic[Item, Answer]):
    """Sends items on in lists. While as many calls are under way as may be, items wait, and make up the next lists.

    Whoever leaves, or has waited for too long, is answered no more, and the others of the list are. A call that nobody
    waits for any more is cancelled. For one event loop.

    Args:
        part: what is asked, for messages.
        send: asks for a list of items, within so many seconds. Each of its answers may be an exception, which is then
            raised where its item came from; what ``send`` itself raises is raised everywhere.
        calls: under way at once, at most.
        most: items of a call, at most.
    """

    def __init__(
        self,
        part: str,
        send: Callable[[list[Item], float], Awaitable[Sequence[Answer | Exception]]],
        *,
        calls: int,
        most: int,
    ) -> None:
        self._part = part
        self._send = send
        self._free = calls
        self._most = most
        self._waiting: deque[_Waiting[Item, Answer]] = deque()
        self._runners: set[asyncio.Task[None]] = set()

    @classmethod
    def of(
        cls,
        part: str,
        send: Callable[[list[Item], float], Awaitable[Sequence[Answer | Exception]]],
        replicas: Replicas,
    ) -> Gathering[Item, Answer]:
        """For a deployment: as many calls as it may have replicas, and two where that is one. More would mean that
        fewer items go together.
        """
        return cls(part, send, calls=max(2, replicas.max_replicas), most=replicas.batch)

    async def ask(self, item: Item, *, seconds: float) -> Answer:
        """Return the answer to an item.

        Raises:
            Unavailable: there was none within so many seconds, or ``send`` said so.
        """
        mine = _Waiting(item, Deadline(seconds), asyncio.get_running_loop().create_future())
        self._waiting.append(mine)
        if self._free:  # the task begins when all that can happen now has happened: who comes at once goes at once
            self._free -= 1
            runner = asyncio.create_task(self._run())
            self._runners.add(runner)
            runner.add_done_callback(self._runners.discard)
        try:
            async with asyncio.timeout(seconds):
                return await mine.answer
        except TimeoutError as error:
            raise Unavailable(self._part, "late") from error

    async def _run(self) -> None:
        while batch := self._next():
            call = asyncio.create_task(self._answered(batch))
            unwanted = len(batch)

            def left(_: asyncio.Future[Answer], call: asyncio.Task[None] = call) -> None:
                nonlocal unwanted
                unwanted -= 1
                if not unwanted:  # it has ended, or nobody waits for it
                    call.cancel()

            for one in batch:
                one.answer.add_done_callback(left)
            await asyncio.wait([call])
        self._free += 1

    def _next(self) -> list[_Waiting[Item, Answer]]:
        batch: list[_Waiting[Item, Answer]] = []
        while self._waiting and len(batch) < self._most:
            one = self._waiting.popleft()
            if not one.answer.done():
                batch.append(one)
        return batch

    async def _answered(self, batch: list[_Waiting[Item, Answer]]) -> None:
        try:
            answers = await self._send([one.item for one in batch], max(one.deadline.left for one in batch))
            assert len(answers) == len(batch)
        except Exception as error:
            answers = [copy.copy(error) for _ in batch]
        for one, answer in zip(batch, answers, strict=True):
            if one.answer.done():
                continue
            if isinstance(answer, Exception):
                one.answer.set_exception(answer)
            else:
                one.answer.set_result(answer)
