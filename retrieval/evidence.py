"""A query made of evidence: texts, pictures and rows of the gallery, for and against, as one joint query.

Every piece e of evidence has a signed weight w and two vectors: τ in the space of the VLM, ν in that of the vision
encoder. They are summed as Rocchio (1971) sums documents that are relevant and those that are not:

    t = unit(Σ w τ),  v = unit(Σ w' ν),  q = [(1 - λ)t ; λv]

w' is w, and IMAGINED_AGAINST times it for imagined images of a text that is against.

| evidence | τ | ν |
| --- | --- | --- |
| text | the text tower's vector | its imagined images, pooled |
| picture | the VLM's image tower | the vision encoder |
| row of the gallery | c | d |

Scores stay one inner product, so the index is untouched, and each piece has its share of a score. Shapes: E pieces of
evidence, N rows, D1 and D2 dimensions of VLM and vision encoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.errors import UserError
from retrieval.fusion import fused_query, unit

MAX_PIECES = 16
MAX_WEIGHT = 100.0
AGAINST = -0.4
"""Weight of what is not wanted, beside one wanted piece of weight 1. Chosen on fitting categories: docs/evidence.md."""
IMAGINED_AGAINST = 2.5
"""By what the imagined images of a text that is against weigh more than its words: images of what is wanted agree on
colours and surroundings that nobody asked for. Chosen on fitting categories: docs/evidence.md."""
_CANCELLED = 1e-6
"""Length of Σ w e, for Σ |w| = 1, below which its direction is rounding."""
_ROUNDING = 1e-5
"""By which the length of a unit vector in float32 may differ from 1."""


@dataclass(frozen=True)
class Text:
    """Words, which are imagined where images count."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Picture:
    """An image, RGB, or the part of it within ``box``: left, top, right, bottom in pixels."""

    image: Image.Image
    weight: float = 1.0
    box: tuple[int, int, int, int] | None = None

    def cut(self) -> Image.Image:
        """Return the part that is meant."""
        return self.image.crop(self.box) if self.box else self.image


@dataclass(frozen=True)
class Row:
    """An image of the gallery, by its id in the index."""

    id: str
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Composed:
    """What a composer has made of pictures and texts (``retrieval.composer``): τ (D1,) and ν (D2,), unit vectors."""

    vlm_D1: NDArray[np.float32]
    vision_D2: NDArray[np.float32]
    weight: float = 1.0


Evidence = Text | Picture | Row | Composed


class Encoded(NamedTuple):
    """The vectors of all pieces, in their order.

    Attributes:
        weights_E: float64, none of them zero.
        vlm_ED1: τ, float32 unit rows.
        vision_ED2: ν, float32 unit rows; zero for a text of which no image could be imagined, or none was wanted.
    """

    weights_E: NDArray[np.float64]
    vlm_ED1: NDArray[np.float32]
    vision_ED2: NDArray[np.float32]


def check_evidence(evidence: Sequence[Evidence]) -> None:
    """Check evidence before anything is made of it.

    Raises:
        UserError: there is none of it (code ``empty``), more than MAX_PIECES (``too-many``), none that is for something
            (``nothing-wanted``), a weight that is zero, not finite or beyond ±MAX_WEIGHT (``out-of-range``), or a box
            that does not lie in its picture (``out-of-range``). The field is ``evidence``, with the number of the piece
            if it is one's fault.
    """
    check_weights([piece.weight for piece in evidence])
    for number, piece in enumerate(evidence):
        if isinstance(piece, Picture) and piece.box:
            _check_box(piece.box, piece.image.size, f"evidence.{number}.box")


def check_weights(weights: Sequence[float]) -> None:
    """Check how many pieces of evidence there are, and their weights; errors as ``check_evidence``."""
    if not weights:
        raise UserError(
            "there is nothing to search for: give a text, a picture or a row", code="empty", field="evidence"
        )
    if len(weights) > MAX_PIECES:
        message = f"a query has up to {MAX_PIECES} pieces of evidence, not {len(weights)}"
        raise UserError(message, code="too-many", field="evidence")
    for number, weight in enumerate(weights):
        if not math.isfinite(weight) or not 0 < abs(weight) <= MAX_WEIGHT:
            raise UserError(
                f"the weight of evidence is a number from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g} and not zero, not"
                f" {weight!r}",
                code="out-of-range",
                field=f"evidence.{number}.weight",
            )
    if all(weight < 0 for weight in weights):
        raise UserError(
            "all evidence is against something: give a text, a picture or a row to search for as well",
            code="nothing-wanted",
            field="evidence",
        )


def _check_box(box: tuple[int, int, int, int], size: tuple[int, int], field: str) -> None:
    left, top, right, bottom = box
    width, height = size
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise UserError(
            f"the box {box} (left, top, right, bottom) does not lie within a picture of {width} × {height} pixels",
            code="out-of-range",
            field=field,
        )


def summed(weights_E: NDArray[np.float64], vectors_ED: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return unit(Σ w e), float32 (D,), over the pieces that have a vector; zero if none has.

    Raises:
        UserError: pieces cancel each other out (code ``no-direction``, field ``evidence``).
    """
    there = vectors_ED.any(axis=1)
    weights, vectors = weights_E[there], vectors_ED[there]
    if not len(vectors):
        return np.zeros(vectors_ED.shape[1], np.float32)
    if len(vectors) == 1 and weights[0] > 0 and abs(np.linalg.norm(vectors[0]) - 1) < _ROUNDING:
        return vectors[0]  # as it is: scaled again, it would differ in its last bit
    total_D = weights @ vectors.astype(np.float64)
    if np.linalg.norm(total_D) < _CANCELLED * np.abs(weights).sum():
        raise UserError("the pieces of evidence cancel each other out", code="no-direction", field="evidence")
    return unit(total_D)


def heavier_against(encoded: Encoded, imagined_E: NDArray[np.bool_]) -> Encoded:
    """Return evidence in which what is against weighs IMAGINED_AGAINST times as much in ν, if that was imagined.

    Args:
        encoded: the evidence.
        imagined_E: whether ν of each piece is of imagined images.
    """
    heavier_E = imagined_E & (encoded.weights_E < 0)
    if not heavier_E.any():
        return encoded
    factors_E = np.where(heavier_E, IMAGINED_AGAINST, 1.0).astype(np.float32)
    return encoded._replace(vision_ED2=encoded.vision_ED2 * factors_E[:, None])


def compiled(encoded: Encoded, weight: float) -> tuple[NDArray[np.float32], float]:
    """Return the joint query [(1 - λ)t ; λv] of evidence, (1, D1 + D2), and its λ: ``weight``, or 0 where no piece that
    is for something has a visual half, since against alone a half wants nothing.

    Raises:
        UserError: as ``summed``.
    """
    if not encoded.vision_ED2[encoded.weights_E > 0].any():
        weight = 0.0
    vlm_D1 = summed(encoded.weights_E, encoded.vlm_ED1)
    vision_D2 = summed(encoded.weights_E, encoded.vision_ED2) if weight else np.zeros_like(encoded.vision_ED2[0])
    return fused_query(vlm_D1, vision_D2, weight), weight


def halves(joint_ND: NDArray[np.float16], vlm_dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the vectors that rows [c ; d] of the gallery have as evidence: float32 (N, D1) and (N, D2) unit rows."""
    rows_ND = joint_ND.astype(np.float32)
    return unit(rows_ND[..., :vlm_dim]), unit(rows_ND[..., vlm_dim:])


def shares(
    encoded: Encoded, weight: float, vlm_ND1: NDArray[np.float16], vision_ND2: NDArray[np.float16]
) -> np.ndarray:
    """Return what each piece brings to the score of each row: float64 (N, E), rows of which sum to their scores.

    Args:
        encoded: the evidence.
        weight: λ.
        vlm_ND1: c of the rows.
        vision_ND2: d of the same rows.
    """
    total = np.zeros((len(vlm_ND1), len(encoded.weights_E)))
    halves = ((1 - weight, encoded.vlm_ED1, vlm_ND1), (weight, encoded.vision_ED2, vision_ND2))
    for factor, vectors_ED, rows_ND in halves:
        parts_ED = encoded.weights_E[:, None] * vectors_ED.astype(np.float64)
        length = np.linalg.norm(parts_ED.sum(axis=0))
        if factor and length:
            total += factor / length * (rows_ND.astype(np.float64) @ parts_ED.T)
    return total
