"""Shards of a version: which rows each has, and how each is built by one task that reads its own parts."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from ray.util.metrics import Counter

from cluster.profile import IndexSettings
from cluster.progress import Log, ProgressCounter, progress, silent
from pipelines.executor import Shared
from pipelines.faiss_threads import faiss_threads
from pipelines.quantisers import TRAINED
from pipelines.running import current_executor
from pipelines.text_queries import tuning_texts
from retrieval.artifacts import Gallery, Index
from retrieval.artifacts.manifests import PartRecord, ShardRecord
from retrieval.folder import Folder
from retrieval.index.build import build_shard
from retrieval.index.files import RECORD, read_record, text_vector, vector_text


class Slice(NamedTuple):
    """Rows ``start`` to ``stop`` of a part."""

    part: str
    start: int
    stop: int


def dims(gallery: Gallery) -> tuple[int, int]:
    """Return D1 and D2."""
    models = gallery.manifest.models
    vlm_dim, vision_dim = models["vlm"].dim, models["vision"].dim
    assert vlm_dim is not None
    assert vision_dim is not None
    return vlm_dim, vision_dim


def cut(parts: Sequence[PartRecord], shards: int) -> list[list[Slice]]:
    """Cut parts into shards of equally many rows (one more or less).

    Parts come in the order of their source, category after category; they are shuffled, so that a category does not
    lie in one shard alone.
    """
    parts = sorted(parts, key=lambda part: hashlib.blake2b(part.name.rsplit("/", 1)[-1].encode()).digest())
    rows = sum(part.rows for part in parts)
    bounds = [rows * i // shards for i in range(shards + 1)]
    ends = np.cumsum([part.rows for part in parts])
    return [
        [
            Slice(part.name, max(first - (int(end) - part.rows), 0), min(last - (int(end) - part.rows), part.rows))
            for part, end in zip(parts, ends, strict=True)
            if end > first and end - part.rows < last
        ]
        for first, last in pairwise(bounds)
    ]


def build_shards(
    version: Folder,
    gallery: Gallery,
    slices: Sequence[Sequence[Slice]],
    factory: str,
    trained: Folder | None,
    settings: IndexSettings,
    spent: dict[str, float],
    *,
    log: Log = silent,
) -> list[ShardRecord]:
    """Build the shards of a version that have no marker yet; return the records of all of them, in order.

    Args:
        spent: is given the seconds that this took, of all shards together, by what they were spent on.
    """
    names = [f"shard-{i:05d}" for i in range(len(slices))]
    missing = [i for i, name in enumerate(names) if not version.exists(_marker(name))]
    if len(missing) < len(names):
        log(f"resuming index version {version.name}: {len(names) - len(missing)} of {len(names)} shards are done")
    rows = [sum(piece.stop - piece.start for piece in of) for of in slices]
    executor = current_executor()
    place = executor.shared_among(len(missing), settings)
    with progress("building shards", sum(rows[i] for i in missing)) as counter:
        made_of = version, executor.share(gallery), factory, trained, place.cpus, counter
        shards = [(*made_of, names[i], slices[i], rows[i] / sum(rows)) for i in missing]
        for seconds in executor.map(_build_shard, shards, place=place, retry_on=[OSError]):
            for what, took in seconds.items():
                spent[what] = spent.get(what, 0.0) + took
    return [version.read_record(_marker(name), ShardRecord, "delete it to build the shard again") for name in names]


def mean_of(version: Folder, records: Sequence[ShardRecord], before: Index | None = None) -> str | None:
    """Return the mean of the rows of new shards and of those that an index had before, as a manifest has it.

    Rows that were removed count in it until an index is built again. None if an earlier version of mindseye built
    what was before.
    """
    rows, means = [record.rows for record in records], [_mean(version / record.name) for record in records]
    if before:
        if before.manifest.mean is None:
            return None
        rows.append(sum(record.rows for record in before.manifest.shards))
        means.append(before.manifest.mean)
    if None in means:  # shards of an unfinished version that an earlier mindseye began
        return None
    vectors = np.stack([text_vector(mean) for mean in means if mean]).astype(np.float64)
    return vector_text(np.average(vectors, axis=0, weights=rows).astype(np.float32))


def _mean(shard: Folder) -> str | None:
    return shard.read_json(RECORD).get("mean")


def _marker(name: str) -> str:
    return f"{name}.json"


def _build_shard(
    version: Folder,
    shared: Shared[Gallery],
    factory: str,
    trained: Folder | None,
    cpus: float,
    counter: ProgressCounter,
    name: str,
    slices: Sequence[Slice],
    share: float,
) -> dict[str, float]:
    gallery, spent = shared.get(), dict[str, float]()
    expected = sum(piece.stop - piece.start for piece in slices)
    version.delete(name)
    with faiss_threads(cpus), tempfile.TemporaryDirectory(prefix="mindseye-shard-") as scratch:
        template = None
        if trained:
            template = Path(scratch) / TRAINED
            trained.download(TRAINED, template)
        local = (version / name).local_path
        folder = local or Path(scratch) / name
        files = build_shard(
            folder,
            _tables(gallery, slices, without=("vlm", "vision")),
            _tables(gallery, slices, columns=("id", "vlm", "vision")),
            vlm_dim=dims(gallery)[0],
            factory=factory,
            trained=template,
            share=share,
            texts=tuning_texts(version, dims(gallery)[1]),
            added=counter.add,
            spent=spent,
        )
        built = read_record(folder)
        if local is None:
            for file in files:
                (version / name).upload(file, folder / file)
    rows = built["rows"]
    record = ShardRecord(version=version.name, name=name, rows=rows, factory=built["factory"], files=files)
    version.write_json(_marker(name), record.model_dump())
    counter.add(expected - rows)  # of the same id as others
    counter.flush()  # so that the last shard is counted when the job logs how many there were
    Counter("mindseye_index_shard_rows", "Rows of shards that were built.", tag_keys=("version",)).inc(
        rows, {"version": version.name}
    )
    return spent


def _tables(gallery: Gallery, slices: Sequence[Slice], **which: Sequence[str]) -> Iterator[pa.Table]:
    for part, start, stop in slices:
        at = 0
        for table in gallery.part_tables(part, rows=4096, **which):
            yield table.slice(max(start - at, 0), max(min(stop - at, table.num_rows) - max(start - at, 0), 0))
            at += table.num_rows
            if at >= stop:
                break
