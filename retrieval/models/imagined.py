"""What became of one prompt: the images that can be used, and for each other one why it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

# An image shows nothing when each of its colour channels spans at most so many of 255 levels.
CONSTANT_SPAN = 4


@dataclass(frozen=True)
class Imagined:
    """The images of one prompt, in the order of their index i; K of them were accepted.

    Attributes:
        pixels_KHWC: the accepted images, uint8.
        seeds: their seeds, (K,) int64; `generator.image_seed` says how they come about.
        rejected: a reason for each image that was not accepted: "safety" (the pipeline's own checker blacked
            it out), "nan" (not finite) or "constant" (one plain colour).
    """

    pixels_KHWC: np.ndarray
    seeds: np.ndarray
    rejected: list[str]


class Painting(NamedTuple):
    """One image that was made, uint8, and why it cannot be used, if so."""

    pixels_HWC: np.ndarray
    fault: str | None


def paintings_of(images_BCHW: torch.Tensor, flagged: Sequence[bool]) -> list[Painting]:
    """From a pipeline's images in [0, 1] to uint8; ``flagged`` says which of them its safety checker blacked out.

    All is done where the images are, and bytes are brought to the CPU: a quarter of what floats would be.
    """
    images_BCHW = images_BCHW.float()
    # A sum is finite if all are, as none is above 1; on a CPU this takes a thirtieth of the time of asking each.
    finite_B = images_BCHW.sum((1, 2, 3)).isfinite()
    levels_BCHW = (images_BCHW * 255).round_().to(torch.uint8)
    span_B = (levels_BCHW.amax((2, 3)).int() - levels_BCHW.amin((2, 3)).int()).amax(dim=1)
    # On a CPU a quarter of the time of `permute` and `contiguous`.
    pixels_BHWC = torch.stack(levels_BCHW.unbind(dim=1), dim=3).cpu().numpy()
    faults = map(_fault, flagged, finite_B.tolist(), span_B.tolist())
    return [Painting(pixels_HWC, fault) for pixels_HWC, fault in zip(pixels_BHWC, faults, strict=True)]


def _fault(flagged: bool, finite: bool, span: int) -> str | None:
    if flagged:
        return "safety"
    if not finite:
        return "nan"
    return "constant" if span <= CONSTANT_SPAN else None


def sort_out(seeds: Sequence[int], paintings: Sequence[Painting]) -> Imagined:
    """Leave out what cannot be used of the paintings of a prompt."""
    fine = [i for i, painting in enumerate(paintings) if painting.fault is None]
    pixels_KHWC = np.stack([painting.pixels_HWC for painting in paintings])[fine]
    rejected = [painting.fault for painting in paintings if painting.fault is not None]
    return Imagined(pixels_KHWC, np.array(seeds, dtype=np.int64)[fine], rejected)
