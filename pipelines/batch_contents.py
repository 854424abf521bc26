"""What a batch of a gallery holds once it is embedded, and the summary of the run that embedded it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel

from pipelines.hash_ranges import RUN_ROWS, content_hashes, count_distinct
from pipelines.running import current_executor
from retrieval.artifacts import Gallery
from retrieval.artifacts.manifests import BatchRecord, PartRecord
from retrieval.folder import Folder

SUMMARY = "summary.json"


class Summary(BaseModel):
    """What one run of the embedding job did. Seconds of its parts are summed over workers."""

    read: int
    embedded: int
    rejected: dict[str, int]
    duplicates: int | None
    """Rows whose bytes another row of the batch has as well; None where counting them failed."""
    already_there: int
    """Inputs that an earlier, interrupted run of the same job had dealt with."""
    unchanged: int
    """Inputs that were left out, since the gallery has them."""
    seconds: float
    rows_per_s: float
    spent: dict[str, float]


def summary_of(gallery: Gallery, batch: BatchRecord) -> Summary:
    """Return what the run did that made a batch."""
    return Summary.model_validate(gallery.folder.read_json(f"{Gallery.batch(batch.name)}/{SUMMARY}"))


class Contents(NamedTuple):
    """What a batch has written."""

    parts: list[PartRecord]
    rejected: dict[str, int]
    """Rejected inputs by reason."""

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)


def contents(batch: Folder) -> Contents:
    """Return what a batch has written."""
    names = batch.files("parts", Gallery.EMBEDDED)
    rejected: Counter[str] = Counter()
    for name in batch.files("parts", Gallery.REJECTED):
        rejected.update(batch.read_table(name, ["reason"])["reason"].to_pylist())
    parts = [
        PartRecord(name=f"{Gallery.batch(batch.name)}/{name}", rows=rows)
        for name, rows in zip(names, batch.count_rows(names), strict=True)
    ]
    return Contents(parts, dict(rejected))


def unreadable(batch: Folder) -> list[str]:
    """Return the paths of inputs that could not be read."""
    return [
        path
        for name in batch.files("parts", Gallery.REJECTED)
        for path, reason in zip(*batch.read_table(name, ["path", "reason"]).to_pydict().values(), strict=True)
        if reason == "unreadable"
    ]


def rejection_examples(batch: Folder, count: int) -> list[str]:
    """Return paths of the first rejected inputs, each with what is wrong with it."""
    examples: list[str] = []
    for name in batch.files("parts", Gallery.REJECTED):
        for row in batch.read_table(name).slice(0, count - len(examples)).to_pylist():
            examples.append(f"{row['path']}: {row['detail']}")
    return examples


def duplicates_in(folder: Folder, parts: Sequence[PartRecord]) -> int:
    """Return how many rows have bytes that another row before has."""
    rows = sum(part.rows for part in parts)
    count = min(math.ceil(rows / RUN_ROWS), len(parts))
    runs = current_executor().map_shared(_hashes_of_parts, [(folder, parts[i::count]) for i in range(count)])
    return rows - count_distinct(runs, rows)


def _hashes_of_parts(folder: Folder, parts: Sequence[PartRecord]) -> np.ndarray:
    tables = (table for part in parts for table in folder.tables(part.name, ["id"]))
    return np.sort(np.concatenate([content_hashes(table["id"]) for table in tables]))
