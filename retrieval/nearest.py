"""Real images in the place of imagined ones: what a text without any has for its visual half.

A text finds images of a gallery by its text vector alone; the mean of what the vision encoder sees in the best of them
is the visual half of a second search. It is pseudo-relevance feedback (Rocchio, 1971) across two spaces: the VLM finds,
the vision encoder compares. N rows, D2 dimensions of the vision encoder.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEAREST = 15
"""How many of the best images by text are averaged. Chosen on fitting categories: docs/evidence.md."""


def visual_half(vision_ND2: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return v of the best rows by text: their unit mean, float32 (D2,); zero if there are none, or they cancel out.

    To the bit the same in any order of the rows: sums of float16 numbers in float64 are exact here.

    Args:
        vision_ND2: d of the rows.
    """
    total_D2 = vision_ND2.astype(np.float64).sum(axis=0)
    length = np.linalg.norm(total_D2)
    return (total_D2 / (length or 1.0)).astype(np.float32)
