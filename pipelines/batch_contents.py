"""What a batch of a gallery holds once it is embedded, and the summary of the run that embedded it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel

from retrieval.artifacts import Gallery
from retrieval.artifacts.manifests import BatchRecord, PartRecord
from retrieval.folder import Folder

SUMMARY = "summary.json"


class Summary(BaseModel):
    """What one run of the embedding job did. Seconds of its parts are summed over workers."""

    read: int
    embedded: int
    rejected: dict[str, int]
    duplicates: int
    """Rows whose bytes another row of the batch has as well."""
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
        for name, rows in zip(names, _rows(batch, names), strict=True)
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
    """Return how many rows have bytes that a row before has: 16 bytes of memory a row."""
    contents = []
    for part in parts:
        ids = folder.read_table(part.name, ["id"])["id"].to_pylist()
        contents.append(np.fromiter((int(id.split("-")[0], 16) for id in ids), np.uint64, len(ids)))
    every = np.concatenate(contents)
    return len(every) - len(np.unique(every))


def _rows(folder: Folder, files: Sequence[str]) -> list[int]:
    def rows(name: str) -> int:
        with folder.open_input(name) as file:
            return pq.ParquetFile(file).metadata.num_rows

    with ThreadPoolExecutor(16) as pool:  # on an object store, what costs time is waiting
        return list(pool.map(rows, files))
