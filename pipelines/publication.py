"""The last step of a version: it is published if it finds enough."""

from __future__ import annotations

import time

from cluster.hold import check_held
from cluster.profile import IndexSettings
from cluster.progress import progress
from pipelines.recall import measure_recall
from retrieval.artifacts import Index
from retrieval.artifacts.index import REFUSED
from retrieval.errors import UserError
from retrieval.timing import timed


def publish(index: Index, settings: IndexSettings, started: float, spent: dict[str, float]) -> Index:
    """Measure the recall of a version that is complete but for its manifest, and publish it if that is enough.

    Args:
        started: when the job began, by ``time.monotonic``.
        spent: seconds of its steps, for the summary.

    Raises:
        UserError: recall is below the profile's ``recall_floor`` (``low-recall``).
    """
    with (
        progress("measuring recall against exact search", len(index.manifest.shards)) as counter,
        timed(spent, "recall"),
    ):
        manifest = index.manifest
        manifest.recall, manifest.text_recall = measure_recall(index, settings, counter)
    check_held(index.folder)  # measuring takes its time
    below = [
        f"recall@{depth} {value:.3f}{of} at λ = {weight}"
        for of, recall in (("", manifest.recall), (" of texts", manifest.text_recall or {}))
        for depth, by_weight in recall.items()
        for weight, value in by_weight.items()
        if value < settings.recall_floor
    ]
    if below:
        measured = {"recall": manifest.recall, "text_recall": manifest.text_recall}
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


def worst_recall(index: Index) -> float:
    """Return the lowest recall of a version, over depths and λ, texts included."""
    measured = [index.manifest.recall, index.manifest.text_recall or {}]
    return min(value for recall in measured for by_weight in recall.values() for value in by_weight.values())
