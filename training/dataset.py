"""What the aggregator learns from: a QuerySet and a labelled Gallery, joined by label, as a stream of batches.

The gallery is read once, in blocks, and a bounded random sample of each label is kept, so memory grows with the
number of labels and not with the gallery. Batches are drawn from that by Ray Data tasks. A batch depends on the seed
and its step alone: a run may stop, go on, and change its number of workers, and the order of data stays the same.
Shapes: B queries of a batch, b of them on one worker, K images, C labels, Q queries, N gallery rows, P positives,
D1 and D2 dimensions of the VLM and the vision encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import ray

from cluster.progress import ProgressCounter, progress
from retrieval.artifacts import (
    Gallery,
    QuerySet,
    check_same_models,
    gallery_schema,
    matrix,
    text_vectors,
    vision_vectors,
)
from retrieval.folder import Folder

Batch = dict[str, np.ndarray]


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
        query_B = _one_of(self.query_label_Q, label_B, rng.random(batch))
        row_BP = _one_of(self.row_label_N, label_B[:, None], rng.random((batch, positives)))
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


def _one_of(sorted_labels: np.ndarray, wanted: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """For each wanted label a place where it stands in ``sorted_labels``, chosen by a number in [0, 1)."""
    first, last = np.searchsorted(sorted_labels, wanted), np.searchsorted(sorted_labels, wanted, side="right")
    return first + np.floor(chance * (last - first)).astype(np.int64)


@dataclass(frozen=True)
class LeftOut:
    """What can not be learned from, and is left out: the rules for incomplete data."""

    unlabelled: int
    """Queries without a label."""
    without_images: int
    """Queries of which no imagined image was accepted."""
    without_rows: list[str]
    """Labels of queries that no gallery image has."""


def load_examples(gallery: Gallery, queries: QuerySet, *, rows_per_label: int, seed: int) -> tuple[Examples, LeftOut]:
    """Join a query set and a gallery by label.

    Raises:
        ValueError: they are of different models or dimensions, or nothing is left to learn from.
    """
    check_same_models(gallery, queries, ("vlm", "vision"))
    if not queries.manifest.queries:
        raise ValueError(f"the query set {queries.uri} is empty; there is nothing to learn from")
    table = queries.table(["id", "label", "vlm", "vision"])
    unlabelled = table["label"].null_count
    table = table.filter(table["label"].is_valid())
    _, mask = vision_vectors(table)
    without_images = int((~mask.any(axis=1)).sum())
    table = table.filter(pa.array(mask.any(axis=1)))
    rows = sample_rows(gallery, set(table["label"].to_pylist()), rows_per_label, seed)
    known = set(rows["label"].to_pylist())
    absent = sorted(set(table["label"].to_pylist()) - known)
    left_out = LeftOut(unlabelled, without_images, absent)
    table = table.filter(pa.compute.is_in(table["label"], pa.array(sorted(known), pa.string()))).sort_by("label")
    if not table.num_rows:
        raise ValueError(
            f"nothing to learn from: of the queries of {queries.uri}, {unlabelled} have no label, {without_images} no"
            f" accepted image, and {len(absent)} labels have no image in {gallery.uri} ({', '.join(absent[:5])})"
        )
    labels = sorted(known)
    images, mask = vision_vectors(table)
    examples = Examples(
        labels,
        text_vectors(table),
        images,
        mask,
        np.searchsorted(labels, table["label"].to_pylist()),
        matrix(rows["vlm"]),
        matrix(rows["vision"]),
        np.searchsorted(labels, rows["label"].to_pylist()),
    )
    for what, ours, theirs in (
        ("vlm", examples.text_QD1, examples.vlm_ND1),
        ("vision", examples.images_QKD2, examples.vision_ND2),
    ):
        if ours.shape[-1] != theirs.shape[-1]:
            raise ValueError(
                f"the {what} vectors of {queries.uri} have {ours.shape[-1]} dimensions,"
                f" those of {gallery.uri} have {theirs.shape[-1]}; make one of them again"
            )
    return examples, left_out


def sample_rows(gallery: Gallery, labels: set[str], per_label: int, seed: int) -> pa.Table:
    """Draw at most ``per_label`` random rows (label, vlm, vision) of each label, sorted by label.

    The sample is the rows whose ids have the smallest hashes, so it does not depend on how the gallery is cut. Ids are
    chosen first and their vectors fetched after that: no other vector leaves the task that reads it.

    Raises:
        ValueError: two rows of the gallery have one id.
    """
    with progress("sampling the gallery", gallery.manifest.rows) as counter:
        arguments = {"labels": pa.array(sorted(labels), pa.string()), "per_label": per_label, "seed": seed}
        sampled = _parts(gallery).map_batches(
            _sample, fn_args=[gallery.folder], fn_kwargs=arguments | {"counter": counter}, batch_format="pyarrow"
        )
        chosen = _SAMPLE.empty_table()
        for block in sampled.iter_batches(batch_size=None, batch_format="pyarrow"):
            chosen = _smallest(pa.concat_tables([chosen, block.cast(_SAMPLE)]), per_label)
        if not chosen.num_rows:
            return gallery_schema(0, 0).empty_table().select(["label", "vlm", "vision"])
        # In a list, so that each task maps the ids instead of being sent a copy.
        ids = [ray.put(chosen["id"].combine_chunks())]
        fetched = _parts(gallery).map_batches(_fetch, fn_args=[gallery.folder, ids], batch_format="pyarrow")
        found = [block for block in fetched.iter_batches(batch_size=None, batch_format="pyarrow") if block.num_rows]
    rows = pa.concat_tables(found).sort_by("id")
    chosen = chosen.sort_by("id")
    if rows["id"].combine_chunks() != chosen["id"].combine_chunks():
        raise ValueError(
            f"the gallery {gallery.uri} has rows of the same id; embed it again from a source without copies"
        )
    rows = rows.append_column("label", chosen["label"]).append_column("order", chosen["order"])
    rows = rows.sort_by([("label", "ascending"), ("order", "ascending")])
    return rows.select(["label", "vlm", "vision"]).combine_chunks()


_ROWS_AT_ONCE = 4096
_SAMPLE = pa.schema([("id", pa.string()), ("label", pa.string()), ("order", pa.string())])


def _parts(gallery: Gallery) -> ray.data.Dataset:
    """Names of the gallery's parts, for tasks that read them some thousand rows at a time: Ray Data's own reading of
    Parquet holds blocks of whole files.
    """
    return ray.data.from_items([{"part": name} for name in gallery.parts()])


def _sample(
    parts: pa.Table, folder: Folder, labels: pa.Array, per_label: int, seed: int, counter: ProgressCounter
) -> Iterator[pa.Table]:
    key = f"{seed}".encode()
    for part in parts["part"].to_pylist():
        kept = _SAMPLE.empty_table()
        for rows in folder.tables(part, rows=_ROWS_AT_ONCE, columns=["id", "label"]):
            counter.add(rows.num_rows)
            rows = rows.filter(pa.compute.is_in(rows["label"], labels))
            order = [hashlib.blake2b(i.encode(), digest_size=8, key=key).hexdigest() for i in rows["id"].to_pylist()]
            rows = rows.append_column("order", pa.array(order, pa.string())).cast(_SAMPLE)
            kept = _smallest(pa.concat_tables([kept, rows]), per_label)
        yield kept


def _fetch(parts: pa.Table, folder: Folder, ids: list[ray.ObjectRef]) -> Iterator[pa.Table]:
    wanted = ray.get(ids[0])
    for part in parts["part"].to_pylist():
        for rows in folder.tables(part, rows=_ROWS_AT_ONCE, columns=["id", "vlm", "vision"]):
            yield rows.filter(pa.compute.is_in(rows["id"], wanted))


def _smallest(rows: pa.Table, per_label: int) -> pa.Table:
    """The rows with the smallest ``order`` of each label, sorted by label and order."""
    rows = rows.sort_by([("label", "ascending"), ("order", "ascending")])
    labels = rows["label"].to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]]) if len(labels) else np.array([], np.int64)
    place = np.arange(len(labels)) - np.repeat(starts, np.diff(np.r_[starts, len(labels)]))
    return rows.filter(pa.array(place < per_label))


def split_labels(count: int, holdout: float, seed: int) -> tuple[list[int], list[int]]:
    """Places of the labels to train on and of those held out to validate on.

    Raises:
        ValueError: fewer than three labels, of which two must be told apart and one be held out.
    """
    if count < 3:
        raise ValueError(
            f"{count} label{'s' if count != 1 else ''} with queries and images: training needs at least three, two to"
            " tell apart and one to validate on; add queries or gallery images of other labels"
        )
    held = min(max(1, round(holdout * count)), count - 2)
    order = np.random.default_rng([seed, 2]).permutation(count)
    return sorted(order[held:].tolist()), sorted(order[:held].tolist())


def stream(examples: ray.ObjectRef, steps: range, drawing: dict[str, int]) -> Iterator[Batch]:
    """The batches of ``steps``, drawn by Ray Data tasks a few steps ahead, in order. ``drawing``: see Examples.draw."""
    if not len(steps):
        return
    dataset = ray.data.range(len(steps), override_num_blocks=min(len(steps), max(64, len(steps) // 8))).map_batches(
        _Draw(examples, steps.start, drawing), batch_size=1, zero_copy_batch=True
    )
    dataset.context.execution_options.preserve_order = True
    for rows in dataset.iter_batches(batch_size=1, prefetch_batches=2):
        yield {name: values[0] for name, values in rows.items()}


class _Draw:
    def __init__(self, examples: ray.ObjectRef, start: int, drawing: dict[str, int]) -> None:
        # In a list, so that the task is given the reference and maps the arrays, instead of a copy of them.
        self.examples, self.start, self.drawing = [examples], start, drawing

    def __call__(self, rows: Batch) -> Batch:
        examples: Examples = ray.get(self.examples[0])
        drawn = examples.draw(self.start + int(rows["id"][0]), **self.drawing)
        return {name: values[None] for name, values in drawn.items()}
