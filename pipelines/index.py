"""The indexing job's second half: a Gallery to a version of a sharded Index.

The gallery's parts, in an order that spreads its categories, are cut into shards of equally many rows; each shard is
built by one task that reads its own parts, so no process ever holds more than its shard. Quantisers are trained once,
on a sample of the gallery, and shared by all shards. A shard that is done leaves a marker: the same command, run again,
builds those that are not. Recall is measured last; a version that finds too little is not published.
"""

from __future__ import annotations

import math
import time

from cluster.profile import Profile
from cluster.progress import Log, silent
from cluster.room import Demand, check_room
from pipelines.index_plan import open_version, plan_of
from pipelines.publication import publish
from pipelines.quantisers import train_quantisers
from pipelines.shards import build_shards, cut, dims, mean_of
from pipelines.text_queries import write_texts
from retrieval.artifacts import Gallery, Index, QuerySet
from retrieval.artifacts.manifests import IndexManifest
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.index.kinds import choose_factory
from retrieval.timing import timed


def build_index(
    gallery: Gallery,
    target: str,
    profile: Profile,
    *,
    shards: int | None = None,
    factory: str | None = None,
    memory_per_shard: int | None = None,
    queries: QuerySet | None = None,
    overwrite: bool = False,
    log: Log = silent,
) -> Index:
    """Build and publish the next version of the index at ``target``; resume a build that was interrupted.

    Args:
        shards: number of shards; by default as many as the profile's ``rows_per_shard`` asks for.
        factory: FAISS factory string, or ``auto``; by default the profile's.
        memory_per_shard: bytes of memory that the compressed index of a shard may take, for ``auto``.
        queries: to tune shards and to measure recall with, beside queries that are made of rows; by default names of
            ImageNet classes, as texts.
        overwrite: start over where an unfinished build was started with another plan.
        log: called with a line for what is resumed.

    Raises:
        UserError: no shard, or more than rows (``shard-count``), a factory string that FAISS refuses, no kind that fits
            ``memory_per_shard``, an unfinished build of another plan (``unfinished-version``), or recall below the
            profile's ``recall_floor`` (``low-recall``).
    """
    settings, manifest = profile.index, gallery.manifest
    check_room(Demand("building a shard", "index", settings))
    count = math.ceil(manifest.rows / settings.rows_per_shard) if shards is None else shards
    if not 1 <= count <= manifest.rows:
        raise UserError(
            f"an index of {manifest.rows:,} rows has 1 to {manifest.rows:,} shards, not {count:,}",
            code="shard-count",
            field="shards",
        )
    budget = memory_per_shard or settings.memory_per_shard
    chosen = choose_factory(factory or settings.factory, math.ceil(manifest.rows / count), sum(dims(gallery)), budget)
    plan = plan_of(gallery, manifest.parts, count, chosen, queries.uri if queries else None)
    version = open_version(Folder(target), plan, overwrite)
    started, spent = time.monotonic(), dict[str, float]()
    with timed(spent, "texts"):
        write_texts(version, gallery, profile, chosen, queries, log)
    trained = train_quantisers(version, gallery, manifest.parts, chosen, settings, spent)
    records = build_shards(version, gallery, cut(manifest.parts, count), chosen, trained, settings, spent, log=log)
    index = Index(
        version,
        IndexManifest(
            gallery=gallery.uri,
            sources=manifest.sources,
            rows=sum(record.rows for record in records),
            factory=chosen,
            shards=records,
            recall={},
            models=manifest.models,
            mean=mean_of(version, records),
        ),
    )
    return publish(index, settings, started, spent)
