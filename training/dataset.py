"""A QuerySet and a labelled Gallery, joined by label: what the aggregator learns from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.artifacts import Gallery, QuerySet
from retrieval.artifacts.columns import matrix
from retrieval.artifacts.compatibility import check_same_models
from retrieval.artifacts.queryset import text_vectors, vision_vectors
from retrieval.errors import UserError
from training.examples import Examples
from training.sampling import sample_rows


@dataclass(frozen=True)
class LeftOut:
    """What cannot be learned from, and is left out: the rules for incomplete data."""

    unlabelled: int
    """Queries without a label."""
    without_images: int
    """Queries of which no imagined image was accepted."""
    without_rows: list[str]
    """Labels of queries that no gallery image has."""


def load_examples(gallery: Gallery, queries: QuerySet, *, rows_per_label: int, seed: int) -> tuple[Examples, LeftOut]:
    """Join a query set and a gallery by label.

    Raises:
        UserError: they are of different models or dimensions, or nothing is left to learn from.
    """
    check_same_models(gallery, queries, ("vlm", "vision"))
    if not queries.manifest.queries:
        raise UserError(
            f"the query set {queries.uri} is empty; there is nothing to learn from",
            code="no-queries",
            field="query_set",
        )
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
    table = table.filter(pc.is_in(table["label"], pa.array(sorted(known), pa.string()))).sort_by("label")
    if not table.num_rows:
        raise UserError(
            f"nothing to learn from: of the queries of {queries.uri}, {unlabelled} have no label, {without_images} no"
            f" accepted image, and {len(absent)} labels have no image in {gallery.uri} ({', '.join(absent[:5])}); use a"
            " gallery and a query set of the same labels",
            code="nothing-to-learn",
            field="query_set",
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
            raise UserError(
                f"the {what} vectors of {queries.uri} have {ours.shape[-1]} dimensions,"
                f" those of {gallery.uri} have {theirs.shape[-1]}; make one of them again",
                code="dimensions-differ",
                field=what,
            )
    return examples, left_out
