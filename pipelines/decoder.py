"""The first stage of embedding: a list of inputs to pixels. Shapes: B inputs of a batch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cluster.progress import ProgressCounter
from retrieval.images import ImageRejected, decode_reduced
from retrieval.sources.places import is_relative
from retrieval.sources.reader import InputReader

if TYPE_CHECKING:  # takes seconds to import, which the many tasks that never see a model should not
    from retrieval.models.preprocess import Preprocess

_OF_LIST = ("file", "offset", "length", "row_group", "row", "size", "mtime_ns")
"""Columns of the list of inputs that say where an input lies, and end with its reading."""


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
        counter: ProgressCounter | None = None,
    ) -> None:
        self.reader = reader
        self.batch = batch
        self.counter = counter
        self.preprocess = {"vlm_pixels": vlm}
        if vision.geometry != vlm.geometry:
            self.preprocess["vision_pixels"] = vision
        self.side = decoded_side(self.preprocess.values())

    def __call__(self, inputs: pa.Table) -> pa.Table:
        started = time.perf_counter()
        contents = self.reader.read(inputs)
        files = inputs["file"].to_pylist()
        if any(isinstance(each, OSError) and is_relative(file) for each, file in zip(contents, files, strict=True)):
            self.reader.check_source()
        read = time.perf_counter()
        paths, reasons, details = (inputs[name].to_pylist() for name in ("path", "reason", "detail"))
        made: dict[str, list[Any]] = {name: [] for name in ("id", "width", "height", "reason", "detail")}
        pixels: dict[str, list[np.ndarray]] = {name: [] for name in self.preprocess}
        blank = {name: preprocess.blank() for name, preprocess in self.preprocess.items()}
        for path, reason, detail, content in zip(paths, reasons, details, contents, strict=True):
            row = {"id": None, "width": None, "height": None, "reason": reason, "detail": detail}
            views = blank
            if reason is None:
                try:
                    if isinstance(content, Exception):
                        raise content
                    image = decode_reduced(content, self.side)
                    views = {name: preprocess.pixels(image) for name, preprocess in self.preprocess.items()}
                    row |= {"id": image_id(content, path), "width": image.width, "height": image.height}
                except ImageRejected as rejection:
                    row |= {"reason": rejection.reason, "detail": str(rejection)}
                except OSError as error:
                    row |= {"reason": "unreadable", "detail": str(error)}
            for name, value in row.items():
                made[name].append(value)
            for name, view in views.items():
                pixels[name].append(view)
        table = inputs.drop_columns([*_OF_LIST, "reason", "detail"])
        for name, values in made.items():
            kind = pa.int32() if name in ("width", "height") else pa.string()
            table = table.append_column(name, pa.array(values, kind))
        table = table.append_column("batch", pa.array([self.batch] * table.num_rows, pa.string()))
        for name, views_BHWC in pixels.items():
            table = table.append_column(name, pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(views_BHWC)))
        if self.counter is not None:
            self.counter.add(read=read - started, decode=time.perf_counter() - read)
        return table


def image_id(data: bytes, path: str) -> str:
    """Return the id of an image: 16 hex digits of its content's hash, 8 of its path's. Equal content sorts together."""
    content, name = hashlib.blake2b(data, digest_size=8), hashlib.blake2b(path.encode(errors="replace"), digest_size=4)
    return f"{content.hexdigest()}-{name.hexdigest()}"
