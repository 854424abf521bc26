"""The shards of the index as the ranker asks them where each is a deployment of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ray.serve.handle import DeploymentHandle

from retrieval.errors import UserError
from serving.deployments.calls import Deadline, Unavailable, call, call_every_replica
from serving.deployments.merging import (
    Found,
    RowVectors,
    asked_for,
    only_place,
    replies,
    row_vectors,
    to_be_asked_again,
)
from serving.deployments.messages import START_SECONDS, Part


class RemoteShards:
    """Asks the shard deployments, all at once."""

    def __init__(self, deployments: Sequence[DeploymentHandle]) -> None:
        self._deployments = deployments

    async def start(self, version: str) -> None:
        """Have one replica of each open a version. One that cannot be reached is missed by searches, and no more.

        Raises:
            UserError: a shard of it cannot be opened.
        """
        await self._ask(self._all(), "open", version, seconds=START_SECONDS, refusals=(UserError,))

    async def open(self, version: str) -> None:
        """Have every replica of each open a version, after comparing its files with their checksums.

        Raises:
            UserError: a file of it is damaged.
            Unavailable: a shard does not answer.
        """
        opening = (
            call_every_replica(f"shard {number}", shard, "open", version, seconds=START_SECONDS, refusals=(UserError,))
            for number, shard in enumerate(self._deployments)
        )
        await asyncio.gather(*opening)

    async def search(self, version: str, query_D: np.ndarray, k: int, *, seconds: float) -> Found:
        """Return what the shards find within so many seconds.

        Each sends what is likely to be among the k best of all, which saves a second call nearly always. If all that
        one sent is, it is asked for the rest; if it does not answer again, it counts as missing.
        """
        deadline = Deadline(seconds)
        first = await self._ask(self._all(), "search", version, query_D, k, seconds=seconds)
        parts = {n: reply for n, reply in enumerate(first) if not isinstance(reply, Unavailable)}
        troubles = [reply for reply in first if isinstance(reply, Unavailable)]
        short = to_be_asked_again(parts, k)
        again = await self._ask(short, "search", version, query_D, k, True, seconds=deadline.left)
        missing = 0
        for n, reply in zip(short, again, strict=True):
            if isinstance(reply, Unavailable):  # what it sent before is right as far as it goes
                missing += short[n]
                troubles.append(reply)
            else:
                parts[n] = reply
        found: list[Part] = [part for of_one in parts.values() for part in of_one]
        return Found(found, len(found) - missing, troubles)

    async def search_each(self, version: str, query_QD: np.ndarray, k: int, *, seconds: float) -> list[Found]:
        """Return for each query what ``search`` returns for it."""
        return await asyncio.gather(*(self.search(version, query_D, k, seconds=seconds) for query_D in query_QD))

    async def path(self, version: str, id: str, *, seconds: float, shard: int | None = None) -> tuple[str, str] | None:
        """Return path and batch of the row of that id, or None if there is none.

        Args:
            version: URI of the index version.
            id: of the row.
            seconds: that each shard is given.
            shard: where the row lies, if that is known; the others are asked if it is not there.

        Raises:
            Unavailable: a shard that may have the row did not answer.
        """
        if shard is not None:
            for place in await self._ask([shard % len(self._deployments)], "path", version, id, seconds=seconds):
                if place and not isinstance(place, Unavailable):
                    return place
        return only_place(await self._ask(self._all(), "path", version, id, seconds=seconds))

    async def vectors(
        self, version: str, ids: Sequence[str], *, seconds: float, shards: Sequence[int] | None = None
    ) -> RowVectors:
        """Return the vectors of rows by their ids.

        Args:
            version: URI of the index version.
            ids: of the rows.
            seconds: that each shard is given.
            shards: where each of them lies; by default all shards are asked for all.
        """
        asked = asked_for(shards, len(ids), len(self._deployments))
        asking = {
            number: call(
                f"shard {number}",
                self._deployments[number].vectors,
                version,
                [ids[place] for place in places],
                seconds=seconds,
            )
            for number, places in asked.items()
        }
        return row_vectors(len(ids), asked, await replies("vectors", asking))

    async def check_health(self) -> None:
        """They have checks of their own: one that is gone is no fault of the ranker."""

    def _all(self) -> Iterable[int]:
        return range(len(self._deployments))

    async def _ask(
        self,
        numbers: Iterable[int],
        method: str,
        *arguments: Any,
        seconds: float,
        refusals: tuple[type[Exception], ...] = (),
    ) -> list[Any]:
        """What each of these deployments answers, or why it does not; ``refusals`` are raised (``calls.call``)."""

        asked = {
            number: call(
                f"shard {number}",
                getattr(self._deployments[number], method),
                *arguments,
                seconds=seconds,
                refusals=refusals,
            )
            for number in numbers
        }
        return await replies(method, asked)
