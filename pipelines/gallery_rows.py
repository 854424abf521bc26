"""Rows of a gallery by what is known of them: their vectors by their ids, their ids by their labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.executor import Shared
from pipelines.running import current_executor
from retrieval.artifacts import Gallery
from retrieval.artifacts.columns import matrix
from retrieval.folder import Folder

_TASKS = 64


def vectors_of(gallery: Gallery, ids: Collection[str]) -> dict[str, np.ndarray]:
    """Return [c ; d] of rows, float16 (D,), by their ids; ids that the gallery lacks are missing."""
    if not ids:
        return {}
    executor = current_executor()
    wanted = executor.share(pa.array(sorted(set(ids)), pa.string()))
    found: dict[str, np.ndarray] = {}
    for some in executor.as_completed(_vectors, [(gallery.folder, parts, wanted) for parts in _runs(gallery)]):
        found |= some
    return found


def ids_of_labels(gallery: Gallery, labels: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the ids of the rows of each label, sorted; labels that the gallery lacks are missing."""
    wanted, found = pa.array(sorted(set(labels)), pa.string()), defaultdict(list)
    for table in gallery.tables(["id", "label"]) if len(wanted) else ():
        rows = table.filter(pc.is_in(table["label"], wanted))
        for id, label in zip(rows["id"].to_pylist(), rows["label"].to_pylist(), strict=True):
            found[label].append(id)
    return {label: tuple(sorted(ids)) for label, ids in found.items()}


def _runs(gallery: Gallery) -> Iterator[list[str]]:
    parts = gallery.parts()
    count = min(len(parts), _TASKS)
    return (parts[len(parts) * i // count : len(parts) * (i + 1) // count] for i in range(count))


def _vectors(folder: Folder, parts: list[str], shared: Shared[pa.Array]) -> dict[str, np.ndarray]:
    wanted = shared.get()
    found: dict[str, np.ndarray] = {}
    for part in parts:
        known = folder.read_table(part, ["id"])["id"]
        if not pc.any(pc.is_in(known, wanted)).as_py():
            continue
        for table in folder.tables(part, ["id", "vlm", "vision"], rows=8192):
            rows = table.filter(pc.is_in(table["id"], wanted))
            joint_ND = np.concatenate([matrix(rows["vlm"]), matrix(rows["vision"])], axis=1)
            found |= dict(zip(rows["id"].to_pylist(), joint_ND, strict=True))
    return found
