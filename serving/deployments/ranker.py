"""The ranker: pools imagined images, fuses them with the text, asks every shard, merges; and moves to new versions.

An index version never changes. A call names the version it wants, or takes the current one and is told which it was, so
that one answer is ranked wholly by one version while the current one moves on.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.profile import Profile
from retrieval.artifacts import Index, Role, TrainedAggregator
from retrieval.artifacts.compatibility import check_made_by, check_same_models
from retrieval.fusion import DEFAULT_WEIGHT, fused_query
from retrieval.index.hits import merge_topk
from serving import metrics
from serving.deployments.calls import Unavailable, call
from serving.deployments.messages import START_SECONDS, Model, Part, Ranking, Row, Served
from serving.deployments.pointer import pointed_at, pointer
from serving.deployments.shards import KEPT_VERSIONS
from serving.memory.store import open_store

SHARE_OF_SHARDS = 0.8
"""Of the time that a call has, so much is for the shards: what they found still has to be merged and sent."""
log = logging.getLogger("ray.serve")


@serve.deployment
class Ranker:
    """Ranks by shards and aggregator. A background task of each replica follows the pointer to the index."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        profile: Profile,
        index: str,
        aggregator: str | None,
        store: str,
        encoders: dict[Role, DeploymentHandle],
        shards: Sequence[DeploymentHandle],
    ) -> None:
        from retrieval.query import pool  # by replicas alone: see encoders.py

        self._pool = pool
        self._weight = DEFAULT_WEIGHT
        self._settings = profile.serve
        self._started_with = index
        self._store = open_store(store)
        self._shards = shards
        self._network = None
        self._versions: OrderedDict[str, Index] = OrderedDict()
        self._current = await asyncio.to_thread(pointed_at, self._store, index)
        if aggregator:
            trained = TrainedAggregator.open(aggregator)
            trained.check_fits(self._current)
            self._network, self._weight = trained.network(), trained.manifest.weight
        for role, encoder in encoders.items():
            model: Model = await call(f"the {role} model", encoder.model, seconds=START_SECONDS)
            check_made_by(self._current, role, model.record.uri, model.record.fingerprint)
        await self._ask_shards("open", self._current.uri, seconds=START_SECONDS)
        self._switching = asyncio.Lock()
        self._watch = asyncio.create_task(self._follow_for_ever())

    async def rank(
        self,
        vlm_D1: np.ndarray,
        vision: np.ndarray | None,
        weight: float,
        k: int,
        version: str | None,
        seconds: float,
    ) -> Ranking:
        """Rank the gallery for one query.

        Args:
            vlm_D1: t, float32 of unit norm.
            vision: vectors of K imagined images, float32 (K, D2), or v itself, (D2,); None with a ``weight`` of 0.
            weight: λ.
            version: URI of the index version; by default the current one.
            seconds: the time there is; shards that take too long are left out.

        Raises:
            Unavailable: no shard answered.
        """
        index = await self._version(version)
        visual_D2, attention = self._pooled(vision, index)
        [query_D] = fused_query(vlm_D1, visual_D2, weight)
        bound = min(self._settings.shard_timeout_ms / 1000, SHARE_OF_SHARDS * seconds)
        replies = await self._ask_shards("search", index.uri, query_D, k, seconds=bound)
        parts = [part for reply in replies if not isinstance(reply, Unavailable) for part in reply]
        if not parts:
            troubles = [reply.trouble for reply in replies if isinstance(reply, Unavailable)]
            raise Unavailable("every shard of the index", troubles[0] if troubles else "down")
        manifest = index.manifest
        return Ranking(
            _merged(parts, k, manifest.sources),
            weight,
            index.uri,
            index.version,
            answered=len(parts),
            total=len(manifest.shards),
            attention=attention,
        )

    async def path(self, id: str) -> tuple[str, str] | None:
        """Return the path of the row of that id in the current version, and what it is relative to; None if there is
        none.
        """
        index = self._current
        seconds = self._settings.shard_timeout_ms / 1000
        found = await self._ask_shards("path", index.uri, id, seconds=seconds)
        places = (place for place in found if place and not isinstance(place, Unavailable))
        return next(((path, index.manifest.sources[batch]) for path, batch in places), None)

    async def served(self) -> Served:
        manifest = self._current.manifest
        models: dict[str, str] = {role: record.uri for role, record in manifest.models.items()}
        return Served(
            self._current.uri,
            self._current.version,
            manifest.gallery,
            rows=manifest.rows,
            shards=len(manifest.shards),
            models=models,
            weight=self._weight,
        )

    async def switch(self, index: str) -> Served:
        """Serve another index, or one version of it, from now on, and write so into the store for the other replicas.

        Raises:
            ValueError: there is none at that URI, or other models made it.
        """
        await self._adopt(await asyncio.to_thread(Index.open, index))
        await asyncio.to_thread(self._store.set_setting, pointer(self._started_with), index)
        return await self.served()

    async def follow(self) -> None:
        """Look at the pointer now, and move to the version that it names."""
        index = await asyncio.to_thread(pointed_at, self._store, self._started_with)
        if index.uri != self._current.uri:
            await self._adopt(index)

    async def check_health(self) -> None:
        """Pool and fuse as requests do. Shards have checks of their own: one that is gone is no fault of this one."""
        dims = [self._current.manifest.models[role].dim or 1 for role in ("vlm", "vision")]
        vlm_D1, vision_D2 = (np.full(dim, dim**-0.5, np.float32) for dim in dims)
        visual_D2, _ = self._pooled(vision_D2[None], self._current)
        if not np.isfinite(fused_query(vlm_D1, visual_D2, 0.5)).all():
            raise RuntimeError("the aggregator makes vectors that are not finite")
        if self._watch.done():
            raise RuntimeError("nothing follows the pointer to the index any more")

    async def _follow_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.watch_seconds)
            try:
                await self.follow()
            except Exception as error:  # a store or a file system may be away for a while; what is served goes on
                log.warning("can not move to another index version, and serves %s on: %s", self._current.uri, error)

    async def _adopt(self, index: Index) -> None:
        async with self._switching:
            check_same_models(index, self._current, ["vlm", "vision"])
            opened = [shard.broadcast("open", index.uri) for shard in self._shards]
            await asyncio.wait_for(asyncio.gather(*(each.results_async() for each in opened)), START_SECONDS)
            self._versions[self._current.uri] = self._current
            log.info("serving index version %s, after %s", index.uri, self._current.uri)
            self._current = index

    async def _version(self, uri: str | None) -> Index:
        if uri is None or uri == self._current.uri:
            return self._current
        if uri not in self._versions:  # another replica of the ranker is ahead of this one, or behind
            self._versions[uri] = await asyncio.to_thread(Index.open, uri)
        self._versions.move_to_end(uri)
        while len(self._versions) > KEPT_VERSIONS:
            self._versions.popitem(last=False)
        return self._versions[uri]

    def _pooled(self, vision: np.ndarray | None, index: Index) -> tuple[np.ndarray, list[float | None]]:
        """v, float32 (D2,), and the share of each image in it, None where the class row takes all the attention."""
        if vision is None:
            return np.zeros(index.manifest.models["vision"].dim or 0, np.float32), []
        if vision.ndim == 1:
            return vision, []
        features_1KD2 = vision[None]
        [visual_D2] = self._pool(features_1KD2, np.ones(features_1KD2.shape[:2], bool), self._network)
        if self._network is None:
            return visual_D2, [1 / len(vision)] * len(vision)
        import torch  # by replicas alone

        with torch.inference_mode():
            [attention_K] = self._network.attention(torch.from_numpy(features_1KD2))
        return visual_D2, [share if math.isfinite(share) else None for share in attention_K.tolist()]

    async def _ask_shards(self, method: str, *arguments: Any, seconds: float) -> list[Any]:
        """What each shard deployment answers, or why it does not."""

        async def ask(number: int, shard: DeploymentHandle) -> Any:
            with metrics.shard_seconds.timed(shard=str(number)), metrics.waiting.one(part="shard"):
                return await call(f"shard {number}", getattr(shard, method), *arguments, seconds=seconds)

        replies = await asyncio.gather(*(ask(*each) for each in enumerate(self._shards)), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, Unavailable):
                log.warning("%s: %s", method, reply)
            elif isinstance(reply, BaseException):
                raise reply
        return replies


def _merged(parts: Sequence[Part], k: int, sources: Mapping[str, str]) -> list[Row]:
    hits = merge_topk([part.hits for part in parts], k)
    places = [{row: place for place, row in enumerate(part.hits.rows[0].tolist())} for part in parts]
    rows = []
    for i, (number, row) in enumerate(zip(hits.shards[0].tolist(), hits.rows[0].tolist(), strict=True)):
        place = places[number][row]
        columns = {name: values[place] for name, values in parts[number].columns.items()}
        scores = (float(part[0, i]) for part in (hits.scores, hits.text_part, hits.visual_part))
        path, source, label = columns.pop("path"), sources[columns.pop("batch")], columns.pop("label")
        rows.append(Row(hits.ids[0, i], path, source, label, columns, *scores))
    return rows
