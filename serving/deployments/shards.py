"""The shards of the index: opened by version, searched exactly; and the deployment that holds some of them."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from cachetools import LRUCache
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.profile import ServeSettings
from retrieval.artifacts import Index
from retrieval.index.shard import Shard
from serving.deployments.calls import call
from serving.deployments.messages import START_SECONDS, Part
from serving.deployments.pointer import Pointed

log = logging.getLogger("ray.serve")

KEPT_VERSIONS = 2
"""The one that is served and the one before, which answers under way still need."""


ROOM = 2**20
"""Bytes of rows that all shards together may send for a query, however unlikely most are to be among the best of all. A
thousand rows of each of five hundred shards would be a hundred times as much."""
NUMBERS = 32
"""Bytes of the scores and the row number of a row that is sent."""


def deployment_count(shards: int, size: float, settings: ServeSettings) -> int:
    """Return how many deployments so many shards of ``size`` bytes in all are: none where the ranker holds them."""
    of = settings.shards
    apart = of.gpus or of.selectors(0) != of.selectors(1)
    local = not apart and size <= settings.local_index_bytes
    return 0 if local else math.ceil(shards / settings.shards_per_deployment)


def rows_to_send(k: int, rows: int, of_rows: int, shards: int, row_bytes: float) -> int:
    """Return how many of its best rows a shard sends: as many of the k best of all as it is likely to have, seldom less
    than it has if rows are spread as shuffling does; or more, while there is room.

    Args:
        k: from 1.
        rows: of the shard.
        of_rows: of all shards.
        shards: how many they are.
        row_bytes: of a row in memory, beside its vectors.
    """
    mean = k * rows / max(1, of_rows)
    room = ROOM / shards / (NUMBERS + row_bytes)
    return math.ceil(max(mean + 5 * math.sqrt(mean) + 5, room))


@dataclass(frozen=True, eq=False)
class Opened:
    """Some shards of an index version, by their place in its manifest. The version has so many ``rows``, removed ones
    too, in ``total`` shards.
    """

    shards: dict[int, Shard]
    rows: int
    total: int

    def each(self) -> list[Opened]:
        """Return each shard on its own."""
        return [replace(self, shards={place: shard}) for place, shard in self.shards.items()]

    def search(self, query_D: np.ndarray, k: int, whole: bool = True) -> list[Part]:
        """Return the k best rows of each shard for one fused query, float32 (D1 + D2,).

        Args:
            query_D: [(1 - λ)t ; λv].
            k: from 1.
            whole: all k, not only those that are likely to be among the k best of all shards.
        """
        [parts] = self.search_each(query_D[None], k, whole)
        return parts

    def search_each(self, query_QD: np.ndarray, k: int, whole: bool = True) -> list[list[Part]]:
        """Return for each query what ``search`` returns for it."""
        of_shards = [self._parts(place, shard, query_QD, k, whole) for place, shard in self.shards.items()]
        return [list(parts) for parts in zip(*of_shards, strict=True)]

    def _parts(self, place: int, shard: Shard, query_QD: np.ndarray, k: int, whole: bool) -> list[Part]:
        """What one shard finds for each query."""
        hits = shard.search(query_QD, k)
        queries, found = hits.rows.shape
        count, row_bytes = shard.rows.num_rows, shard.rows.nbytes / max(1, shard.rows.num_rows)
        sent = found if whole else min(found, rows_to_send(k, count, self.rows, self.total, row_bytes))
        taken = shard.rows.drop_columns("id").take(pa.array(hits.rows[:, :sent].ravel())).to_pydict()
        return [
            Part(
                place,
                hits.of(query).first(sent),
                {name: values[query * sent : (query + 1) * sent] for name, values in taken.items()},
                more=sent < found,
            )
            for query in range(queries)
        ]

    def path(self, id: str) -> tuple[str, str] | None:
        """Return path and batch of the row of that id, or None if it is not in these shards."""
        for shard in self.shards.values():
            if (row := shard.row_of(id)) is not None:
                return shard.rows["path"][row].as_py(), shard.rows["batch"][row].as_py()
        return None

    def vectors(self, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the joint rows [c ; d] of those of the ids that are in these shards: their places in ``ids``, (n,),
        and the vectors, float16 (n, D).
        """
        places: list[int] = []
        parts = [np.zeros((0, next(iter(self.shards.values())).dim if self.shards else 0), np.float16)]
        for shard in self.shards.values():
            rows = {place: row for place, id in enumerate(ids) if (row := shard.row_of(id)) is not None}
            places += rows
            parts.append(shard.vectors[list(rows.values())])
        return np.array(places, np.int64), np.concatenate(parts)

    def check_health(self) -> None:
        """Search for a row that is there, as queries do.

        Raises:
            RuntimeError: it has no score.
        """
        for place, shard in self.shards.items():
            if len(shard) and not np.isfinite(shard.search(np.asarray(shard.vectors[0], np.float32), 1).scores).all():
                raise RuntimeError(f"shard {place} finds nothing")


class Versions:
    """The shards j of an index with j mod ``groups`` = ``number``, so that a version with more or fewer is served too.

    Versions of an index never change, so each call names the one it means; what is not open yet is opened then.
    """

    def __init__(self, number: int, groups: int) -> None:
        self._number = number
        self._groups = groups
        self._open: LRUCache[str, Opened] = LRUCache(KEPT_VERSIONS)  # searches under way hold what it evicts
        self._opening: dict[str, asyncio.Task[Opened]] = {}
        self._one_at_a_time = asyncio.Lock()
        self.last: Opened | None = None
        """Of the version that was asked for last."""

    async def of(self, version: str, *, verified: bool = False) -> Opened:
        """Return the shards of a version. If it is not open and to be ``verified``, its files are first compared with
        the checksums of its manifest.

        Raises:
            UserError: there is none at that URI, or a file of it is damaged.
        """
        if version in self._open:
            self.last = self._open[version]
            return self.last
        if version not in self._opening:
            opening = self._opening[version] = asyncio.create_task(self._opened(version, verified))
            opening.add_done_callback(_note_failure)  # everybody may have stopped waiting for it
        # A search whose time is over goes, and what it has waited for is there for the next.
        self.last = await asyncio.shield(self._opening[version])
        return self.last

    async def _opened(self, version: str, verified: bool) -> Opened:
        try:
            async with self._one_at_a_time:
                self._open[version] = opened = await asyncio.to_thread(
                    lambda: self._load(Index.open(version), verified)
                )
                return opened
        finally:
            del self._opening[version]

    def _load(self, index: Index, verified: bool) -> Opened:
        records = index.manifest.shards
        shards = {j: index.shard(j, verified=verified) for j in range(self._number, len(records), self._groups)}
        return Opened(shards, sum(record.rows for record in records), len(records))


@serve.deployment
class IndexShard:
    """Deployment ``number`` of so many ``deployments``."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, number: int, deployments: int, pointer: DeploymentHandle
    ) -> None:
        self._versions = Versions(number, deployments)
        pointed: Pointed = await call("the pointer to the index", pointer.read, seconds=START_SECONDS)
        current = await asyncio.to_thread(Index.open, pointed.index)
        await self._versions.of(current.uri)

    async def open(self, version: str) -> None:
        """Open a version, so that no search has to wait for it. Unless it is open, its files are first compared with
        the checksums of its manifest.

        Raises:
            UserError: there is none at that URI, or a file of it is damaged.
        """
        await self._versions.of(version, verified=True)

    async def search(self, version: str, query_D: np.ndarray, k: int, whole: bool = False) -> list[Part]:
        """Return what each of its shards finds (``Opened.search``), each in a thread of its own."""
        opened = await self._versions.of(version)
        found = await asyncio.gather(*(asyncio.to_thread(one.search, query_D, k, whole) for one in opened.each()))
        return [part for of_one in found for part in of_one]

    async def path(self, version: str, id: str) -> tuple[str, str] | None:
        """Return path and batch of the row of that id, or None if it is not in these shards."""
        opened = await self._versions.of(version)
        return await asyncio.to_thread(opened.path, id)

    async def vectors(self, version: str, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the vectors of those of the ids that are in these shards (``Opened.vectors``)."""
        opened = await self._versions.of(version)
        return await asyncio.to_thread(opened.vectors, ids)

    async def check_health(self) -> None:
        """Search for a row that is there, as queries do."""
        if self._versions.last:
            await asyncio.to_thread(self._versions.last.check_health)


def _note_failure(opening: asyncio.Task[Opened]) -> None:
    if not opening.cancelled() and (error := opening.exception()):
        log.warning("an index version could not be opened: %s", error)
