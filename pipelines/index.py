"""The indexing job's second half: a Gallery to a sharded Index, on Ray Data.

Rows go to shards by a hash of their id; each shard is built whole by one task.
A process never holds the gallery, though Ray may give small shards to one reducer together.
"""

from __future__ import annotations

import math
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from cluster.profile import Profile
from cluster.session import progress
from retrieval.artifacts import Gallery, Index, IndexManifest, ShardRecord, matrix, new_version
from retrieval.folder import Folder
from retrieval.hits import Hits, merge_topk
from retrieval.metrics import neighbour_recall
from retrieval.shard import Shard, fitted_factory, sample_queries
from retrieval.shard_files import LAMBDA_GRID

RECALL_QUERIES = 200
RECALL_AT = 10


def build_index(
    gallery: Gallery, target: str, profile: Profile, *, shards: int | None = None, factory: str | None = None
) -> Index:
    """Build and publish the next version of the index at ``target``.

    Args:
        shards: number of shards; by default as many as the profile's ``rows_per_shard`` asks for.
        factory: FAISS factory string; by default the profile's.

    Raises:
        ValueError: fewer than one shard, a factory string that FAISS refuses, or images with the same path and bytes.
    """
    settings = profile.index
    count = math.ceil(gallery.manifest.rows / settings.rows_per_shard) if shards is None else shards
    if count < 1:
        raise ValueError(f"an index needs at least one shard, {count} were asked for")
    factory = factory or settings.factory
    models = gallery.manifest.models
    vlm_dim, vision_dim = models["vlm"].dim, models["vision"].dim
    assert vlm_dim is not None
    assert vision_dim is not None
    fitted_factory(factory, gallery.manifest.rows, vlm_dim + vision_dim)  # refuses before anything is written
    version = new_version(Folder(target))
    version.create()
    parts = [f"{gallery.folder.path}/{name}" for name in gallery.parts()]
    with progress("building shards", count) as counter:

        def build(rows: pa.Table) -> pa.Table:
            record = _build_shard(rows, version, vlm_dim, factory)
            counter.add.remote(1)
            return pa.table({"record": [record.model_dump_json()]})

        built = (
            ray.data.read_parquet(parts, filesystem=gallery.folder.filesystem)
            .map_batches(_with_shard, fn_kwargs={"count": count}, batch_format="pyarrow")
            .groupby("shard")
            .map_groups(build, batch_format="pyarrow", num_cpus=settings.cpus)
            .take_all()
        )
    records = sorted((ShardRecord.model_validate_json(row["record"]) for row in built), key=lambda record: record.name)
    manifest = IndexManifest(
        gallery=gallery.uri,
        rows=sum(record.rows for record in records),
        factory=factory,
        shards=records,
        recall={},
        models=models,
    )
    if manifest.rows != gallery.manifest.rows:
        raise RuntimeError(f"{manifest.rows} rows arrived in the shards of {gallery.manifest.rows} in {gallery.uri}")
    manifest.recall = _measure_recall(Index(version, manifest), settings.cpus)
    return Index.publish(version, manifest)


def shard_of(row_id: str, count: int) -> int:
    """Return the shard that a row lies in: a hash of its id, so that it does not depend on the order of rows."""
    return zlib.crc32(row_id.encode()) % count


def _with_shard(rows: pa.Table, count: int) -> pa.Table:
    return rows.append_column("shard", pa.array([shard_of(i, count) for i in rows["id"].to_pylist()], pa.int32()))


def _build_shard(rows: pa.Table, version: Folder, vlm_dim: int, factory: str) -> ShardRecord:
    name = f"shard-{rows['shard'][0].as_py():05d}"
    joint_ND = np.concatenate([matrix(rows["vlm"]), matrix(rows["vision"])], axis=1)
    table = rows.drop_columns(["shard", "vlm", "vision"])
    shard = Shard.build(table["id"].to_pylist(), joint_ND, vlm_dim=vlm_dim, factory=factory, rows=table)
    with tempfile.TemporaryDirectory(prefix="mindseye-shard-") as scratch:
        files = shard.save(Path(scratch))
        for file in files:
            (version / name).write_bytes(file, (Path(scratch) / file).read_bytes())
    return ShardRecord(name=name, rows=len(shard), factory=shard.factory, files=files)


def _measure_recall(index: Index, cpus: float) -> dict[str, float]:
    """Return recall@10 of the default search against exact search, over all shards, at each λ of the grid."""
    on_workers = {"num_cpus": cpus}
    queries = ray.remote(_sample_queries).options(**on_workers).remote(index)
    look = ray.remote(_found_and_exact).options(**on_workers)
    answers = ray.get([look.remote(index, i, queries) for i in range(len(index.manifest.shards))])
    found, exact = (merge_topk([answer[which] for answer in answers], RECALL_AT).ids for which in (0, 1))
    halves = zip(np.split(found, len(LAMBDA_GRID)), np.split(exact, len(LAMBDA_GRID)), strict=True)
    return {str(weight): round(neighbour_recall(*half), 4) for weight, half in zip(LAMBDA_GRID, halves, strict=True)}


def _sample_queries(index: Index) -> np.ndarray:
    # Rows lie in the order of their ids, which are hashes, so the first of them are a fair sample.
    shard = index.shard(0)
    return np.concatenate(sample_queries(shard.vectors[:RECALL_QUERIES], shard.vlm_dim, np.random.default_rng(1)))


def _found_and_exact(index: Index, number: int, query_QD: np.ndarray) -> tuple[Hits, Hits]:
    shard = index.shard(number)
    return shard.search(query_QD, RECALL_AT), shard.exact(query_QD, RECALL_AT)
