"""The shards of a small index, in the ranker's own process: an answer has one hop less."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from cluster.cores import usable_cores
from retrieval.errors import UserError
from serving.deployments.calls import Deadline, Unavailable, bounded
from serving.deployments.merging import Found, RowVectors, asked_for, only_place, replies, row_vectors
from serving.deployments.messages import START_SECONDS
from serving.deployments.shards import Opened, Versions

HEALTH_SECONDS = 20
"""Serve itself waits 30 s for a check, three times, before it replaces a replica."""


class LocalShards:
    """Searches shards in threads, and misses one that fails or takes too long as if it were a deployment.

    Each shard has threads of its own: nothing can end a thread, and one that hangs keeps no other shard from answering.
    """

    def __init__(self) -> None:
        self._versions = Versions(0, 1)
        self._threads: dict[int, ThreadPoolExecutor] = {}

    async def start(self, version: str) -> None:
        """Open a version.

        Raises:
            UserError: a shard of it cannot be opened.
        """
        await self._versions.of(version)

    async def open(self, version: str) -> None:
        """Open a version, after comparing its files with their checksums.

        Raises:
            UserError: a file of it is damaged.
        """
        await self._opened(version, seconds=START_SECONDS, refusals=(UserError,))

    async def search(self, version: str, query_D: np.ndarray, k: int, *, seconds: float) -> Found:
        """Return what the shards find within so many seconds.

        Raises:
            Unavailable: the version cannot be opened in that time.
        """
        [found] = await self.search_each(version, query_D[None], k, seconds=seconds)
        return found

    async def search_each(self, version: str, query_QD: np.ndarray, k: int, *, seconds: float) -> list[Found]:
        """Return for each query what ``search`` returns for it; a shard is given all of them at once."""
        answers = await self._ask(version, "search_each", query_QD, k, seconds=seconds)
        shards = [answer for answer in answers if not isinstance(answer, Unavailable)]
        troubles = [answer for answer in answers if isinstance(answer, Unavailable)]
        return [
            Found([part for of_each in shards for part in of_each[query]], len(shards), troubles)
            for query in range(len(query_QD))
        ]

    async def path(self, version: str, id: str, *, seconds: float, shard: int | None = None) -> tuple[str, str] | None:
        """Return path and batch of the row of that id, or None if there is none. All shards are asked, wherever it is
        said to lie: here that is a binary search each.

        Raises:
            Unavailable: a shard that may have the row did not answer.
        """
        return only_place(await self._ask(version, "path", id, seconds=seconds))

    async def vectors(
        self, version: str, ids: Sequence[str], *, seconds: float, shards: Sequence[int] | None = None
    ) -> RowVectors:
        """Return the vectors of rows by their ids.

        Args:
            shards: where each of them lies; by default all shards are asked for all.
        """
        deadline = Deadline(seconds)
        opened = await self._opened(version, seconds=seconds)
        each = opened.each()
        asked = asked_for(shards, len(ids), len(each))
        asking = {
            number: bounded(
                f"shard {number}",
                self._in_thread(number, opened, each[number].vectors, [ids[place] for place in places]),
                seconds=deadline.left,
            )
            for number, places in asked.items()
        }
        return row_vectors(len(ids), asked, await replies("vectors", asking))

    async def check_health(self) -> None:
        """Search every shard in the threads that searches use: where one hangs, the process has to be replaced.

        Raises:
            Unavailable: a shard hangs or fails.
        """
        if self._versions.last:
            for answer in await self._each(self._versions.last, "check_health", seconds=HEALTH_SECONDS):
                if isinstance(answer, Unavailable):
                    raise answer

    async def _ask(self, version: str, method: str, *arguments: Any, seconds: float) -> list[Any]:
        deadline = Deadline(seconds)
        opened = await self._opened(version, seconds=seconds)
        return await self._each(opened, method, *arguments, seconds=deadline.left)

    async def _opened(self, version: str, *, seconds: float, refusals: tuple[type[Exception], ...] = ()) -> Opened:
        """A version whose files were compared: another replica may name one that this replica has not opened yet."""
        opening = self._versions.of(version, verified=True)
        return await bounded("every shard of the index", opening, seconds=seconds, refusals=refusals)

    async def _each(self, opened: Opened, method: str, *arguments: Any, seconds: float) -> list[Any]:
        """What the method of each shard (of ``Opened``) returns, or why it does not."""
        asked = {
            number: bounded(
                f"shard {number}", self._in_thread(number, opened, getattr(shard, method), *arguments), seconds=seconds
            )
            for number, shard in enumerate(opened.each())
        }
        return await replies(method, asked)

    def _in_thread(self, number: int, opened: Opened, work: Callable[..., Any], *arguments: Any) -> Awaitable[Any]:
        if number not in self._threads:
            threads = max(2, usable_cores() // len(opened.shards))
            self._threads[number] = ThreadPoolExecutor(threads, f"shard-{number}")
        return asyncio.get_running_loop().run_in_executor(self._threads[number], work, *arguments)
