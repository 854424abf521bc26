"""Images in pickles: arrays of pixels with the numbers of their classes, as CIFAR's authors write them for Python.

A batch is a dict with ``data``, uint8 (N, 3 · side · side), of which each row has the red, the green and the blue plane
of an image, and a list of N labels; another file names what they stand for (cs.toronto.edu/~kriz/cifar.html, and
``torchvision.datasets.CIFAR10``). They were pickled by Python 2, so their strings are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from retrieval.datasets.disk import Disk
from retrieval.datasets.findings import Finding
from retrieval.datasets.recipe import Pickled
from retrieval.errors import UserError
from retrieval.unpickle import unpickle

_ROWS = 1024


class _Batch(NamedTuple):
    file: str
    pixels_NHWC: np.ndarray
    labels: list[int]


class PickledImages:
    """The images of some pickles, in memory as they are, and as PNG when they are asked for.

    Attributes:
        names: what the numbers of classes stand for.

    Args:
        disk: where the files lie.
        layout: which files, and how they are read.
        findings: a file that is missing or cannot be read is added.

    Raises:
        UserError: the file that names the classes is missing or not what the recipe says.
    """

    source = None

    def __init__(self, disk: Disk, layout: Pickled, findings: list[Finding]) -> None:
        content = _content(disk, layout.names.file)
        names = content.get(layout.names.key)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _malformed(layout.names.file, f"{layout.names.key} must be a list of names")
        self.names: list[str] = names
        self._batches = []
        for file in layout.files:
            if disk.find(file).path is None and not disk.find(file).outside:
                findings.append(Finding("image-missing", file, "is not there, and its images are not"))
                continue
            try:
                self._batches.append(_batch(disk, layout, file))
            except UserError as error:
                findings.append(Finding("outside" if error.code == "outside" else "unreadable", file, str(error)))

    def rows(self) -> Iterator[tuple[str, str | None]]:
        """Yield path and label of each image; the path is its file and its place there. None is a class of no name."""
        for batch in self._batches:
            for number, label in enumerate(batch.labels):
                named = 0 <= label < len(self.names)
                yield f"{batch.file}/{number:05d}.png", self.names[label] if named else None

    def tables(self) -> Iterator[pa.Table]:
        """Yield the images as PNG, some at a time: ``image`` and ``label``, in the order of ``rows``."""
        labels = (label for _, label in self.rows())
        for batch in self._batches:
            for start in range(0, len(batch.labels), _ROWS):
                images = [_png(pixels_HWC) for pixels_HWC in batch.pixels_NHWC[start : start + _ROWS]]
                here = [next(labels) for _ in images]
                yield pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(here, pa.string())})


def _batch(disk: Disk, layout: Pickled, file: str) -> _Batch:
    content = _content(disk, file)
    data, labels = content.get("data"), content.get(layout.label)
    row = 3 * layout.side * layout.side
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != row:
        raise _malformed(file, f"data must be an array of uint8 with rows of {row:,}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise _malformed(file, f"{layout.label} must be a list of numbers")
    if len(labels) != len(data):
        raise _malformed(file, f"it has {len(data):,} images and {len(labels):,} {layout.label}")
    pixels_NHWC = np.asarray(data).reshape(-1, 3, layout.side, layout.side).transpose(0, 2, 3, 1)
    return _Batch(file, pixels_NHWC, labels)


def _content(disk: Disk, file: str) -> dict[str, Any]:
    content = unpickle(disk.read(file), str(disk.root / file))
    if not isinstance(content, dict):
        raise _malformed(file, "it must hold a dict")
    # Of Python 2; whoever wrote it again with Python 3 may have bytes.
    return {_text(key): list(map(_text, value)) if isinstance(value, list) else value for key, value in content.items()}


def _text(value: Any) -> Any:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _malformed(file: str, why: str) -> UserError:
    return UserError(f"{file} is not what it should be: {why}", code="malformed", field="root")


def _png(pixels_HWC: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels_HWC)).save(buffer, "PNG")
    return buffer.getvalue()
