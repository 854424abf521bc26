"""What a model wants done to an image before it sees it, apart from the model, so that workers that only decode need
not load the libraries of the models.

Shape legend: B batch; H, W, C height, width, channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from retrieval.images import Reduced

# Up to this aspect ratio pixels are the library's own. It enlarges until the short side fits, and crops after
# that: an image of 1 x 20,000 pixels would become one of 224 x 4,480,000.
MAX_ASPECT = 32
# Those that look at every pixel of what they shrink; after the nearest one a reduced image would look quite different.
_SMOOTH_FILTERS = (transforms.InterpolationMode.BILINEAR, transforms.InterpolationMode.BICUBIC)


@dataclass(frozen=True)
class Preprocess:
    """What a model wants done to an image: geometry on the CPU, then mean and std on the model's device.

    Small and picklable: send it to the workers that decode, and keep the weights where the device is.
    """

    steps: tuple[Callable[[Image.Image], Image.Image], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, transform: transforms.Compose) -> Preprocess:
        """Take a library's inference transform apart: geometry, to tensor, normalise.

        Raises:
            ValueError: the transform is not of that form.
        """
        # open_clip's conversion to RGB does nothing to an image that is RGB already.
        steps = [step for step in transform.transforms if type(step).__name__ != "MaybeConvertMode"]
        match steps:
            case [*geometry, transforms.ToTensor(), transforms.Normalize(mean=mean, std=std)]:
                return cls(tuple(geometry), _float32(mean), _float32(std))
        raise ValueError(f"preprocessing must be geometry, to tensor, normalise, and is {transform}")

    @property
    def geometry(self) -> tuple[str, ...]:
        """The steps of `pixels` in words. Two models with equal geometry can share one call of it."""
        return tuple(_in_words(step) for step in self.steps)

    def describe(self) -> dict[str, list[Any]]:
        """All of it as JSON, for manifests and fingerprints."""
        return {"geometry": list(self.geometry), "mean": list(self.mean), "std": list(self.std)}

    @property
    def side(self) -> int | None:
        """The `side` for `decode_reduced`: what the first step resizes to. None where it does not simply resize."""
        match self.steps:
            case [transforms.Resize(size=size, interpolation=filter, max_size=None), *_] if filter in _SMOOTH_FILTERS:
                return size if isinstance(size, int) else max(size)
        return None

    def pixels(self, image: Image.Image | Reduced) -> np.ndarray:
        """The RGB image, resized and cropped as the library does it: (H, W, 3) uint8.

        Of an image longer than MAX_ASPECT times its short side, only that much of its middle is used. A reduced image
        gives what the whole one would have given, but for what was lost in reducing it.

        Raises:
            ValueError: the image is not RGB, or was reduced although `side` is None.
        """
        whole = image if isinstance(image, Image.Image) else image.image
        if whole.mode != "RGB":
            raise ValueError(f"the image has mode {whole.mode}; convert it to RGB first")
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
        if self.side is None:
            raise ValueError(f"the image was reduced, but {self.geometry[0]} needs it whole; decode it with side None")
        resize: Any = self.steps[0]
        middle = _middle(reduced.width, reduced.height)
        width, height = middle[2] - middle[0], middle[3] - middle[1]
        if isinstance(resize.size, int) or len(resize.size) == 1:
            # As torchvision's Resize: the long side is rounded down.
            scaled = [int(self.side * edge / min(width, height)) for edge in (width, height)]
        else:
            scaled = [resize.size[1], resize.size[0]]
        left, top, right, bottom = reduced.box
        x, y = (right - left) / reduced.width, (bottom - top) / reduced.height
        box = (left + middle[0] * x, top + middle[1] * y, left + middle[2] * x, top + middle[3] * y)
        filter = transforms.functional.pil_modes_mapping[resize.interpolation]
        return reduced.image.resize((scaled[0], scaled[1]), filter, box)

    def blank(self) -> np.ndarray:
        """Black pixels of the shape that `pixels` gives, to stand for an image that is missing."""
        return np.zeros_like(self.pixels(Image.new("RGB", (8, 8))))

    def normalise(self, pixels_BHWC: np.ndarray, device: torch.device) -> torch.Tensor:
        """float32 (B, 3, H, W), channels last in memory; on a CPU, to the bit what the library itself makes.

        Args:
            pixels_BHWC: uint8, from `pixels`; may be read-only, as Ray hands them out.
        """
        images_BHWC = torch.tensor(pixels_BHWC, device=device).to(torch.float32).div_(255)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=device)
        std = torch.tensor(self.std, dtype=torch.float32, device=device)
        return images_BHWC.sub_(mean).div_(std).permute(0, 3, 1, 2)


def _middle(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is used of an image of that size: all, or its middle MAX_ASPECT long."""
    longest = MAX_ASPECT * min(width, height)
    used_width, used_height = min(width, longest), min(height, longest)
    left, top = (width - used_width) // 2, (height - used_height) // 2
    return left, top, left + used_width, top + used_height


def _in_words(step: Callable[[Image.Image], Image.Image]) -> str:
    match step:
        case transforms.Resize(size=size, interpolation=interpolation):
            return f"resize {size} {interpolation.value}"
        case transforms.CenterCrop(size=size):
            return f"crop {tuple(size)}"
    return f"{step} fill={getattr(step, 'fill', None)}"


def _float32(values: Any) -> tuple[float, ...]:
    """The shortest decimals that are these float32 numbers: from a tensor of it, 0.485 again."""
    return tuple(float(str(value)) for value in np.asarray(values, dtype=np.float32))
