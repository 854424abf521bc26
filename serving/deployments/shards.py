"""The shards of the index: one deployment for each, which maps its files into memory and searches them exactly."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from cachetools import LRUCache
from ray import serve
from ray.serve.handle import DeploymentHandle

from retrieval.artifacts import Index
from retrieval.index.hits import Hits
from retrieval.index.shard import Shard
from serving.deployments.calls import call
from serving.deployments.messages import START_SECONDS, Part
from serving.deployments.pointer import Pointed

KEPT_VERSIONS = 2
"""The one that is served and the one before, which answers under way still need."""


@serve.deployment
class IndexShard:
    """Deployment ``number`` of so many ``deployments``: it holds the shards j of an index with j mod ``deployments`` =
    ``number``, so that a version with more or fewer shards is served as well.

    Versions of an index never change, so each call names the one it means; what is not open yet is opened then.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, number: int, deployments: int, pointer: DeploymentHandle
    ) -> None:
        self._number = number
        self._deployments = deployments
        self._open: LRUCache[str, list[Shard]] = LRUCache(KEPT_VERSIONS)  # searches under way hold what it evicts
        self._opening = asyncio.Lock()
        pointed: Pointed = await call("the pointer to the index", pointer.read, seconds=START_SECONDS)
        current = await asyncio.to_thread(Index.open, pointed.index)
        self._open[current.uri] = await asyncio.to_thread(self._load, current)
        self._last_asked = current.uri

    async def open(self, version: str) -> None:
        """Open a version, so that no search has to wait for it. Unless it is open, its files are first compared with
        the checksums of its manifest.

        Raises:
            UserError: there is none at that URI, or a file of it is damaged.
        """
        await self._shards(version, verified=True)

    async def search(self, version: str, query_D: np.ndarray, k: int) -> list[Part]:
        """Return the k best rows of each of its shards for one fused query, float32 (D1 + D2,)."""
        shards = await self._shards(version)
        found = await asyncio.to_thread(_search, shards, query_D, k)
        return [Part(self._number + i * self._deployments, *part) for i, part in enumerate(found)]

    async def path(self, version: str, id: str) -> tuple[str, str] | None:
        """Return path and batch of the row of that id, or None if it is not in these shards."""
        return await asyncio.to_thread(_path, await self._shards(version), id)

    async def check_health(self) -> None:
        """Search for a row that is there, as queries do."""
        version = self._last_asked
        for shard in self._open[version]:
            if len(shard):
                [(hits, _)] = await asyncio.to_thread(_search, [shard], np.asarray(shard.vectors[0], np.float32), 1)
                if not np.isfinite(hits.scores).all():
                    raise RuntimeError(f"shard deployment {self._number} finds nothing in {version}")

    async def _shards(self, version: str, *, verified: bool = False) -> list[Shard]:
        if version not in self._open:
            async with self._opening:
                if version not in self._open:
                    self._open[version] = await asyncio.to_thread(lambda: self._load(Index.open(version), verified))
        self._last_asked = version
        return self._open[version]

    def _load(self, index: Index, verified: bool = False) -> list[Shard]:
        numbers = range(self._number, len(index.manifest.shards), self._deployments)
        return [index.shard(j, verified=verified) for j in numbers]


def _search(shards: Sequence[Shard], query_D: np.ndarray, k: int) -> list[tuple[Hits, dict[str, list[Any]]]]:
    found = []
    for shard in shards:
        hits = shard.search(query_D, k)
        rows = shard.rows.drop_columns("id").take(pa.array(hits.rows[0]))
        found.append((hits, rows.to_pydict()))
    return found


def _path(shards: Sequence[Shard], id: str) -> tuple[str, str] | None:
    for shard in shards:
        row = _row(shard.rows["id"], id)
        if row is not None and shard.alive[row]:
            return shard.rows["path"][row].as_py(), shard.rows["batch"][row].as_py()
    return None


def _row(ids: pa.ChunkedArray, id: str) -> int | None:
    """The row of an id. They ascend by UTF-8 bytes, which is the order of Python's strings."""
    row = bisect_left(range(len(ids)), id, key=lambda row: ids[row].as_py())
    return row if row < len(ids) and ids[row].as_py() == id else None
