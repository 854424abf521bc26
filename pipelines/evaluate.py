"""How well a gallery is ranked: a Gallery, a QuerySet and perhaps Aggregators to exact accuracies per query.

Shapes: Q queries, K images, D1 VLM dimensions, D2 vision dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.evidence_file import EvidenceQuery
from pipelines.evidence_vectors import Known
from pipelines.pooling import pooled
from pipelines.ranking import exact_measures
from pipelines.truth import LeftOut, Measurable, measurable, measurable_among
from retrieval.artifacts import Gallery, QuerySet, TrainedAggregator
from retrieval.artifacts.compatibility import check_disjoint, check_same_models
from retrieval.artifacts.queryset import text_vectors, vision_vectors
from retrieval.errors import UserError
from retrieval.evidence import compiled
from retrieval.fusion import DEFAULT_WEIGHT, fused_query
from retrieval.metrics import MEASURES, Interval, bootstrap_mean, paired_bootstrap
from retrieval.prompts import KINDS

if TYPE_CHECKING:  # it loads torch, which a driver should not
    from retrieval.aggregator import Aggregator


@dataclass(frozen=True)
class Evaluation:
    """Accuracies per query and system, and what was not measured.

    A system is one way to rank: ``text`` (λ = 0), ``visual`` (λ = 1, the mean of the images), ``fused`` (the same mean
    at a chosen λ), and those that the caller named.

    Attributes:
        table: one row per query and system: query, text, kind, label, system, positives, and each of
            ``retrieval.metrics.MEASURES``.
        weights: λ of each system.
        gallery_rows: images that were ranked.
        left_out: queries that were not measured, and relevant and junk rows that the gallery lacks.
    """

    table: pa.Table
    weights: dict[str, float]
    gallery_rows: int
    left_out: LeftOut

    def values(self, system: str, kind: str, column: str = "ap") -> np.ndarray:
        """Return one column for one system and kind of query, in the order of query ids, (Q,) float64."""
        rows = self.table.filter((pc.field("system") == system) & (pc.field("kind") == kind))
        return rows.sort_by("query")[column].to_numpy()

    def mean(self, system: str, kind: str, column: str = "ap") -> Interval:
        """Return mAP (or the mean of another column) with its 95% bootstrap interval over queries."""
        return bootstrap_mean(self.values(system, kind, column))

    def gain(self, system: str, kind: str, over: str = "text") -> Interval:
        """Return the mean paired gain in AP of one system over another, with its 95% bootstrap interval."""
        return paired_bootstrap(self.values(system, kind), self.values(over, kind))

    @property
    def kinds(self) -> list[str]:
        """The kinds of query that were measured, in the order of ``KINDS``, and any others after these."""
        order: list[str] = [*KINDS, *sorted(set(self.table["kind"].to_pylist()) - set(KINDS))]
        return sorted(set(self.table["kind"].to_pylist()), key=order.index)

    @property
    def systems(self) -> list[str]:
        """The systems in the order in which they were ranked."""
        return list(dict.fromkeys(self.table["system"].to_pylist()))


def evaluate(
    gallery: Gallery,
    query_set: QuerySet,
    *,
    weight: float = DEFAULT_WEIGHT,
    aggregators: Mapping[str, TrainedAggregator] | None = None,
    extra: Mapping[str, float] | None = None,
    images: int | None = None,
) -> Evaluation:
    """Rank a gallery by text alone, by the mean of the images alone and by both, for every query that can be
    measured.

    Args:
        gallery: images, with labels where queries are measured by their labels.
        query_set: queries with labels or relevant rows (``pipelines.truth``), of the same models.
        weight: λ of the fused ranking.
        aggregators: further systems, by name: images pooled by an aggregator, fused at its own λ.
        extra: further systems, by name: the mean of the images, fused at this λ.
        images: how many of each query's imagined images are used; by default all.

    Returns:
        The accuracies of each query under each system.

    Raises:
        UserError: the artifacts are of different models, λ or ``images`` is out of range, an aggregator learned from a
            label that is measured, or no query can be measured (``nothing-to-measure``).
    """
    if images is not None and images < 1:
        message = f"at least one image of each query must be used, not {images}"
        raise UserError(message, code="out-of-range", field="images")
    check_same_models(gallery, query_set, ("vlm", "vision"))
    found = measurable(gallery, query_set)
    queries = found.queries

    text_QD1, (features_QKD2, mask_QK) = text_vectors(queries), vision_vectors(queries)
    features_QKD2, mask_QK = features_QKD2[:, :images], mask_QK[:, :images]
    mean_QD2 = pooled(features_QKD2, mask_QK)
    weights = {"text": 0.0, "visual": 1.0, "fused": weight, **(extra or {})}
    joint = {system: fused_query(text_QD1, mean_QD2, value) for system, value in weights.items()}
    for system, aggregator in (aggregators or {}).items():
        aggregator.check_fits(query_set)
        check_disjoint(aggregator.learned_labels, set(queries["label"].drop_null().to_pylist()), query_set.uri)
        weights[system] = aggregator.manifest.weight
        visual_QD2 = pooled(features_QKD2, mask_QK, aggregator)
        joint[system] = fused_query(text_QD1, visual_QD2, weights[system])

    return _ranked(gallery, found, weights, joint)


def evaluate_evidence(
    gallery: Gallery,
    queries: Sequence[EvidenceQuery],
    known: Known,
    *,
    weight: float = DEFAULT_WEIGHT,
    aggregators: Mapping[str, TrainedAggregator] | None = None,
) -> Evaluation:
    """Rank a gallery by queries made of evidence, with the same systems as ``evaluate``.

    Where no piece that is for something has a visual half, each system ranks by the text half, as a search does.

    Args:
        gallery: the gallery.
        queries: of one file.
        known: their vectors.
        weight: λ of the fused ranking.
        aggregators: further systems, by name: images of texts pooled by an aggregator, fused at its own λ.

    Raises:
        UserError: λ is out of range, no query can be measured (``nothing-to-measure``), or the pieces of one cancel
            each other out (``no-direction``), which is named.
    """
    by_id = {query.id: query for query in queries}
    table = pa.table(
        {
            "id": list(by_id),
            "text": [query.text for query in queries],
            "kind": [query.kind for query in queries],
            "label": pa.nulls(len(by_id), pa.string()),
        }
    )
    truths = [query.truth for query in queries]
    found = measurable_among(gallery, table, truths, queries[0].where.rpartition(", line ")[0])
    measured = [by_id[id] for id in found.queries["id"].to_pylist()]
    weights = {"text": 0.0, "visual": 1.0, "fused": weight}
    joint = {system: _compiled(measured, known, value) for system, value in weights.items()}
    for system, aggregator in (aggregators or {}).items():
        weights[system] = aggregator.manifest.weight
        joint[system] = _compiled(measured, known, weights[system], aggregator.network())
    return _ranked(gallery, found, weights, joint)


def _compiled(
    queries: Sequence[EvidenceQuery], known: Known, weight: float, network: Aggregator | None = None
) -> np.ndarray:
    joint = []
    for query in queries:
        try:
            joint.append(compiled(known.encoded(query, network), weight)[0])
        except UserError as error:
            raise UserError(f"{query.where}: {error}", code=error.code, field=error.field) from error
    return np.concatenate(joint)


def _ranked(
    gallery: Gallery, found: Measurable, weights: dict[str, float], joint: Mapping[str, np.ndarray]
) -> Evaluation:
    """Measure joint queries (Q, D) of each system."""
    queries, systems = found.queries, list(joint)
    joint_MD, positives = np.concatenate(list(joint.values())), found.positives * len(systems)
    of_rankings = found.of_queries * len(systems)
    measured = np.zeros((len(positives), len(MEASURES)))
    for m, values in exact_measures(gallery, joint_MD, found.truths, of_rankings, found.rows, positives, all_measures):
        measured[m] = values
    columns = {name: queries[name].to_pylist() * len(systems) for name in ("id", "text", "kind", "label")}
    table = pa.table(
        {
            "query": columns["id"],
            "text": columns["text"],
            "kind": columns["kind"],
            "label": pa.array(columns["label"], pa.string()),
            "system": [system for system in systems for _ in range(queries.num_rows)],
            "positives": pa.array(positives, pa.int64()),
            **dict(zip(MEASURES, measured.T.copy(), strict=True)),
        }
    )
    return Evaluation(table, weights, gallery.manifest.rows, found.left_out)


def all_measures(ranks: np.ndarray, positives: int) -> list[float]:
    """Return each of ``MEASURES`` of a ranking."""
    return [measure(ranks, positives) for measure in MEASURES.values()]
