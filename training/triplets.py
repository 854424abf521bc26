"""What the composer learns from: triplets of a labelled gallery, a picture with a changed attribute and its target.

A dictionary says what labels name: "red striped star" has a colour, a pattern and a shape. Two labels that name the
same aspects, with another value of one of them, make triplets: a row of the one, a text that says the value, and rows
of the other. Shapes: C labels, N rows, B queries of a batch, b of them on one worker, E rows of evidence (picture,
nearest rows, text), P positives, V texts, D1 and D2 dimensions of VLM and vision encoder, D = D1 + D2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from retrieval.composer import NEAR, PICTURE, TEXT, Centres
from retrieval.errors import UserError
from retrieval.evidence import halves
from retrieval.means import Means
from retrieval.words import NEIGHBOURS, Dictionary
from training.examples import Batch, one_of

_ROWS_AT_ONCE = 1024
_MEASURED = 256
"""Pictures that a validation is of, at most."""
TYPES = np.array([PICTURE, NEAR, TEXT])


class Change(NamedTuple):
    """What turns one label into another: their places, and those of the texts that say the new value."""

    source: int
    target: int
    texts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Triplets:
    """Rows of a labelled gallery, sorted by label, and the changes between labels.

    Attributes:
        labels: C names; ``row_label_N`` has places in it, or -1 for rows that are there to be told apart.
        joint_ND: [c ; d], float16.
        near_ND: the mean of the rows that are nearest to each, float16.
        text_VD1: t of the dictionary's texts, float32.
        changes: sorted by ``source``.
        vlm_dim: D1.
    """

    labels: list[str]
    joint_ND: np.ndarray
    near_ND: np.ndarray
    row_label_N: np.ndarray
    text_VD1: np.ndarray
    changes: list[Change]
    vlm_dim: int

    @property
    def dim(self) -> int:
        """D."""
        return self.joint_ND.shape[1]

    def of_labels(self, chosen: Sequence[int], *, rows_of_all: bool = False) -> Self:
        """The part of these labels; with ``rows_of_all`` the rows of the others stay, as label -1.

        Raises:
            UserError: none of them is another but for one value (code ``no-triplets``, field ``gallery``).
        """
        place = np.full(len(self.labels), -1)
        place[list(chosen)] = np.arange(len(chosen))
        row_label = place[self.row_label_N]
        rows = np.flatnonzero((row_label >= 0) | rows_of_all)
        rows = rows[np.argsort(row_label[rows], kind="stable")]
        changes = [
            Change(int(place[one.source]), int(place[one.target]), one.texts)
            for one in self.changes
            if place[one.source] >= 0 and place[one.target] >= 0
        ]
        if not changes:
            raise UserError(
                f"of {len(chosen)} labels none becomes another by one value of the dictionary: labels must name values"
                " of its aspects, and share all but one; use a gallery with more of them",
                code="no-triplets",
                field="gallery",
            )
        return type(self)(
            [self.labels[i] for i in chosen],
            self.joint_ND[rows],
            self.near_ND[rows],
            row_label[rows],
            self.text_VD1,
            sorted(changes),
            self.vlm_dim,
        )

    @property
    def centres(self) -> Centres:
        """Means of texts and of rows."""
        mean_D = self.joint_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
        return Centres(self.text_VD1.mean(axis=0), Means(mean_D[: self.vlm_dim], mean_D[self.vlm_dim :]))

    def draw(self, step: int, *, batch: int, positives: int, seed: int, rank: int = 0, world: int = 1) -> Batch:
        """One worker's share of the batch of a step.

        Labels that can change come in random order, each once before any comes again. A label gives one of its changes,
        one of its rows as the picture, ``positives`` rows of the target, and as many of its own, which are the hardest
        to tell from those.

        Returns:
            rows (b, 3, D), types (b, 3), mask (b, 3), label (b,); joint (2·B·P, D), row_label (2·B·P,).
        """
        sources = np.array([one.source for one in self.changes])
        able = np.unique(sources)
        at = range(step * batch, (step + 1) * batch)
        orders = {
            epoch: np.random.default_rng([seed, 0, epoch]).permutation(able)
            for epoch in range(at[0] // len(able), at[-1] // len(able) + 1)
        }
        source_B = np.array([orders[i // len(able)][i % len(able)] for i in at])
        rng = np.random.default_rng([seed, 1, step])
        chosen = [self.changes[i] for i in one_of(sources, source_B, rng.random(batch))]
        target_B = np.array([one.target for one in chosen])
        text_B = np.array(
            [one.texts[int(part * len(one.texts))] for one, part in zip(chosen, rng.random(batch), strict=True)]
        )
        picture_B = one_of(self.row_label_N, source_B, rng.random(batch))
        found_BP = one_of(
            self.row_label_N, np.stack([target_B, source_B], axis=1)[..., None], rng.random((batch, 2, positives))
        )
        mine, rows = slice(rank, None, world), found_BP.ravel()
        return {
            **self.evidence(picture_B[mine], text_B[mine]),
            "label": target_B[mine],
            "joint": self.joint_ND[rows],
            "row_label": self.row_label_N[rows],
        }

    def evidence(self, picture_B: np.ndarray, text_B: np.ndarray) -> Batch:
        """Rows, types and mask of pictures and texts, by their places, as the composer takes them."""
        pictures_BD = np.concatenate(halves(self.joint_ND[picture_B], self.vlm_dim), axis=1)
        texts_BD = np.pad(self.text_VD1[text_B], ((0, 0), (0, self.dim - self.vlm_dim)))
        rows_B3D = np.stack([pictures_BD, self.near_ND[picture_B].astype(np.float32), texts_BD], axis=1)
        shape = rows_B3D.shape[:2]
        return {"rows": rows_B3D, "types": np.broadcast_to(TYPES, shape).copy(), "mask": np.ones(shape, bool)}

    def measured(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pictures, texts and target labels of a validation: the same each time, spread over the changes."""
        rng = np.random.default_rng(0)
        chosen = [self.changes[i] for i in rng.permutation(len(self.changes))[:_MEASURED]]
        sources = np.array([one.source for one in chosen])
        pictures = one_of(self.row_label_N, sources, rng.random(len(chosen)))
        texts = np.array([one.texts[0] for one in chosen])
        return pictures, texts, np.array([one.target for one in chosen])


def changes_between(labels: Sequence[str], dictionary: Dictionary, texts: Mapping[str, int]) -> list[Change]:
    """Return the changes from each label to each other, sorted by the source.

    Args:
        labels: their names.
        dictionary: with aspects.
        texts: the place of t, by text.
    """
    named = [values_of(label, dictionary) for label in labels]
    by_rest: dict[tuple, list[tuple[int, str]]] = {}
    for place, values in enumerate(named):
        for aspect in values or ():
            rest = (aspect, *sorted((of, value) for of, value in (values or {}).items() if of != aspect))
            by_rest.setdefault(rest, []).append((place, (values or {})[aspect]))
    said = {(value.aspect, value.name): tuple(texts[text] for text in value.texts) for value in dictionary.values}
    return sorted(
        Change(source, target, said[rest[0], new])
        for rest, of in by_rest.items()
        for source, old in of
        for target, new in of
        if old != new
    )


def values_of(label: str, dictionary: Dictionary) -> dict[str, str] | None:
    """Return the value of each aspect that a label names, by aspect; None if it names none, or two of one aspect."""
    found = [dictionary.values[dictionary.said[word]] for word in dictionary.pattern.findall(label.casefold())]
    values = {value.aspect: value.name for value in found if value.aspect}
    return values if values and len(values) == len(set(found)) else None


def means_of_nearest(joint_ND: np.ndarray, count: int = NEIGHBOURS) -> np.ndarray:
    """Return the mean of the rows nearest to each row, itself among them, float16 (N, D)."""
    rows_ND = joint_ND.astype(np.float32)
    found = np.empty_like(joint_ND)
    for start in range(0, len(rows_ND), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        scores = rows_ND[part] @ rows_ND.T
        near = np.argpartition(-scores, min(count, len(rows_ND)) - 1, axis=1)[:, :count]
        found[part] = rows_ND[near].mean(axis=1)
    return found
