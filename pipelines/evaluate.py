"""How well a gallery is ranked: a Gallery and a QuerySet (and an Aggregator) to exact mAP, on Ray Data.

Every positive's exact rank over the whole gallery is found in two passes over blocks of it
(``retrieval.metrics.count_better``), so neither queries × gallery nor the gallery itself is ever held. Shapes: Q
queries, M = systems × Q rankings, N rows of a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from cluster.progress import ProgressCounter, progress
from pipelines.tables import read_tables
from retrieval.artifacts import (
    Gallery,
    QuerySet,
    Role,
    TrainedAggregator,
    check_disjoint,
    check_same_models,
    matrix,
    text_vectors,
    vision_vectors,
)
from retrieval.fusion import DEFAULT_WEIGHT, fused_query, products
from retrieval.metrics import Interval, average_precision, bootstrap_mean, count_better, paired_bootstrap, precision_at
from retrieval.prompts import KINDS

BLOCK_ELEMENTS = 4_000_000
"""Scores held at once by one task: about 32 MB."""


@dataclass(frozen=True)
class Evaluation:
    """The result: per-query accuracies in a table, and what was left out.

    ``table`` has the columns query, text, kind, label, system, positives, ap (trapezoid), ap_step, precision_at_10.
    """

    table: pa.Table
    weights: dict[str, float]
    """λ of each system."""
    gallery_rows: int
    unlabelled: int
    """Queries without a label, which can not be measured."""
    without_positive: list[str]
    """Labels of queries that no image of the gallery has; these are not measured either."""

    def values(self, system: str, kind: str, column: str = "ap") -> np.ndarray:
        """Return one column for one system and kind of query, in the order of query ids, (Q,) float64."""
        rows = self.table.filter((pa.compute.field("system") == system) & (pa.compute.field("kind") == kind))
        return rows.sort_by("query")[column].to_numpy()

    def mean(self, system: str, kind: str, column: str = "ap") -> Interval:
        """Return mAP (or another mean) with its 95% bootstrap interval over queries."""
        return bootstrap_mean(self.values(system, kind, column))

    def gain(self, system: str, kind: str, over: str = "text") -> Interval:
        """Return the mean paired gain in AP of one system over another, with its 95% interval."""
        return paired_bootstrap(self.values(system, kind), self.values(over, kind))

    @property
    def kinds(self) -> list[str]:
        return sorted(set(self.table["kind"].to_pylist()), key=KINDS.index)

    @property
    def systems(self) -> list[str]:
        return list(dict.fromkeys(self.table["system"].to_pylist()))


def evaluate(
    gallery: Gallery,
    queries: QuerySet,
    *,
    weight: float = DEFAULT_WEIGHT,
    aggregators: Mapping[str, TrainedAggregator] | None = None,
    extra: Mapping[str, float] | None = None,
    images: int | None = None,
) -> Evaluation:
    """Rank the gallery by text alone, mean of the images alone and both, for every labelled query.

    Args:
        weight: λ of the fused ranking.
        aggregators: further systems, by name: pooled by an aggregator and fused at its own λ.
        extra: further fused systems of the mean, by name, each at its own λ.
        images: how many of each query's imagined images are used; by default all.

    Raises:
        ValueError: the artifacts are of different models, λ is out of range, an aggregator learned from a label that
            is measured, or no query can be measured.
    """
    roles: tuple[Role, ...] = ("vlm", "vision")
    check_same_models(gallery, queries, roles)
    table = queries.table(["id", "text", "kind", "label", "vlm", "vision"])
    unlabelled = table["label"].null_count
    table = table.filter(table["label"].is_valid())
    known = _labels(gallery)
    absent = sorted(set(table["label"].to_pylist()) - known)
    table = table.filter(pa.compute.is_in(table["label"], pa.array(sorted(known), pa.string())))
    if not table.num_rows:
        raise ValueError(
            f"no query of {queries.uri} can be measured: {unlabelled} have no label,"
            f" {len(absent)} have a label that no image of {gallery.uri} has ({', '.join(absent[:5])} …)"
        )
    from retrieval.query import pool  # loads PyTorch, which the workers that rank have no use for

    text, (features, mask) = text_vectors(table), vision_vectors(table)
    features, mask = features[:, :images], mask[:, :images]
    mean = pool(features, mask)
    weights = {"text": 0.0, "visual": 1.0, "fused": weight, **(extra or {})}
    systems = {name: fused_query(text, mean, value) for name, value in weights.items()}
    for name, aggregator in (aggregators or {}).items():
        aggregator.check_fits(queries)
        check_disjoint(aggregator.learned_labels, set(table["label"].to_pylist()), queries.uri)
        weights[name] = aggregator.manifest.weight
        systems[name] = fused_query(text, pool(features, mask, aggregator.network()), weights[name])
    joint = np.concatenate(list(systems.values()))
    labels = table["label"].to_pylist() * len(systems)
    ranks = exact_ranks(gallery, joint, labels)
    columns = {name: table[name].to_pylist() * len(systems) for name in ("id", "text", "kind")}
    results = pa.table(
        {
            "query": columns["id"],
            "text": columns["text"],
            "kind": columns["kind"],
            "label": labels,
            "system": [name for name in systems for _ in range(table.num_rows)],
            "positives": [len(hits) for hits in ranks],
            "ap": [average_precision(hits, len(hits)) for hits in ranks],
            "ap_step": [average_precision(hits, len(hits), "step") for hits in ranks],
            "precision_at_10": [precision_at(hits, 10) for hits in ranks],
        }
    )
    return Evaluation(results, weights, gallery.manifest.rows, unlabelled, absent)


def exact_ranks(gallery: Gallery, joint_MD: np.ndarray, labels: list[str]) -> list[np.ndarray]:
    """Return for each of M rankings the sorted exact 0-based ranks of the gallery rows that have its label."""
    rows = max(64, BLOCK_ELEMENTS // len(joint_MD))
    names, label_of_M = np.unique(labels, return_inverse=True)
    shared = ray.put((joint_MD, names, label_of_M))
    blocks = read_tables(gallery.folder, gallery.parts()).select_columns(["id", "label", "vlm", "vision"])
    positives = blocks.map_batches(_positives, fn_kwargs={"shared": shared}, batch_size=rows, batch_format="pyarrow")
    found = pa.concat_tables(_tables(positives)).sort_by([("ranking", "ascending"), ("id", "ascending")])
    bounds = np.searchsorted(found["ranking"].to_numpy(), np.arange(len(joint_MD) + 1))
    ids, scores = found["id"].to_numpy(), found["score"].to_numpy()
    wanted = ray.put(([scores[a:b] for a, b in pairwise(bounds)], [ids[a:b] for a, b in pairwise(bounds)]))
    total = np.zeros(len(ids), np.int64)
    with progress("ranking the gallery", gallery.manifest.rows) as counter:
        arguments = {"shared": shared, "wanted": wanted, "counter": counter}
        counts = blocks.map_batches(_counts, fn_kwargs=arguments, batch_size=rows, batch_format="pyarrow")
        for batch in _tables(counts):
            total += matrix(batch["counts"]).sum(axis=0)
    return [np.sort(total[a:b]) for a, b in pairwise(bounds)]


def _labels(gallery: Gallery) -> set[str]:
    return {
        label
        for table in gallery.tables(["label"])
        for label in table["label"].unique().to_pylist()
        if label is not None
    }


def _tables(dataset: ray.data.Dataset) -> list[pa.Table]:
    return [batch for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow") if batch.num_rows]


def _scores(rows: pa.Table, joint_MD: np.ndarray) -> np.ndarray:
    gallery_ND = np.concatenate([matrix(rows["vlm"]), matrix(rows["vision"])], axis=1)
    return products(joint_MD, gallery_ND).astype(np.float32)


def _positives(rows: pa.Table, shared: Any) -> pa.Table:
    joint_MD, names, label_of_M = ray.get(shared)
    labels = rows["label"].to_numpy(zero_copy_only=False)
    labels = np.where(labels == None, "", labels).astype(str)  # noqa: E711
    place = np.searchsorted(names, labels)
    place = np.where(names[np.minimum(place, len(names) - 1)] == labels, place, -1)
    ranking, row = np.nonzero(label_of_M[:, None] == place[None, :])
    scores = _scores(rows, joint_MD)[ranking, row]
    return pa.table({"ranking": ranking, "id": rows["id"].take(pa.array(row)), "score": scores})


def _counts(rows: pa.Table, shared: Any, wanted: Any, counter: ProgressCounter) -> pa.Table:
    joint_MD, _, _ = ray.get(shared)
    scores, ids = ray.get(wanted)
    counts = np.concatenate(count_better(_scores(rows, joint_MD), rows["id"].to_numpy(), scores, ids))
    counter.add(rows.num_rows)
    return pa.table({"counts": pa.FixedSizeListArray.from_arrays(pa.array(counts), len(counts))})
