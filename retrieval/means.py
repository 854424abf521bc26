"""Means of texts and of images, which are taken out of evidence where both kinds meet or a lens is set.

Texts and images lie apart in a VLM's space (the modality gap, Liang et al. 2022), and so do imagined and real images in
that of the vision encoder. Alone, a common part changes no ranking; in a sum of both kinds it weighs more than what
they say. Of one kind without a lens nothing is taken out, so one text is answered to the bit as it ever was.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.evidence import Encoded


class Means(NamedTuple):
    """Of one kind of evidence, float32.

    Attributes:
        vlm_D1: of t, or of c.
        vision_D2: of v, or of d.
    """

    vlm_D1: NDArray[np.float32]
    vision_D2: NDArray[np.float32]


def centred(
    encoded: Encoded,
    texts_E: NDArray[np.bool_],
    texts: Means | None,
    images: Means | None,
    *,
    nearest_E: NDArray[np.bool_] | None = None,
    always: bool = False,
) -> Encoded:
    """Return evidence without the means of its kinds, if it has both kinds and both means are known.

    Args:
        encoded: the evidence; vectors that are zero remain zero.
        texts_E: whether each piece is a text; the others are pictures and rows.
        texts: means of texts, by a dictionary.
        images: means of images, by the index.
        nearest_E: whether each piece is a text with real images in the place of imagined ones (``retrieval.nearest``);
            by default none is.
        always: take out what is known, of whatever kinds: for a lens.
    """
    mixed = texts_E.any() and not texts_E.all() and texts and images
    if not (mixed or always):
        return encoded
    vlm_ED1, vision_ED2 = encoded.vlm_ED1.copy(), encoded.vision_ED2.copy()
    imagined_E = texts_E if nearest_E is None else texts_E & ~nearest_E
    there_E = vision_ED2.any(axis=1)
    for of_E, seen_E, means in ((texts_E, imagined_E, texts), (~texts_E, ~imagined_E, images)):
        if means:
            vlm_ED1[of_E] -= means.vlm_D1
            vision_ED2[seen_E & there_E] -= means.vision_D2
    return encoded._replace(vlm_ED1=vlm_ED1, vision_ED2=vision_ED2)
