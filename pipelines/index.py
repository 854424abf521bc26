"""The indexing job's second half: a Gallery to a version of a sharded Index.

The gallery's parts, in an order that spreads its categories, are cut into shards of equally many rows; each shard is
built by one task that reads its own parts, so no process ever holds more than its shard. Quantisers are trained once,
on a sample of the gallery, and shared by all shards. A shard that is done leaves a marker: the same command, run again,
goes on with those that are not. Recall is measured last; a version that finds too little is not published.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray
from pydantic import BaseModel, ConfigDict
from ray.util.metrics import Counter

from cluster.profile import IndexSettings, Profile
from cluster.progress import ProgressCounter, progress
from cluster.session import check_room
from pipelines.tables import read_tables
from retrieval.artifacts import Gallery, Index
from retrieval.artifacts.columns import matrix
from retrieval.artifacts.index import new_version, published_versions, version_names
from retrieval.artifacts.manifests import IndexManifest, PartRecord, ShardRecord
from retrieval.folder import Folder
from retrieval.index.build import build_shard
from retrieval.index.effort import LAMBDA_GRID
from retrieval.index.files import read_record
from retrieval.index.hits import Hits, merge_topk
from retrieval.index.kinds import choose_factory
from retrieval.index.train import save_trained, train, training_rows
from retrieval.index.tuning import RECALL_AT, sample_queries
from retrieval.metrics import neighbour_recall

PLAN, REFUSED, TRAINED = "plan.json", "refused.json", "trained.faiss"
RECALL_QUERIES = 200


class Plan(BaseModel):
    """What makes a version what it is; all of it must be the same for a run that goes on with it."""

    model_config = ConfigDict(extra="forbid")
    gallery: str
    parts: str
    """A hash of their names and numbers of rows."""
    rows: int
    shards: int
    factory: str


class Slice(NamedTuple):
    """Rows ``start`` to ``stop`` of a part."""

    part: str
    start: int
    stop: int


def build_index(
    gallery: Gallery,
    target: str,
    profile: Profile,
    *,
    shards: int | None = None,
    factory: str | None = None,
    memory_per_shard: int | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Index:
    """Build and publish the next version of the index at ``target``; go on with a build that was killed.

    Args:
        shards: number of shards; by default as many as the profile's ``rows_per_shard`` asks for.
        factory: FAISS factory string, or ``auto``; by default the profile's.
        memory_per_shard: bytes of memory that the compressed index of a shard may take, for ``auto``.
        overwrite: begin anew where an unfinished build was begun with another plan.
        say: is told what is gone on with.

    Raises:
        ValueError: no shard, or more than rows, a factory string that FAISS refuses, no kind that fits
            ``memory_per_shard``, an unfinished build of another plan, or recall below the profile's ``recall_floor``.
    """
    settings, manifest = profile.index, gallery.manifest
    check_room("building a shard", "index", settings.cpus)
    count = math.ceil(manifest.rows / settings.rows_per_shard) if shards is None else shards
    if not 1 <= count <= manifest.rows:
        raise ValueError(f"an index of {manifest.rows:,} rows has 1 to {manifest.rows:,} shards, not {count:,}")
    budget = memory_per_shard or settings.memory_per_shard
    chosen = choose_factory(factory or settings.factory, math.ceil(manifest.rows / count), sum(dims(gallery)), budget)
    version = open_version(Folder(target), plan_of(gallery, manifest.parts, count, chosen), overwrite)
    begun = time.monotonic()
    trained = train_quantisers(version, gallery, manifest.parts, chosen, settings)
    records = build_shards(version, gallery, cut(manifest.parts, count), chosen, trained, settings, say=say)
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
        ),
    )
    return publish(index, settings, begun)


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


def train_quantisers(
    version: Folder, gallery: Gallery, parts: Sequence[PartRecord], factory: str, settings: IndexSettings
) -> Folder | None:
    """Train the empty index that all shards are copies of, on a sample of the rows; None for kinds without training.

    Returns:
        The folder that holds it as ``TRAINED``.
    """
    wanted = training_rows(factory)
    if not wanted:
        return None
    if version.exists(TRAINED):
        return version
    rows = sum(part.rows for part in parts)
    with progress("sampling rows to train the index on", min(wanted, rows)) as counter:
        arguments = {"share": wanted / rows, "counter": counter}
        sample = (
            read_tables(gallery.folder, [part.name for part in parts])
            .select_columns(["id", "vlm", "vision"])
            .map_batches(_sampled, fn_kwargs=arguments, batch_size=4096, batch_format="pyarrow")
            .to_arrow_refs()
        )
    with progress("training the index", min(wanted, rows)) as counter:
        cpus = _cpus(1, settings)
        counter.add(ray.get(_train.options(num_cpus=cpus).remote(version, sample, factory, cpus)))
    return version


def _sampled(rows: pa.Table, share: float, counter: ProgressCounter) -> pa.Table:
    # By the hash of the id, so that the sample does not depend on how the gallery is cut.
    hashes = np.fromiter((zlib.crc32(id.encode()) for id in rows["id"].to_pylist()), np.uint32, rows.num_rows)
    rows = rows.filter(pa.array(hashes < share * 2**32))
    counter.add(rows.num_rows)
    return rows


@ray.remote(max_retries=3)
def _train(version: Folder, blocks: list[ray.ObjectRef], factory: str, cpus: float) -> int:
    """Returns how many rows it was trained on."""
    sample = _sorted_sample(ray.get(blocks))
    with _threads(cpus), tempfile.TemporaryDirectory(prefix="mindseye-train-") as scratch:
        save_trained(train(sample, factory), Path(scratch) / TRAINED)
        version.upload(TRAINED, Path(scratch) / TRAINED)
    return len(sample)


def _sorted_sample(tables: Sequence[pa.Table]) -> np.ndarray:
    """Joint rows by ascending id, float32 (N, D), which FAISS takes as they are: of what they are made of, nothing is
    kept while it trains.
    """
    rows = pa.concat_tables([table for table in tables if table.num_rows]).sort_by("id")
    return joint(rows).astype(np.float32)


def joint(rows: pa.Table) -> np.ndarray:
    """Return [c ; d] of gallery rows, float16 (N, D1 + D2)."""
    return np.concatenate([matrix(rows["vlm"]), matrix(rows["vision"])], axis=1)


def build_shards(
    version: Folder,
    gallery: Gallery,
    slices: Sequence[Sequence[Slice]],
    factory: str,
    trained: Folder | None,
    settings: IndexSettings,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> list[ShardRecord]:
    """Build the shards of a version that have no marker yet; return the records of all of them, in order."""
    names = [f"shard-{i:05d}" for i in range(len(slices))]
    missing = [i for i, name in enumerate(names) if not version.exists(_marker(name))]
    if len(missing) < len(names):
        say(f"going on with index version {version.name}: {len(names) - len(missing)} of {len(names)} shards are done")
    rows = [sum(piece.stop - piece.start for piece in of) for of in slices]
    cpus = _cpus(len(missing), settings)
    with progress("building shards", sum(rows[i] for i in missing)) as counter:
        build = _build_shard.options(num_cpus=cpus)
        made_of = version, ray.put(gallery), factory, trained, cpus, counter
        ray.get([build.remote(*made_of, names[i], slices[i], rows[i] / sum(rows)) for i in missing])
    return [ShardRecord.model_validate(version.read_json(_marker(name))) for name in names]


def _marker(name: str) -> str:
    return f"{name}.json"


@ray.remote(max_retries=3, retry_exceptions=[OSError])
def _build_shard(
    version: Folder,
    gallery: Gallery,
    factory: str,
    trained: Folder | None,
    cpus: float,
    counter: ProgressCounter,
    name: str,
    slices: Sequence[Slice],
    share: float,
) -> None:
    expected = sum(piece.stop - piece.start for piece in slices)
    version.delete(name)
    with _threads(cpus), tempfile.TemporaryDirectory(prefix="mindseye-shard-") as scratch:
        template = None
        if trained:
            template = Path(scratch) / TRAINED
            trained.download(TRAINED, template)
        local = (version / name).local_path
        folder = local or Path(scratch) / name
        files = build_shard(
            folder,
            _tables(gallery.folder, slices, without=("vlm", "vision")),
            _tables(gallery.folder, slices, columns=("id", "vlm", "vision")),
            vlm_dim=dims(gallery)[0],
            factory=factory,
            trained=template,
            share=share,
            added=counter.add,
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


def _tables(gallery: Folder, slices: Sequence[Slice], **which: Sequence[str]) -> Iterator[pa.Table]:
    for part, start, stop in slices:
        at = 0
        for table in gallery.tables(part, rows=4096, **which):
            yield table.slice(max(start - at, 0), max(min(stop - at, table.num_rows) - max(start - at, 0), 0))
            at += table.num_rows
            if at >= stop:
                break


def _cpus(tasks: int, settings: IndexSettings) -> float:
    """CPUs for each of so many tasks: those of the settings, or more where there are fewer tasks than CPUs."""
    of_nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    share = min(max(of_nodes, default=1), sum(of_nodes) // max(tasks, 1))
    return max(settings.cpus, share)


@contextmanager
def _threads(cpus: float) -> Iterator[None]:
    """As many threads for FAISS as the task has CPUs: Ray gives a worker one, whatever it was promised."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(max(1, min(int(cpus), os.cpu_count() or 1)))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def publish(index: Index, settings: IndexSettings, begun: float) -> Index:
    """Measure the recall of a version that is complete but for its manifest, and publish it if that is enough.

    Raises:
        ValueError: recall is below the profile's ``recall_floor``.
    """
    with progress("measuring recall against exact search", len(index.manifest.shards)) as counter:
        index.manifest.recall = measure_recall(index, settings, counter)
    below = [
        f"recall@{depth} {value:.3f} at λ = {weight}"
        for depth, by_weight in index.manifest.recall.items()
        for weight, value in by_weight.items()
        if value < settings.recall_floor
    ]
    if below:
        content = {"recall": index.manifest.recall, "floor": settings.recall_floor, "factory": index.manifest.factory}
        index.folder.write_json(REFUSED, content)
        raise ValueError(
            f"version {index.version} of {index.root.uri} is not published: it finds too little ({', '.join(below)};"
            f" the profile's recall_floor is {settings.recall_floor}). Give a kind of index that keeps more of each"
            f" vector than {index.manifest.factory} (mindseye index or compact with --factory, or a larger"
            " memory_per_shard), or lower the floor"
        )
    index.folder.write_json("summary.json", {"seconds": round(time.monotonic() - begun, 1)})
    return Index.publish(index.folder, index.manifest)


def measure_recall(index: Index, settings: IndexSettings, counter: ProgressCounter) -> dict[str, dict[str, float]]:
    """Return recall of the default search against exact search over all shards, by depth and λ, on queries that no
    shard has tuned itself with.
    """
    count = len(index.manifest.shards)
    cpus = _cpus(count, settings)
    queries = ray.remote(_sample_queries).options(num_cpus=settings.cpus).remote(index)
    look = ray.remote(_found_and_exact).options(num_cpus=cpus)
    waiting = [look.remote(index, i, queries, cpus, counter) for i in range(count)]
    best: tuple[Hits, Hits] | None = None
    while waiting:  # merged as they come: those of all shards together would be 20 MB for each
        [done], waiting = ray.wait(waiting)
        answer = ray.get(done)
        best = _merged(best, answer) if best else answer
    assert best
    recall = {}
    for depth in RECALL_AT:
        found, exact = (hits.ids[:, :depth] for hits in best)
        halves = zip(np.split(found, len(LAMBDA_GRID)), np.split(exact, len(LAMBDA_GRID)), strict=True)
        recall[str(depth)] = {
            str(weight): round(neighbour_recall(*half), 4) for weight, half in zip(LAMBDA_GRID, halves, strict=True)
        }
    return recall


def _merged(one: tuple[Hits, Hits], other: tuple[Hits, Hits]) -> tuple[Hits, Hits]:
    found, exact = (merge_topk(hits, max(RECALL_AT)) for hits in zip(one, other, strict=True))
    return found, exact


def _sample_queries(index: Index) -> np.ndarray:
    shards = index.manifest.shards
    alive = np.array([record.rows for record in shards])
    alive -= np.bincount(index.removed()["shard"].to_numpy(), minlength=len(shards))
    # What was added last may be of other categories than all before.
    asked = {int(np.argmax(alive)), int(np.flatnonzero(alive)[-1])}
    by_weight: list[list[np.ndarray]] = [[] for _ in LAMBDA_GRID]
    for number in sorted(asked):
        shard = index.shard(number)
        # Rows lie in the order of their ids, which are hashes, so any run of them is a fair sample.
        rows = np.flatnonzero(shard.alive)[-RECALL_QUERIES // len(asked) :]
        for queries, of_shard in zip(by_weight, sample_queries(shard, rows, np.random.default_rng(1)), strict=True):
            queries.append(of_shard)
    return np.concatenate([np.concatenate(queries) for queries in by_weight])


def _found_and_exact(
    index: Index, number: int, query_QD: np.ndarray, cpus: float, counter: ProgressCounter
) -> tuple[Hits, Hits]:
    with _threads(cpus):
        shard = index.shard(number)
        depth = max(RECALL_AT)
        found = shard.search(query_QD, depth), shard.exact(query_QD, depth)
    counter.add(1)
    return found


def plan_of(gallery: Gallery, parts: Sequence[PartRecord], shards: int, factory: str) -> Plan:
    """Return what makes a version of shards that are built from these parts."""
    lines = sorted(f"{part.name} {part.rows}" for part in parts)
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
    rows = sum(part.rows for part in parts)
    return Plan(gallery=gallery.uri, parts=digest, rows=rows, shards=shards, factory=factory)


def open_version(root: Folder, plan: Plan, overwrite: bool) -> Folder:
    """Return the version to go on with, or a new one that has its plan.

    Raises:
        ValueError: one was begun with another plan.
    """
    newest = max(published_versions(root), default="")
    for name in version_names(root):
        version = root / name
        # One that is older than what was published since would be no newest version, and nobody's.
        if name <= newest or version.exists(REFUSED) or not version.exists(PLAN):
            continue
        begun = Plan.model_validate(version.read_json(PLAN))
        if begun == plan:
            return version
        if overwrite:
            version.delete()
        else:
            differ = "; ".join(
                "it is of other parts of the gallery" if what == "parts" else f"{what} was {was}, is now {now}"
                for what, was in begun
                if was != (now := getattr(plan, what))
            )
            raise ValueError(
                f"{version.uri} was begun and not finished, and can not be gone on with: {differ}."
                f" Run it with what it was begun with, or delete {version.uri} to build this version anew from what is"
                " embedded; --overwrite begins the whole command anew"
            )
    version = new_version(root)
    version.write_json(PLAN, plan.model_dump())
    return version
