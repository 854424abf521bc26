"""What a model wants done to an image before it sees it, apart from the model. Where that is to resize and to crop, as
nearly always, workers that only decode load neither the model's library nor PyTorch, which take seconds and hundreds of
megabytes in every one of them.

Shape legend: H, W height, width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from retrieval.errors import UserError
from retrieval.images import Reduced

# Up to this aspect ratio pixels are the library's own. It enlarges until the short side fits, and crops after
# that: an image of 1 x 20,000 pixels would become one of 224 x 4,480,000.
MAX_ASPECT = 32


@dataclass(frozen=True)
class Resize:
    """What torchvision's ``Resize`` does to a PIL image, to the bit.

    Attributes:
        size: pixels of the short side, the long one in proportion and rounded down; or (height, width).
        filter: one that looks at every pixel of what it shrinks.
    """

    size: int | tuple[int, int]
    filter: Image.Resampling

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) of what an image of that size becomes."""
        if not isinstance(self.size, int):
            return self.size[1], self.size[0]
        short = min(width, height)
        return int(self.size * width / short), int(self.size * height / short)

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.resize(self.scaled(*image.size), self.filter)


@dataclass(frozen=True)
class CenterCrop:
    """What torchvision's ``CenterCrop`` does to a PIL image that is at least as large, to the bit."""

    height: int
    width: int

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top = round((image.width - self.width) / 2), round((image.height - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height))


@dataclass(frozen=True)
class Preprocess:
    """What a model wants done to an image: geometry on the CPU, then mean and std on the model's device.

    Small and picklable: send it to the workers that decode, and keep the weights where the device is.
    ``retrieval.models.transforms`` makes it of a library's transform.

    Attributes:
        steps: of ``pixels``.
        geometry: the steps in words. Two models with equal geometry can share one call of ``pixels``.
        mean, std: of each channel, of pixels from 0 to 1.
    """

    steps: tuple[Callable[[Image.Image], Image.Image], ...]
    geometry: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def describe(self) -> dict[str, list[Any]]:
        """Return all of it JSON-ready, for manifests and fingerprints."""
        return {"geometry": list(self.geometry), "mean": list(self.mean), "std": list(self.std)}

    @property
    def side(self) -> int | None:
        """The ``side`` for ``decode_reduced``: what the first step resizes to. None where it does not simply resize."""
        match self.steps:
            case [Resize(size=size), *_]:
                return size if isinstance(size, int) else max(size)
        return None

    def pixels(self, image: Image.Image | Reduced) -> np.ndarray:
        """Resize and crop an RGB image as the library does it.

        Of an image longer than MAX_ASPECT times its short side, only that much of its middle is used. A reduced image
        gives what the whole one would have given, but for what was lost in reducing it.

        Returns:
            uint8 (H, W, 3).

        Raises:
            UserError: the image is not RGB (code ``wrong-mode``, field ``image``), or was reduced although ``side`` is
                None (``reduced``).
        """
        whole = image if isinstance(image, Image.Image) else image.image
        if whole.mode != "RGB":
            message = f"the image has mode {whole.mode}; convert it to RGB first"
            raise UserError(message, code="wrong-mode", field="image")
        steps = self.steps
        if isinstance(image, Reduced) and not image.is_whole:
            whole, steps = self._resized(image), steps[1:]
        elif (middle := _middle(*whole.size)) != (0, 0, *whole.size):
            whole = whole.crop(middle)
        for step in steps:
            whole = step(whole)
        return np.asarray(whole)

    def _resized(self, reduced: Reduced) -> Image.Image:
        """The first step of `pixels`, to the very size and from the very region that it has for the whole image."""
        resize = self.steps[0]
        if not isinstance(resize, Resize):
            message = f"the image was reduced, but {self.geometry[0]} needs it whole; decode it with side None"
            raise UserError(message, code="reduced", field="image")
        middle = _middle(reduced.width, reduced.height)
        left, top, right, bottom = reduced.box
        x, y = (right - left) / reduced.width, (bottom - top) / reduced.height
        box = (left + middle[0] * x, top + middle[1] * y, left + middle[2] * x, top + middle[3] * y)
        return reduced.image.resize(resize.scaled(middle[2] - middle[0], middle[3] - middle[1]), resize.filter, box)

    def blank(self) -> np.ndarray:
        """Return black pixels of the shape that ``pixels`` gives, to stand for an image that is missing."""
        return np.zeros_like(self.pixels(Image.new("RGB", (8, 8))))


def _middle(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is used of an image of that size: all, or its middle MAX_ASPECT long."""
    longest = MAX_ASPECT * min(width, height)
    used_width, used_height = min(width, longest), min(height, longest)
    left, top = (width - used_width) // 2, (height - used_height) // 2
    return left, top, left + used_width, top + used_height
