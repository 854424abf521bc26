"""A library's inference transform as a ``Preprocess``: geometry taken apart, normalisation on the model's device.

Shape legend: B batch; H, W, C height, width, channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from retrieval.errors import UserError
from retrieval.models.preprocess import CenterCrop, Preprocess, Resize
from retrieval.models.transfer import to_device

# Those that look at every pixel of what they shrink; after the nearest one a reduced image would look quite different.
_SMOOTH_FILTERS = {
    transforms.InterpolationMode.BILINEAR: Image.Resampling.BILINEAR,
    transforms.InterpolationMode.BICUBIC: Image.Resampling.BICUBIC,
}


def preprocess_of(transform: transforms.Compose) -> Preprocess:
    """Take a library's inference transform apart: geometry, to tensor, normalise.

    Raises:
        UserError: the transform is not of that form (code ``unsupported``, field ``preprocessing``).
    """
    # open_clip's conversion to RGB does nothing to an image that is RGB already.
    steps = [step for step in transform.transforms if type(step).__name__ != "MaybeConvertMode"]
    match steps:
        case [*geometry, transforms.ToTensor(), transforms.Normalize(mean=mean, std=std)]:
            words = tuple(_in_words(step) for step in geometry)
            return Preprocess(_light(geometry), words, _float32(mean), _float32(std))
    message = f"preprocessing must be geometry, to tensor, normalise, and is {transform}"
    raise UserError(message, code="unsupported", field="preprocessing")


class Normalise:
    """Scales pixels by a model's mean and std; on a CPU, to the bit what its library makes.

    Args:
        preprocess: the model's.
        device: the model's. Mean and std are copied there once: to copy them for each batch would be to wait for the
            one before it.
    """

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        self._mean = torch.tensor(preprocess.mean, dtype=torch.float32, device=device)
        self._std = torch.tensor(preprocess.std, dtype=torch.float32, device=device)
        self._device = device

    def __call__(self, pixels_BHWC: np.ndarray) -> torch.Tensor:
        """Return float32 (B, 3, H, W), channels last in memory, of uint8 from ``Preprocess.pixels``."""
        images_BHWC = to_device(pixels_BHWC, self._device).to(torch.float32).div_(255)
        return images_BHWC.sub_(self._mean).div_(self._std).permute(0, 3, 1, 2)


def _light(steps: list[Any]) -> tuple[Callable[[Image.Image], Image.Image], ...]:
    """The steps with the two that nearly every model wants, resize and crop, as those that need no torchvision."""
    match steps:
        case [transforms.Resize(size=size, interpolation=mode, max_size=None), *rest] if mode in _SMOOTH_FILTERS:
            sides = (size,) if isinstance(size, int) else tuple(size)
            resize = Resize(sides[0] if len(sides) == 1 else sides, _SMOOTH_FILTERS[mode])
            match rest:
                # A larger crop would pad, which is left to torchvision.
                case [transforms.CenterCrop(size=(height, width)), *last] if height <= sides[0] and width <= sides[-1]:
                    return resize, CenterCrop(height, width), *last
            return resize, *rest
    return tuple(steps)


def _in_words(step: Any) -> str:
    match step:
        case transforms.Resize(size=size, interpolation=interpolation):
            return f"resize {size} {interpolation.value}"
        case transforms.CenterCrop(size=size):
            return f"crop {tuple(size)}"
    return f"{step} fill={getattr(step, 'fill', None)}"


def _float32(values: Any) -> tuple[float, ...]:
    """The shortest decimals that are these float32 numbers: from a tensor of it, 0.485 again."""
    return tuple(float(str(value)) for value in np.asarray(values, dtype=np.float32))
