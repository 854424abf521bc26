"""The pictures of the gallery for who has found them: as they are, and small."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from functools import lru_cache
from typing import NamedTuple

from retrieval.images import ImageRejected, decode, thumbnail
from retrieval.sources.lookup import ImageLookup
from serving.search import Search

THUMBNAILS = 2_000
"""Small pictures that are kept, of about 5 KB each."""
# How files begin that every browser shows; others are sent as JPEG.
_SHOWN = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"), (b"GIF8", "image/gif"))
_LARGEST_SIDE = 4096
AT_ONCE = 8
"""Pictures that are read at a time: threads are left for what searches wait for."""


class Picture(NamedTuple):
    data: bytes
    media_type: str


class GalleryPictures:
    """Pictures by the id of their row. Only paths of the gallery's own rows are ever read."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._small: OrderedDict[tuple[str, str], Picture] = OrderedDict()
        self._reading = asyncio.Semaphore(AT_ONCE)

    async def picture(self, id: str, *, small: bool = False) -> Picture | None:
        """Return the picture of a row; None if there is no such row, or the source no longer has its picture.

        Raises:
            Unavailable: the row could not be looked up.
            OSError: the source can not be read now.
        """
        place = await self._search.path(id)
        if place is None:
            return None
        if not small:
            return await self._read(*place, small)
        if place not in self._small:
            picture = await self._read(*place, small)
            if picture is None:
                return None
            self._small[place] = picture
            while len(self._small) > THUMBNAILS:
                self._small.popitem(last=False)
        self._small.move_to_end(place)
        return self._small[place]

    async def _read(self, path: str, source: str, small: bool) -> Picture | None:
        async with self._reading:
            return await asyncio.to_thread(_read, path, source, small)


@lru_cache(maxsize=8)
def _pictures(source: str) -> ImageLookup:
    return ImageLookup(source)


def _read(path: str, source: str, small: bool) -> Picture | None:
    data = _pictures(source).bytes_of(path)
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
