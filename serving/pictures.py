"""The pictures of the gallery, as they are and small, by the id of their row; and where each row's picture is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextvars import Context
from functools import lru_cache
from typing import NamedTuple, TypeVar

from cachetools import LRUCache
from ray.serve.handle import DeploymentHandle

from retrieval.images import ImageRejected, decode, thumbnail
from retrieval.sources.lookup import ImageLookup
from serving.deployments.calls import Unavailable, call
from serving.deployments.messages import Row, Served

PATHS = 20_000
"""Rows whose places are cached: the pictures of an answer are asked for next."""
ABSENT = 20_000
"""Ids of no row that are cached, so that every shard is asked once for each."""
THUMBNAILS = 2_000
"""Small pictures that are cached, of about 5 KB each."""
# How files begin that every browser shows; others are sent as JPEG.
_SHOWN = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"), (b"GIF8", "image/gif"))
_LARGEST_SIDE = 4096
AT_ONCE = 8
"""Pictures that are read at a time: threads are left for what searches wait for."""

T = TypeVar("T")

log = logging.getLogger("ray.serve")


class Place(NamedTuple):
    """Where the picture of a row is: its path, and the URI of the source that it is relative to."""

    path: str
    source: str


class Places:
    """The places of rows, by id, in the version of the index that is served: a row that it lacks has none.

    Versions never change, so what is cached is cached by version: rows of answers, rows that were asked for, and ids
    that are no row's. For one event loop.

    Args:
        seconds: how long a question to the ranker may take.
    """

    VERSION_SECONDS = 1.0
    """How long the ranker is not asked again which version it serves: a page asks for dozens of pictures at once."""

    def __init__(self, ranker: DeploymentHandle, *, seconds: float) -> None:
        self._ranker = ranker
        self._seconds = seconds
        self._known: LRUCache[tuple[str, str], Place] = LRUCache(PATHS)
        self._absent: LRUCache[tuple[str, str], None] = LRUCache(ABSENT)
        self._asked = 0.0
        self._version: asyncio.Task[str] | None = None

    def keep(self, rows: Iterable[Row], version: str) -> None:
        """Cache the places of the rows of an answer by that version."""
        for row in rows:
            self._known[version, row.id] = Place(row.path, row.source)

    def switched(self) -> None:
        """Ask the ranker before the next answer which version it serves."""
        self._version = None

    async def of(self, id: str, shard: int | None = None) -> Place | None:
        """Return the place of the row of that id in the version that is served; None if it has no such row.

        Args:
            shard: where the row lies, as an answer said; it may be wrong.

        Raises:
            Unavailable: the version or the row could not be looked up.
        """
        version = await self._served()
        row = version, id
        if row in self._absent:
            return None
        place = self._known.get(row)
        if place is None:
            found = await call("the ranker", self._ranker.path, id, version, shard, seconds=self._seconds)
            if not found:
                self._absent[row] = None
                return None
            place = self._known[row] = Place(*found)
        return place

    async def _served(self) -> str:
        now = time.monotonic()
        if self._version is None or now - self._asked >= self.VERSION_SECONDS:
            # In a context of its own: Serve would cancel the call together with the first request that waits for it.
            self._asked, self._version = now, asyncio.create_task(self._ask_version(), context=Context())
        return await asyncio.shield(self._version)

    async def _ask_version(self) -> str:
        served: Served = await call("the ranker", self._ranker.served, seconds=self._seconds)
        return served.version


class Picture(NamedTuple):
    data: bytes
    media_type: str


class GalleryPictures:
    """Pictures by the id of their row. Only paths of the gallery's own rows are ever read."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self._small: LRUCache[Place, Picture] = LRUCache(THUMBNAILS)
        self._reading = asyncio.Semaphore(AT_ONCE)

    async def picture(self, id: str, *, shard: int | None = None, small: bool = False) -> Picture | None:
        """Return the picture of a row; None if there is no such row, or the source no longer has its picture.

        Args:
            shard: as ``Places.of``.

        Raises:
            Unavailable: the row could not be looked up, or its source could not be read.
        """
        place = await self.places.of(id, shard)
        if place is None:
            return None
        known = self._small.get(place) if small else None
        if known:
            return known
        picture = await self._read(place, small)
        if small and picture:
            self._small[place] = picture
        return picture

    async def file(self, place: Place) -> bytes | None:
        """Return the file of a picture; None if its source no longer has it.

        Raises:
            Unavailable: its source could not be read.
        """
        return await self._in_thread(place, lambda: _pictures(place.source).bytes_of(place.path))

    async def _read(self, place: Place, small: bool) -> Picture | None:
        return await self._in_thread(place, lambda: _read(place, small))

    async def _in_thread(self, place: Place, read: Callable[[], T]) -> T:
        async with self._reading:
            try:
                return await asyncio.to_thread(read)
            except Exception as error:  # a client gives no more than an id: this is never a fault of its request
                log.exception("the picture %s of %s cannot be read", place.path, place.source)
                raise Unavailable("the source of the pictures", "failed") from error


@lru_cache(maxsize=8)
def _pictures(source: str) -> ImageLookup:
    return ImageLookup(source)


def _read(place: Place, small: bool) -> Picture | None:
    data = _pictures(place.source).bytes_of(place.path)
    if data is None:
        return None
    for start, media_type in _SHOWN:
        if data.startswith(start) and not small:
            return Picture(data, media_type)
    try:
        image = decode(data)
    except ImageRejected:
        return None
    return Picture(thumbnail(image) if small else thumbnail(image, side=_LARGEST_SIDE), "image/jpeg")
