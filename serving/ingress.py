"""The ingress: the HTTP API in front of the graph, with the search and its memory in it."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fastapi import FastAPI
from ray import serve

from cluster.loading import load_assistant
from cluster.profile import Profile
from serving.api import make_api
from serving.assisting import counted
from serving.deployments.calls import Unavailable
from serving.guards.keys import read_keys
from serving.memory import open_store
from serving.memory.memory import Memory
from serving.ray_names import LateBoundApp
from serving.search import Defaults, Parts, Search

RETRY_SECONDS, WARM_SECONDS = 1, 10
THREADS = 32

log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Service:
    """All that an ingress needs: the other deployments, the store's URI, and what a request may leave out."""

    profile: Profile
    parts: Parts
    store: str
    defaults: Defaults
    aggregator: str | None
    shards: int
    """Deployments of shards."""
    index: str
    """URI of the index, or of the version, that the service was started with."""

    def search(self) -> Search:
        memory = Memory(open_store(self.store), self.profile.serve.memory_entries)
        assistant = load_assistant(self.profile, told=counted)
        return Search(self.parts, memory, self.profile.serve, self.defaults, assistant)

    def api(self, search: Search, *, behind_serve: bool) -> FastAPI:
        settings = self.profile.serve
        keys = read_keys(settings.keys_file) if settings.keys_file else []
        return make_api(
            search,
            settings,
            keys,
            store=self.store,
            aggregator=self.aggregator,
            index=self.index,
            behind_serve=behind_serve,
        )


@serve.deployment
@serve.ingress()
class Ingress(LateBoundApp):
    """Serves `serving.api`. It answers `/readyz` once all other deployments have answered it."""

    async def __init__(self, service: Service) -> None:  # type: ignore[misc]  # Serve awaits it
        # Serve sizes a replica's threads by its CPUs, a share of one here; these wait for stores and pictures.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        self.search = service.search()
        self._api = service.api(self.search, behind_serve=True)
        self._warming = asyncio.create_task(self._warm_up())
        # Requests come as soon as this returns. A replica that joins a running service knows all its parts by then; one
        # that starts with them does not wait for the slowest, since texts are answered before.
        await asyncio.wait([self._warming], timeout=WARM_SECONDS)

    def asgi_app(self) -> FastAPI:
        return self._api

    async def check_health(self) -> None:
        """The parts have checks of their own; this one is that warming up continues until it is done."""
        if self._warming.done() and not self.search.ready:
            raise RuntimeError("warming up ended before every part of the service had answered")

    async def _warm_up(self) -> None:
        while not self.search.ready:
            try:
                await self.search.warm_up()
            except Unavailable as error:
                log.warning("not ready yet: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
