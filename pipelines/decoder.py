"""The first stage of embedding: a list of inputs to pixels. Shapes: B inputs of a batch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cluster.progress import ProgressCounter
from retrieval.images import ImageRejected, decode_reduced
from retrieval.sources.places import is_relative
from retrieval.sources.reader import InputReader
from retrieval.sources.rows import Content

if TYPE_CHECKING:  # takes seconds to import, which the many tasks that never see a model should not
    from retrieval.models.preprocess import Preprocess

_OF_LIST = ("file", "offset", "length", "row_group", "row", "size", "mtime_ns")
"""Columns of the list of inputs that say where an input lies, and end with its reading."""
_MADE = {"id": pa.string(), "width": pa.int32(), "height": pa.int32(), "reason": pa.string(), "detail": pa.string()}
"""Columns that decoding adds, or fills."""


def decoded_side(preprocesses: Iterable[Preprocess]) -> int | None:
    """Return the side in pixels that an image may be reduced to as it is decoded: what the largest of them resizes to;
    None if one of them has no such size.
    """
    sides = [preprocess.side for preprocess in preprocesses]
    return None if None in sides else max(side for side in sides if side)


class Decoder:
    """Tables of inputs to tables of pixels, ``vlm_pixels`` and ``vision_pixels`` (B, H, W, 3) uint8 tensors.

    Where both encoders want the same geometry, the second is left out. A rejected input has a ``reason``, and black
    pixels.

    Args:
        threads: that decode at once; libjpeg and Pillow's resizing leave Python to the others meanwhile.

    Raises:
        OSError: an input cannot be read because its whole source is away, which ends the job.
    """

    def __init__(
        self,
        reader: InputReader,
        vlm: Preprocess,
        vision: Preprocess,
        *,
        batch: str = "",
        threads: int = 1,
        counter: ProgressCounter | None = None,
    ) -> None:
        self.reader = reader
        self.batch = batch
        self.threads = threads
        self.counter = counter
        self.preprocess = {"vlm_pixels": vlm}
        if vision.geometry != vlm.geometry:
            self.preprocess["vision_pixels"] = vision
        self.blank = {name: preprocess.blank() for name, preprocess in self.preprocess.items()}
        self.side = decoded_side(self.preprocess.values())

    def __call__(self, inputs: pa.Table) -> pa.Table:
        started = time.perf_counter()
        contents = self.reader.read(inputs)
        files = inputs["file"].to_pylist()
        if any(isinstance(each, OSError) and is_relative(file) for each, file in zip(contents, files, strict=True)):
            self.reader.check_source()
        read = time.perf_counter()
        paths, reasons, details = (inputs[name].to_pylist() for name in ("path", "reason", "detail"))
        given = paths, reasons, details, contents
        if self.threads > 1:
            with ThreadPoolExecutor(self.threads) as pool:
                decoded = list(pool.map(self._decoded, *given))
        else:
            decoded = list(map(self._decoded, *given))
        table = inputs.drop_columns([*_OF_LIST, "reason", "detail"])
        for name, kind in _MADE.items():
            table = table.append_column(name, pa.array([row[name] for row, _ in decoded], kind))
        table = table.append_column("batch", pa.array([self.batch] * table.num_rows, pa.string()))
        for name in self.preprocess:
            pixels_BHWC = np.stack([views[name] for _, views in decoded])
            table = table.append_column(name, pa.FixedShapeTensorArray.from_numpy_ndarray(pixels_BHWC))
        if self.counter is not None:
            self.counter.add(read=read - started, decode=time.perf_counter() - read)
        return table

    def _decoded(
        self, path: str, reason: str | None, detail: str | None, content: Content
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What is known of an input after decoding, a value for each of _MADE, and its pixels for each encoder."""
        row: dict[str, Any] = {"id": None, "width": None, "height": None, "reason": reason, "detail": detail}
        if reason is not None:
            return row, self.blank
        try:
            if isinstance(content, Exception):
                raise content
            image = decode_reduced(content, self.side)
            views = {name: preprocess.pixels(image) for name, preprocess in self.preprocess.items()}
        except ImageRejected as rejection:
            return row | {"reason": rejection.reason, "detail": str(rejection)}, self.blank
        except OSError as error:
            return row | {"reason": "unreadable", "detail": str(error)}, self.blank
        return row | {"id": image_id(content, path), "width": image.width, "height": image.height}, views


def image_id(data: bytes, path: str) -> str:
    """Return the id of an image: 16 hex digits of its content's hash, 8 of its path's. Equal content sorts together."""
    content, name = hashlib.blake2b(data, digest_size=8), hashlib.blake2b(path.encode(errors="replace"), digest_size=4)
    return f"{content.hexdigest()}-{name.hexdigest()}"
