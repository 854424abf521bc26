"""Quantisers of an index: trained once, on a sample of the gallery, and shared by all shards."""

from __future__ import annotations

import math
import tempfile
import zlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.profile import IndexSettings
from cluster.progress import ProgressCounter, progress
from pipelines.executor import Shared
from pipelines.faiss_threads import faiss_threads
from pipelines.running import current_executor
from retrieval.artifacts import Gallery
from retrieval.artifacts.columns import matrix
from retrieval.artifacts.manifests import PartRecord
from retrieval.folder import Folder
from retrieval.index.train import save_trained, train, training_rows
from retrieval.timing import timed

TRAINED = "trained.faiss"
_ROWS_PER_RUN = 131_072
"""What one task reads, in less time than a worker takes to start."""
_BLOCK = 4096
"""Rows of the sample that are brought to their places at once."""


def train_quantisers(
    version: Folder,
    gallery: Gallery,
    parts: Sequence[PartRecord],
    factory: str,
    settings: IndexSettings,
    spent: dict[str, float],
) -> Folder | None:
    """Train the empty index that all shards are copies of, on a sample of the rows; None for kinds without training.

    Args:
        spent: is given the seconds of ``sample``, ``sort`` and ``train``.

    Returns:
        The folder that holds it as ``TRAINED``.
    """
    wanted = training_rows(factory)
    if not wanted:
        return None
    if version.exists(TRAINED):
        return version
    rows, executor = sum(part.rows for part in parts), current_executor()
    with progress("sampling rows to train the index on", min(wanted, rows)) as counter, timed(spent, "sample"):
        count, shared = min(len(parts), math.ceil(rows / _ROWS_PER_RUN)), executor.share(gallery)
        runs = [(shared, parts[i::count], wanted / rows, counter) for i in range(count)]
        sample = executor.map_shared(_sampled, runs)
    with progress("training the index", min(wanted, rows)) as counter:
        # The node with the most CPUs may be one without GPUs.
        place = settings if settings.gpus else executor.shared_among(1, settings)
        given = version, sample, factory, place.cpus, math.ceil(place.gpus)
        trained_on, seconds = executor.run(_train, *given, place=place).get()
        spent.update(seconds)
        counter.add(trained_on)
    return version


def _sampled(shared: Shared[Gallery], parts: Sequence[PartRecord], share: float, counter: ProgressCounter) -> pa.Table:
    gallery, tables = shared.get(), []
    for part in parts:
        for rows in gallery.part_tables(part.name, ["id", "vlm", "vision"], rows=4096):
            # By the hash of the id, so that the sample does not depend on how the gallery is cut.
            hashes = np.fromiter((zlib.crc32(id.encode()) for id in rows["id"].to_pylist()), np.uint32, rows.num_rows)
            tables.append(rows.filter(pa.array(hashes < share * 2**32)))
            counter.add(tables[-1].num_rows)
    return pa.concat_tables(tables)


def _train(
    version: Folder, blocks: Sequence[Shared[pa.Table]], factory: str, cpus: float, gpus: int
) -> tuple[int, dict[str, float]]:
    """Returns how many rows it was trained on, and the seconds of ``sort`` and ``train``. Ray shows a task that asks
    for GPUs those that it was given, and no others; one that asks for none sees all.
    """
    spent: dict[str, float] = {}
    with timed(spent, "sort"):
        sample = _sorted_sample([block.get() for block in blocks])
    with faiss_threads(cpus), tempfile.TemporaryDirectory(prefix="mindseye-train-") as scratch:
        with timed(spent, "train"):
            trained = train(sample, factory, gpus=gpus)
        save_trained(trained, Path(scratch) / TRAINED)
        version.upload(TRAINED, Path(scratch) / TRAINED)
    return len(sample), spent


def _sorted_sample(tables: Sequence[pa.Table]) -> np.ndarray:
    """Joint rows by ascending id, float32 (N, D), which FAISS takes as they are: of what they are made of, nothing is
    kept while it trains.
    """
    tables = [table for table in tables if table.num_rows]
    ids = pa.chunked_array([chunk for table in tables for chunk in table["id"].chunks])
    places = np.empty(len(ids), np.int64)
    places[pc.sort_indices(ids).to_numpy()] = np.arange(len(ids))
    sample, start = np.empty((len(ids), joint(tables[0].slice(0, 1)).shape[1]), np.float32), 0
    for batch in chain.from_iterable(table.to_batches(max_chunksize=_BLOCK) for table in tables):
        sample[places[start : start + len(batch)]] = joint(batch)
        start += len(batch)
    return sample


def joint(rows: pa.Table | pa.RecordBatch) -> np.ndarray:
    """Return [c ; d] of gallery rows, float16 (N, D1 + D2)."""
    return np.concatenate([matrix(rows["vlm"]), matrix(rows["vision"])], axis=1)
