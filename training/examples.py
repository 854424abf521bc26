"""What the aggregator learns from, in memory, and the batches that are drawn from it.

A batch depends on the seed and its step alone: a run may stop, resume, and change its number of workers, and the order
of data stays the same. Shapes: B queries of a batch, b of them on one worker, K images, C labels, Q queries, N gallery
rows, P positives, D1 and D2 dimensions of the VLM and the vision encoder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, Self

import numpy as np

from retrieval.errors import UserError

Batch = dict[str, np.ndarray]
AHEAD = 2
"""Batches that are drawn before they are asked for."""


class Drawn(Protocol):
    """What a run learns from: batches by step. A worker's share has the label of each of its queries as ``label``."""

    @property
    def labels(self) -> list[str]:
        """Their names."""

    @property
    def dim(self) -> int:
        """Of what the network is given."""

    def draw(self, step: int, *, batch: int, positives: int, seed: int, rank: int = 0, world: int = 1) -> Batch:
        """One worker's share of the batch of a step; every worker gets the gallery rows of the whole batch."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Queries and gallery rows of some labels; both are sorted by label.

    Attributes:
        labels: C names; ``query_label_Q`` and ``row_label_N`` are places in it.
        text_QD1: float32. images_QKD2: float32, zero where ``mask_QK`` says that an image is missing.
        vlm_ND1, vision_ND2: float16, at most ``rows_per_label`` of each label.
    """

    labels: list[str]
    text_QD1: np.ndarray
    images_QKD2: np.ndarray
    mask_QK: np.ndarray
    query_label_Q: np.ndarray
    vlm_ND1: np.ndarray
    vision_ND2: np.ndarray
    row_label_N: np.ndarray

    @property
    def dim(self) -> int:
        """D2."""
        return self.images_QKD2.shape[2]

    def of_labels(self, chosen: list[int], *, rows_of_all: bool = False) -> Self:
        """The part of these labels; with ``rows_of_all`` the gallery rows of the others stay, as label -1."""
        place = np.full(len(self.labels), -1)
        place[chosen] = np.arange(len(chosen))
        queries, rows = place[self.query_label_Q] >= 0, place[self.row_label_N] >= 0
        if rows_of_all:
            rows[:] = True
        query_label, row_label = place[self.query_label_Q][queries], place[self.row_label_N][rows]
        by_label, rows_by_label = np.argsort(query_label, kind="stable"), np.argsort(row_label, kind="stable")
        queries, rows = np.flatnonzero(queries)[by_label], np.flatnonzero(rows)[rows_by_label]
        return type(self)(
            [self.labels[i] for i in chosen],
            self.text_QD1[queries],
            self.images_QKD2[queries],
            self.mask_QK[queries],
            query_label[by_label],
            self.vlm_ND1[rows],
            self.vision_ND2[rows],
            row_label[rows_by_label],
        )

    def draw(self, step: int, *, batch: int, positives: int, seed: int, rank: int = 0, world: int = 1) -> Batch:
        """One worker's share of the batch of a step.

        Labels come in random order, each once before any comes again. A label gives one of its queries, a random
        number (1 to all) of that query's images, and ``positives`` of its gallery rows, drawn with replacement: one
        image is enough, and comes several times. Every worker gets the gallery rows of the whole batch, so that a
        query has the same negatives whatever the number of workers.

        Returns:
            text (b, D1), images (b, K, D2), mask (b, K), label (b,); vlm (B·P, D1), vision (B·P, D2), row_label (B·P,).
        """
        count = len(self.labels)
        at = range(step * batch, (step + 1) * batch)
        orders = {
            epoch: np.random.default_rng([seed, 0, epoch]).permutation(count)
            for epoch in range(at[0] // count, at[-1] // count + 1)
        }
        label_B = np.array([orders[i // count][i % count] for i in at])
        rng = np.random.default_rng([seed, 1, step])
        query_B = one_of(self.query_label_Q, label_B, rng.random(batch))
        row_BP = one_of(self.row_label_N, label_B[:, None], rng.random((batch, positives)))
        keys_BK = np.where(self.mask_QK[query_B], rng.random((batch, self.mask_QK.shape[1])), np.inf)
        kept_B = 1 + np.floor(rng.random(batch) * self.mask_QK[query_B].sum(axis=1))
        mask_BK = keys_BK.argsort(axis=1).argsort(axis=1) < kept_B[:, None]
        mine, rows = slice(rank, None, world), row_BP.ravel()
        return {
            "text": self.text_QD1[query_B[mine]],
            "images": self.images_QKD2[query_B[mine]],
            "mask": mask_BK[mine],
            "label": label_B[mine],
            "vlm": self.vlm_ND1[rows],
            "vision": self.vision_ND2[rows],
            "row_label": self.row_label_N[rows],
        }


def one_of(sorted_labels: np.ndarray, wanted: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """For each wanted label a place where it stands in ``sorted_labels``, chosen by a number in [0, 1)."""
    first, last = np.searchsorted(sorted_labels, wanted), np.searchsorted(sorted_labels, wanted, side="right")
    return first + np.floor(chance * (last - first)).astype(np.int64)


def stream(examples: Drawn, steps: range, **drawing: int) -> Iterator[Batch]:
    """Yield the batches of ``steps`` in order; a thread draws the next ones while one is learned from.

    Args:
        drawing: see ``Examples.draw``.
    """
    with ThreadPoolExecutor(1, "draw") as pool:
        coming = (pool.submit(examples.draw, step, **drawing) for step in steps)
        drawn = deque(islice(coming, AHEAD))
        while drawn:
            batch = drawn.popleft().result()
            drawn.extend(islice(coming, 1))
            yield batch


def split_labels(count: int, holdout: float, seed: int) -> tuple[list[int], list[int]]:
    """Places of the labels to train on and of those held out to validate on.

    Raises:
        UserError: fewer than three labels, of which two must be distinguished and one be held out.
    """
    if count < 3:
        raise UserError(
            f"{count} label{'s' if count != 1 else ''} with queries and images: training needs at least three, two to"
            " distinguish and one to validate on; add queries or gallery images of other labels",
            code="too-few-labels",
            field="label",
        )
    held = min(max(1, round(holdout * count)), count - 2)
    order = np.random.default_rng([seed, 2]).permutation(count)
    return sorted(order[held:].tolist()), sorted(order[:held].tolist())
