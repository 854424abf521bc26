"""The last step of a version: it is published if it finds enough."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from cluster.hold import check_held
from cluster.profile import IndexSettings
from cluster.progress import progress
from pipelines.recall import measure_recall
from retrieval.artifacts import Index
from retrieval.artifacts.index import REFUSED
from retrieval.artifacts.manifests import Recall, RecallRecord
from retrieval.errors import UserError
from retrieval.timing import timed

ALLOWANCE = 0.03
"""How far below the floor queries of evidence may be found: so few are asked that their mean strays by as much."""


def publish(index: Index, settings: IndexSettings, started: float, spent: dict[str, float]) -> Index:
    """Measure the recall of those shards of a version that no version before has measured, and publish it, complete but
    for its manifest, if the recall of all of them is enough. Why it may be put together so is in docs/indexing.md.

    Args:
        started: when the job began, by ``time.monotonic``.
        spent: seconds of its steps, for the summary.

    Raises:
        UserError: recall is below the profile's ``recall_floor`` (``low-recall``).
    """
    manifest = index.manifest
    if new := range(sum(record.shards for record in manifest.measured), len(manifest.shards)):
        with progress("measuring recall against exact search", len(new)) as counter, timed(spent, "recall"):
            of_new = measure_recall(index, new, settings, counter)
        rows = sum(manifest.shards[number].rows for number in new)
        record = RecallRecord(version=index.version, shards=len(new), rows=rows, **of_new._asdict())
        manifest.measured = [*manifest.measured, record]
    found = [record for record, lost in zip(manifest.measured, lost_shares(index), strict=True) if lost < 1]
    manifest.recall = _least([record.recall for record in found])
    manifest.text_recall = _least([of for record in found if (of := record.text_recall)]) or None
    by_kind = [of_kinds for record in found if (of_kinds := record.evidence_recall)]
    kinds = dict.fromkeys(kind for of_kinds in by_kind for kind in of_kinds)
    of_all = {kind: _least([of_kinds[kind] for of_kinds in by_kind if kind in of_kinds]) for kind in kinds}
    manifest.evidence_recall = of_all or None
    check_held(index.folder)  # measuring takes its time
    below = [
        f"recall@{depth} {value:.3f}{of} at λ = {weight}"
        for of, recall in _measured(index).items()
        for depth, by_weight in recall.items()
        for weight, value in by_weight.items()
        if value < settings.recall_floor - (ALLOWANCE if of in _of_evidence(index) else 0)
    ]
    if below:
        measured = manifest.model_dump(include={"recall", "text_recall", "evidence_recall"})
        content = measured | {"floor": settings.recall_floor, "factory": index.manifest.factory}
        index.folder.write_json(REFUSED, content)
        raise UserError(
            f"version {index.version} of {index.root.uri} is not published: it finds too little ({', '.join(below)};"
            f" the profile's recall_floor is {settings.recall_floor}). Give a kind of index that keeps more of each"
            f" vector than {index.manifest.factory} (mindseye index or compact with --factory, or a larger"
            " memory_per_shard), or lower the floor",
            code="low-recall",
            field="index.recall_floor",
        )
    seconds = {what: round(took, 2) for what, took in sorted(spent.items())}
    index.folder.write_json("summary.json", {"seconds": round(time.monotonic() - started, 1), "spent": seconds})
    return Index.publish(index.folder, index.manifest)


def measured_before(index: Index) -> list[RecallRecord]:
    """Return what was measured of the shards of a published version, for one that shares them all."""
    manifest = index.manifest
    whole = RecallRecord(
        version=index.version,
        shards=len(manifest.shards),
        rows=manifest.rows,
        recall=manifest.recall,
        text_recall=manifest.text_recall,
        evidence_recall=manifest.evidence_recall,
    )
    return manifest.measured or [whole]


def lost_shares(index: Index) -> list[float]:
    """Return which share of the rows, of each group of shards that were measured together, has been removed since."""
    manifest = index.manifest
    removed = np.bincount(index.removed()["shard"].to_numpy(), minlength=len(manifest.shards))
    left = [record.rows - count for record, count in zip(manifest.shards, removed.tolist(), strict=True)]
    ends = np.cumsum([record.shards for record in manifest.measured]).tolist()
    return [1 - sum(left[end - of.shards : end]) / of.rows for of, end in zip(manifest.measured, ends, strict=True)]


def _least(recalls: Sequence[Recall]) -> Recall:
    """At each depth and λ, the least that was measured."""
    least: Recall = {}
    for recall in recalls:
        for depth, by_weight in recall.items():
            known = least.setdefault(depth, {})
            known.update({weight: min(value, known.get(weight, value)) for weight, value in by_weight.items()})
    return least


def worst_recall(index: Index) -> float:
    """Return the lowest recall of a version, over depths and λ, of every kind of query."""
    return min(value for of in _measured(index).values() for by_weight in of.values() for value in by_weight.values())


def _measured(index: Index) -> dict[str, Recall]:
    """What was measured of a version, by the words that a message has for the queries."""
    manifest = index.manifest
    return {"": manifest.recall, " of texts": manifest.text_recall or {}} | _of_evidence(index)


def _of_evidence(index: Index) -> dict[str, Recall]:
    return {f" of {kind} queries": recall for kind, recall in (index.manifest.evidence_recall or {}).items()}
