"""The searches that simulated users begin with: those of a query set, or of a file of evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.evidence_file import EvidenceQuery
from pipelines.evidence_vectors import Known
from pipelines.pooling import pooled
from pipelines.rounds import Opening
from pipelines.truth import truths_of
from retrieval.artifacts import QuerySet, TrainedAggregator
from retrieval.artifacts.queryset import text_vectors, vision_vectors
from retrieval.evidence import Encoded


def openings_of_set(query_set: QuerySet, aggregator: TrainedAggregator | None = None) -> list[Opening]:
    """Return an opening for each query: its text, with its images pooled by the aggregator or as their mean."""
    queries = query_set.table(["id", "text", "kind", "label", "vlm", "vision", "relevant", "junk"])
    text_QD1 = text_vectors(queries)
    visual_QD2 = pooled(*vision_vectors(queries), aggregator)
    columns = (queries[name].to_pylist() for name in ("id", "text", "kind"))
    return [
        Opening(id, text, kind, Encoded(np.ones(1), vlm_D1[None], vision_D2[None]), truth)
        for id, text, kind, vlm_D1, vision_D2, truth in zip(
            *columns, text_QD1, visual_QD2, truths_of(queries), strict=True
        )
    ]


def openings_of_evidence(
    queries: Sequence[EvidenceQuery], known: Known, aggregator: TrainedAggregator | None = None
) -> list[Opening]:
    """Return an opening for each query of a file, with what its text becomes in the rounds."""
    network = aggregator.network() if aggregator else None
    return [
        Opening(
            query.id,
            query.text,
            query.kind,
            known.encoded(query, network),
            query.truth,
            [known.of_text(text, network) for text in query.edits],
        )
        for query in queries
    ]
