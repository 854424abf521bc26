"""A lens: a query that counts one aspect of what was given alone (focus), or all but some (ignore).

The values of an aspect in a dictionary span a subspace of either space: U, the singular vectors of their centred means,
of which there are one fewer than values. The query is taken to P = UUᵀ for focus, I - UUᵀ for ignore. Since ⟨q, Px⟩ =
⟨Pq, x⟩, the gallery and its index stay as they are. D dimensions of one of the two spaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import UserError
from retrieval.evidence import Encoded, heavier_against
from retrieval.means import Means, centred
from retrieval.words import Dictionary

_NOTHING = 1e-6
"""Singular values below this share of the largest are rounding."""


@dataclass(frozen=True)
class Lens:
    """The subspaces of both halves: what counts alone, rows of ``focus``; what does not count, rows of ``ignore``."""

    focus: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    ignore: tuple[NDArray[np.float64], NDArray[np.float64]] | None

    def __call__(self, encoded: Encoded) -> Encoded:
        """Return evidence as it is seen through this lens; its vectors are no longer of unit length."""
        return encoded._replace(
            vlm_ED1=self._project(encoded.vlm_ED1, 0), vision_ED2=self._project(encoded.vision_ED2, 1)
        )

    def _project(self, vectors_ED: np.ndarray, half: int) -> NDArray[np.float32]:
        seen = vectors_ED.astype(np.float64)
        if self.focus:
            seen = seen @ self.focus[half].T @ self.focus[half]
        if self.ignore:
            seen = seen - seen @ self.ignore[half].T @ self.ignore[half]
        return seen.astype(np.float32)


def lens(dictionary: Dictionary | None, focus: str | None, ignore: Sequence[str] = ()) -> Lens | None:
    """Return the lens for aspects of a dictionary; None if none is asked for.

    Raises:
        UserError: there is no dictionary (code ``no-words``), or none of its aspects has the name (``unknown``; those
            that there are are named), an aspect is both (``overlap``), or it has a single value, which tells nothing
            apart (``one-value``). The field is ``focus`` or ``ignore``.
    """
    check_lens(dictionary.aspects if dictionary else None, focus, ignore)
    if dictionary is None or (focus is None and not ignore):
        return None
    spans = {aspect: _spans(dictionary, aspect, field) for field, aspect in _asked(focus, ignore)}
    ignored = tuple(_joined([spans[aspect][half] for aspect in ignore]) for half in (0, 1)) if ignore else None
    return Lens(spans[focus] if focus is not None else None, ignored)  # type: ignore[arg-type]


def check_lens(aspects: Sequence[str] | None, focus: str | None, ignore: Sequence[str]) -> None:
    """Check what ``lens`` is asked for, by the aspects of the dictionary; None without one. Errors are those of it."""
    for field, aspect in _asked(focus, ignore):
        if aspects is None:
            raise UserError(
                f"{field} {aspect!r} needs a dictionary, whose words say what {aspect} is: give a query set of words"
                " with a column aspect",
                code="no-words",
                field=field,
            )
        if aspect not in aspects:
            there = f"the dictionary has {', '.join(aspects)}" if aspects else "the dictionary has none"
            raise UserError(f"there is no aspect {aspect!r}: {there}", code="unknown", field=field)
    if focus is not None and focus in ignore:
        raise UserError(f"{focus!r} cannot be both focus and ignored", code="overlap", field="ignore")


def _asked(focus: str | None, ignore: Sequence[str]) -> list[tuple[str, str]]:
    return [*([("focus", focus)] if focus is not None else []), *(("ignore", aspect) for aspect in ignore)]


def through(
    encoded: Encoded,
    texts_E: NDArray[np.bool_],
    nearest_E: NDArray[np.bool_],
    dictionary: Dictionary | None,
    images: Means | None,
    glass: Lens | None,
) -> Encoded:
    """Return evidence as it counts: through the lens, if there is one, without means where these would count, and
    heavier where images were imagined of what is against.

    Args:
        encoded: the evidence.
        texts_E: whether each piece is a text.
        nearest_E: whether it has real images in the place of imagined ones.
        dictionary: of which the means of texts are.
        images: means of the gallery.
        glass: the lens.
    """
    texts, always = dictionary.means if dictionary else None, glass is not None
    encoded = centred(encoded, texts_E, texts, images, nearest_E=nearest_E, always=always)
    encoded = heavier_against(encoded, texts_E & ~nearest_E)
    return glass(encoded) if glass else encoded


def _spans(dictionary: Dictionary, aspect: str, field: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    members = dictionary.members(aspect)
    if len(members) < 2:
        message = f"the dictionary has one value of {aspect!r} alone; give at least two"
        raise UserError(message, code="one-value", field=field)
    return _span(dictionary.vlm_WD1[members]), _span(dictionary.vision_WD2[members])


def _span(means_WD: np.ndarray) -> NDArray[np.float64]:
    """Orthonormal rows that span the differences of these means; none where all are the same."""
    centred = means_WD.astype(np.float64) - means_WD.mean(axis=0)
    _, lengths, rows = np.linalg.svd(centred, full_matrices=False)
    return rows[: len(means_WD) - 1][lengths[: len(means_WD) - 1] > _NOTHING * max(lengths[0], 1e-30)]


def _joined(spans: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Orthonormal rows that span all of these."""
    _, lengths, rows = np.linalg.svd(np.concatenate(spans), full_matrices=False)
    return rows[lengths > _NOTHING]
