"""The pictures of the gallery, as they are and small, by the id of their row; and where each row's picture is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from cachetools import LRUCache
from ray.serve.handle import DeploymentHandle

from retrieval.images import ImageRejected, decode, thumbnail
from retrieval.sources.lookup import ImageLookup
from serving.deployments.calls import Unavailable, call
from serving.deployments.messages import Row

PATHS = 20_000
"""Rows whose places are cached: the pictures of an answer are asked for next."""
THUMBNAILS = 2_000
"""Small pictures that are cached, of about 5 KB each."""
# How files begin that every browser shows; others are sent as JPEG.
_SHOWN = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"), (b"GIF8", "image/gif"))
_LARGEST_SIDE = 4096
AT_ONCE = 8
"""Pictures that are read at a time: threads are left for what searches wait for."""

log = logging.getLogger("ray.serve")


class Place(NamedTuple):
    """Where the picture of a row is: its path, and the URI of the source that it is relative to."""

    path: str
    source: str


class Places:
    """The places of rows, by id: those of answers are cached, others are asked for. For one event loop.

    Args:
        seconds: how long a question to the ranker may take.
    """

    def __init__(self, ranker: DeploymentHandle, *, seconds: float) -> None:
        self._ranker = ranker
        self._seconds = seconds
        self._known: LRUCache[str, Place] = LRUCache(PATHS)

    def keep(self, rows: Iterable[Row]) -> None:
        """Cache the places of the rows of an answer."""
        for row in rows:
            self._known[row.id] = Place(row.path, row.source)

    async def of(self, id: str) -> Place | None:
        """Return the place of the gallery row of that id; None if there is no such row.

        Raises:
            Unavailable: the row could not be looked up.
        """
        place = self._known.get(id)
        if place is None:
            found = await call("the ranker", self._ranker.path, id, seconds=self._seconds)
            if not found:
                return None
            place = self._known[id] = Place(*found)
        return place


class Picture(NamedTuple):
    data: bytes
    media_type: str


class GalleryPictures:
    """Pictures by the id of their row. Only paths of the gallery's own rows are ever read."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._small: LRUCache[Place, Picture] = LRUCache(THUMBNAILS)
        self._reading = asyncio.Semaphore(AT_ONCE)

    async def picture(self, id: str, *, small: bool = False) -> Picture | None:
        """Return the picture of a row; None if there is no such row, or the source no longer has its picture.

        Raises:
            Unavailable: the row could not be looked up, or its source could not be read.
        """
        place = await self._places.of(id)
        if place is None:
            return None
        known = self._small.get(place) if small else None
        if known:
            return known
        picture = await self._read(place, small)
        if small and picture:
            self._small[place] = picture
        return picture

    async def _read(self, place: Place, small: bool) -> Picture | None:
        async with self._reading:
            try:
                return await asyncio.to_thread(_read, place, small)
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
