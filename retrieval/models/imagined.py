"""What became of one prompt: the images that can be used, and for each other one why it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

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


def painting_of(image_HWC: np.ndarray, flagged: bool) -> Painting:
    """From a pipeline's float32 in [0, 1] to uint8; ``flagged`` says that its safety checker blacked it out."""
    finite = bool(np.isfinite(image_HWC).all())
    pixels_HWC = ((image_HWC if finite else np.nan_to_num(image_HWC)) * 255).round().astype(np.uint8)
    if flagged:
        return Painting(pixels_HWC, "safety")
    if not finite:
        return Painting(pixels_HWC, "nan")
    # A few pixels tell nearly any picture from a plain one; to look at all takes ten times as long as all of the above.
    if all(np.ptp(part, axis=(0, 1)).max() <= CONSTANT_SPAN for part in (pixels_HWC[::16, ::16], pixels_HWC)):
        return Painting(pixels_HWC, "constant")
    return Painting(pixels_HWC, None)


def sort_out(seeds: Sequence[int], paintings: Sequence[Painting]) -> Imagined:
    """Leave out what cannot be used of the paintings of a prompt."""
    fine = [i for i, painting in enumerate(paintings) if painting.fault is None]
    pixels_KHWC = np.stack([painting.pixels_HWC for painting in paintings])[fine]
    rejected = [painting.fault for painting in paintings if painting.fault is not None]
    return Imagined(pixels_KHWC, np.array(seeds, dtype=np.int64)[fine], rejected)
