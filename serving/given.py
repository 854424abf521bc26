"""From a picture that is given as evidence to its vectors: from the memory, or else by the two image towers.

A picture is an upload, a part of one, a part of a row of the gallery, or an imagined image. Its key holds everything
that its vectors depend on: what it is a picture of, its box, and the fingerprints of both models, which cover their
preprocessing. An upload's own key is what clients send from then on.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from ray.serve.handle import DeploymentHandle

from retrieval.artifacts import Role
from retrieval.errors import UserError
from retrieval.images import ImageRejected, decode, thumbnail
from retrieval.models.preprocess import Preprocess
from serving import metrics
from serving.deployments.calls import Deadline, Unavailable, call
from serving.deployments.messages import Model
from serving.memory.entry import digest_of
from serving.memory.memory import Memory, PictureMemory
from serving.memory.picture import RememberedPicture
from serving.pictures import GalleryPictures
from serving.protocol import EvidencePiece
from serving.ray_names import sized_for

UPLOAD_PIXELS = 50_000_000
"""Of a picture that someone sends: decoded it takes three bytes for each."""
KEPT_SIDE = 768
"""Pixels of the longer side of what is kept of an upload, about 0.1 MB as a JPEG. Parts are cut from that later."""
LOADED_AT_ONCE = 2
"""Pictures that are decoded at a time: one of so many pixels takes 0.15 GB."""

Box = tuple[float, float, float, float]


class GivenPictures:
    """Encodes pictures, each once. For one event loop.

    Args:
        memory: of pictures.
        queries: of imagined queries, whose images may be given.
        gallery: where the pictures of rows are read.
        vlm, vision: whose image towers encode.
        models: by role, those that a key depends on, as ``Imaginer.models``.
        seconds: how long one call of a tower may take.
    """

    def __init__(
        self,
        memory: PictureMemory,
        queries: Memory,
        gallery: GalleryPictures,
        vlm: DeploymentHandle,
        vision: DeploymentHandle,
        models: dict[Role, Model],
        *,
        seconds: float,
    ) -> None:
        self._memory = memory
        self._queries = queries
        self._gallery = gallery
        self._towers = (("the image encoder", vlm), ("the vision encoder", vision))
        self._models = models
        self._seconds = seconds
        self._preprocess: list[Preprocess] = []
        self._loading = asyncio.Semaphore(LOADED_AT_ONCE)

    async def keep(self, data: bytes, deadline: Deadline) -> tuple[str, RememberedPicture]:
        """Remember the picture in a file, and return its key.

        Raises:
            ImageRejected: there is none in it, or too large a one.
            Unavailable: it could not be encoded in time.
        """
        key = self._key(file=hashlib.sha256(data).hexdigest())
        return key, await self._obtain(key, lambda: self._encode(lambda: _decoded(data), keep=True), deadline)

    async def encoded(self, data: bytes, deadline: Deadline) -> RememberedPicture:
        """Encode the picture in a file, and remember nothing; errors as ``keep``."""
        try:
            return await asyncio.wait_for(self._encode(lambda: _decoded(data)), deadline.left)
        except TimeoutError as error:
            raise Unavailable("the image encoder", "late") from error

    async def jpeg(self, key: str) -> bytes | None:
        """Return what is kept of an upload, None if nothing is.

        Raises:
            Unavailable: the store of what is kept does not answer.
        """
        found = await self._memory.look_up(key)
        return found.jpeg or None if found else None

    async def of(self, piece: EvidencePiece, field: str, deadline: Deadline) -> RememberedPicture:
        """Return the vectors of an upload, a part of a row, or an imagined image.

        Args:
            piece: of evidence.
            field: of the request that it is, for errors.

        Raises:
            UserError: there is no such upload, row or image (code ``missing``).
            Unavailable: a part of the service did not answer in time.
        """
        if piece.upload:
            return await self._upload(piece.upload, piece.box, f"{field}.upload", deadline)
        if piece.imagined:
            return await self._imagined(piece.imagined, f"{field}.imagined", deadline)
        assert piece.row
        assert piece.box
        return await self._part_of_row(piece.row, piece.box, f"{field}.row", deadline)

    async def _upload(self, upload: str, box: Box | None, field: str, deadline: Deadline) -> RememberedPicture:
        try:
            whole = await asyncio.wait_for(self._memory.look_up(upload), deadline.left)
        except TimeoutError as error:
            raise Unavailable("the query memory", "late") from error
        if whole is None or not whole.jpeg:
            raise _missing("upload", upload, field, "send the picture again with POST /v1/pictures")
        if box is None and whole.models == self._fingerprints():
            return whole

        async def make() -> RememberedPicture:
            return await self._encode(lambda: _cut(decode(whole.jpeg), box))

        return await self._obtain(self._key(upload=upload, box=box), make, deadline)

    async def _part_of_row(self, id: str, box: Box, field: str, deadline: Deadline) -> RememberedPicture:
        try:
            place = await asyncio.wait_for(self._gallery.places.of(id), deadline.left)
        except TimeoutError as error:
            raise Unavailable("the ranker", "late") from error
        if place is None:
            raise _missing("row", id, field, "give an id that a search has returned")

        async def make() -> RememberedPicture:
            data = await self._gallery.file(place) or b""
            try:
                return await self._encode(lambda: _cut(decode(data), box))
            except ImageRejected as error:
                raise _missing("picture of row", id, field, "its source no longer has it: leave out the box") from error

        key = self._key(row=id, path=place.path, source=place.source, box=box)
        return await self._obtain(key, make, deadline)

    async def _imagined(self, name: str, field: str, deadline: Deadline) -> RememberedPicture:
        query, _, index = name.partition("/")

        async def make() -> RememberedPicture:
            known = await self._queries.look_up(query, unfinished=True)
            place = known.place(int(index)) if known else None
            if known is None or place is None:
                raise _missing("imagined image", name, field, "search for its text again")
            seen = await self._encode(lambda: decode(known.thumbnails[place]))
            if known.vision_fingerprint == seen.models[1]:
                return replace(seen, vision_D2=known.vision_KD2[place])
            return seen  # it was made by another vision encoder, or it is not known by which

        return await self._obtain(self._key(imagined=query, index=int(index)), make, deadline)

    def _fingerprints(self) -> tuple[str, str]:
        """Of the VLM and of the vision encoder."""
        if not {"vlm", "vision"} <= self._models.keys():
            raise Unavailable("the image encoder", "starting")
        return self._models["vlm"].record.fingerprint, self._models["vision"].record.fingerprint

    def _key(self, **picture: Any) -> str:
        vlm, vision = self._fingerprints()
        return digest_of({"format": 1, "vlm": vlm, "vision": vision, **picture})

    async def _obtain(
        self, key: str, make: Callable[[], Awaitable[RememberedPicture]], deadline: Deadline
    ) -> RememberedPicture:
        try:
            found, _ = await self._memory.obtain(key, make, seconds=deadline.left)
        except TimeoutError as error:
            raise Unavailable("the image encoder", "late") from error
        return found

    async def _encode(self, load: Callable[[], Image.Image], *, keep: bool = False) -> RememberedPicture:
        """A picture as both towers see it; with a small one in it, to ``keep``."""
        if not self._preprocess:
            towers = self._towers
            self._preprocess = [await call(part, tower.preprocess, seconds=self._seconds) for part, tower in towers]
        async with self._loading:
            loaded = await asyncio.to_thread(_loaded, load, self._preprocess, keep)

        async def encode(part: str, tower: DeploymentHandle, pixels_HWC: np.ndarray) -> np.ndarray:
            method = sized_for(tower, "encode_pictures", pixels_HWC.nbytes)
            [vector_D] = await call(part, method, pixels_HWC[None], seconds=self._seconds)
            return vector_D

        with metrics.waiting.one(part="pictures"):
            vlm_D1, vision_D2 = await asyncio.gather(
                *(encode(*tower, pixels_HWC) for tower, pixels_HWC in zip(self._towers, loaded.pixels, strict=True))
            )
        models = self._fingerprints() if self._models else ("", "")
        return RememberedPicture(vlm_D1, vision_D2, models, loaded.jpeg, loaded.width, loaded.height)


class _Loaded(NamedTuple):
    """A picture as each tower wants it, uint8 (H, W, 3); what is kept of it; its size."""

    pixels: list[np.ndarray]
    jpeg: bytes
    width: int
    height: int


def _loaded(load: Callable[[], Image.Image], towers: Sequence[Preprocess], keep: bool) -> _Loaded:
    image = load()
    jpeg = thumbnail(image, side=KEPT_SIDE) if keep else b""
    return _Loaded([tower.pixels(image) for tower in towers], jpeg, *image.size)


def _decoded(data: bytes) -> Image.Image:
    return decode(data, max_pixels=UPLOAD_PIXELS)


def _cut(image: Image.Image, box: Box | None) -> Image.Image:
    """The part within a box of fractions, every pixel that it touches: one at least."""
    if box is None:
        return image
    left, top, right, bottom = box
    width, height = image.size
    x, y = min(math.floor(left * width), width - 1), min(math.floor(top * height), height - 1)
    return image.crop((x, y, max(math.ceil(right * width), x + 1), max(math.ceil(bottom * height), y + 1)))


def _missing(what: str, name: str, field: str, remedy: str) -> UserError:
    return UserError(f"no {what} {name!r} is known: {remedy}", code="missing", field=field)
