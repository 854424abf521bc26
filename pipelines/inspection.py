"""What an operator asks of a target: which versions there are, how far a job is, what was rejected, is all of it whole.

``versions``, ``state`` and ``rejected`` read markers and manifests alone: no Ray, so that they answer while a job has
the cluster.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from cluster.hold import Hold, holds
from cluster.loading import load_vision, load_vlm
from cluster.profile import Profile
from cluster.progress import ProgressCounter, progress
from pipelines.embedding import decoded_side, written
from pipelines.gallery import JOB, Job, unfinished_batches
from pipelines.index import PLAN, REFUSED, Plan
from retrieval.artifacts import MANIFEST, Gallery, Index
from retrieval.artifacts.columns import matrix
from retrieval.artifacts.gallery import REJECTED_SCHEMA
from retrieval.artifacts.index import published_versions, version_names
from retrieval.artifacts.manifests import PartRecord
from retrieval.folder import Folder
from retrieval.images import ImageRejected, decode_reduced
from retrieval.index.files import ROWS, verify
from retrieval.sources.lookup import ImageLookup

SAME = 0.999
"""Least cosine of a vector and the one that is made of the same image again."""


@dataclass(frozen=True)
class VersionState:
    """One version of an index: published, refused, unfinished, left behind by a newer one, or pruned but for what
    others use of it.
    """

    name: str
    state: str
    index: Index | None


class JobState(NamedTuple):
    """An unfinished job: what it makes, how much of it is done, and when something last was (seconds since the
    epoch).
    """

    what: str
    done: int
    total: int
    unit: str
    written: float | None


class TargetState(NamedTuple):
    holds: list[Hold]
    jobs: list[JobState]
    versions: list[VersionState]


class Finding(NamedTuple):
    """One check of ``check_target``: what was looked at, and what is wrong with it, if so."""

    what: str
    trouble: str | None


def versions(root: Folder) -> list[VersionState]:
    """Return the versions of an index, oldest first."""
    found = []
    newest = max(published_versions(root), default="")
    for name in version_names(root):
        version = root / name
        if version.exists(MANIFEST):
            found.append(VersionState(name, "published", Index.open(version)))
        elif version.exists(REFUSED):
            found.append(VersionState(name, "refused", None))
        elif version.exists(PLAN):
            found.append(VersionState(name, "unfinished" if name > newest else "left behind", None))
        else:
            found.append(VersionState(name, "pruned", None))  # it keeps what others use of it
    return found


def state(target: Folder) -> TargetState:
    """Return what runs or ran at a target, from its markers."""
    gallery, root = target / "gallery", target / "index"
    jobs = [_batch_state(batch) for batch in unfinished_batches(gallery) if batch.exists(JOB)]
    known = versions(root)
    jobs += [_version_state(root / each.name) for each in known if each.state == "unfinished"]
    return TargetState(holds(target), jobs, known)


def rejected(target: Folder) -> pa.Table:
    """Return the rejected inputs of a gallery, those of a job that has not finished included: path, reason, detail."""
    gallery = target / "gallery"
    published = [Gallery.open(gallery).rejected()] if gallery.exists(MANIFEST) else []
    unfinished = [
        batch.read_table(file)
        for batch in unfinished_batches(gallery)
        for file in batch.files("parts", Gallery.REJECTED)
    ]
    return pa.concat_tables([REJECTED_SCHEMA.empty_table(), *published, *unfinished])


def check_target(gallery: Gallery, index: Index, profile: Profile, *, sample: int, seed: int = 0) -> Iterator[Finding]:
    """Check all that a version and its gallery consist of: sizes and checksums, numbers of rows, and whether images of
    a random sample still give the vectors that are there.
    """
    shards = index.manifest.shards
    with progress("checking shards", len(shards)) as counter:
        tasks = [_check_shard.remote(index, number, counter) for number in range(len(shards))]
        for record, trouble in zip(shards, ray.get(tasks), strict=True):
            yield Finding(f"{record.version}/{record.name}, {record.rows:,} rows", trouble)
    parts = gallery.manifest.parts
    with progress("checking parts of the gallery", len(parts)) as counter:
        tasks = [_check_part.remote(gallery.folder, part, counter) for part in parts]
        troubles = [trouble for trouble in ray.get(tasks) if trouble]
    if not troubles:
        yield Finding(f"{len(parts)} parts of the gallery, {gallery.manifest.rows:,} rows", None)
    yield from (Finding("a part of the gallery", trouble) for trouble in troubles)
    in_index, in_gallery = index.manifest.rows, gallery.manifest.rows
    differ = f"the index finds {in_index:,} rows, the gallery has {in_gallery:,}" if in_index != in_gallery else None
    yield Finding("index and gallery have as many rows", differ)
    if sample:
        stage = profile.embed
        look = _check_sample.options(num_cpus=stage.cpus, num_gpus=stage.gpus)
        yield ray.get(look.remote(gallery, profile, sample, seed))


def _batch_state(batch: Folder) -> JobState:
    job = Job.model_validate(batch.read_json(JOB))
    return JobState(
        f"batch {batch.name} of {job.source}", len(written(batch)), job.inputs, "inputs", _newest(batch, "parts")
    )


def _version_state(version: Folder) -> JobState:
    shards = Plan.model_validate(version.read_json(PLAN)).shards if version.exists(PLAN) else 0
    done = [name for name in version.files(suffix=".json") if name.startswith("shard-")]
    return JobState(f"index version {version.name}", len(done), shards, "shards", _newest(version, ""))


def _newest(folder: Folder, name: str) -> float | None:
    times = []
    for file in folder.files(name):
        with suppress(FileNotFoundError):  # a running job has renamed it meanwhile
            times.append(folder.modified(file))
    return max(times, default=None)


@ray.remote(max_retries=3)
def _check_shard(index: Index, number: int, counter: ProgressCounter) -> str | None:
    record, folder = index.manifest.shards[number], index.shard_folder(number)
    try:
        with tempfile.TemporaryDirectory(prefix="mindseye-verify-") as copy:
            place = folder.local_path or Path(copy)
            if folder.local_path is None:
                for name in record.files:
                    folder.download(name, place / name)
            verify(place, record.files)
            ids = set(pq.read_table(place / ROWS, columns=["id"])["id"].to_pylist())
        if len(ids) != record.rows:
            return f"{folder.uri} has {len(ids):,} different ids, its record says {record.rows:,}"
        if strange := set(index.removed_ids(number).to_pylist()) - ids:
            return f"{len(strange)} removed ids are none of {folder.uri}"
    except (OSError, ValueError) as error:
        return str(error)
    finally:
        counter.add(1)
    return None


@ray.remote(max_retries=3)
def _check_part(folder: Folder, part: PartRecord, counter: ProgressCounter) -> str | None:
    try:
        rows = sum(table.num_rows for table in folder.tables(part.name))  # reads all of it, so that damage is seen
    except (OSError, ValueError) as error:
        return f"{folder.uri}/{part.name} can not be read: {error}"
    finally:
        counter.add(1)
    return None if rows == part.rows else f"{folder.uri}/{part.name} has {rows:,} rows, recorded were {part.rows:,}"


@ray.remote
def _check_sample(gallery: Gallery, profile: Profile, sample: int, seed: int) -> Finding:
    rows = _sampled(gallery, sample, seed)
    encoders = {"vlm": load_vlm(profile), "vision": load_vision(profile)}
    worst, gone, other = 1.0, 0, Counter[str]()
    for name, encoder in encoders.items():
        if encoder.fingerprint != gallery.manifest.models[name].fingerprint:  # type: ignore[index]
            return Finding("a sample embedded again", f"the profile's {name} model is not the gallery's")
    side = decoded_side(encoder.preprocess for encoder in encoders.values())
    sources = {name: ImageLookup(source, links_out=True) for name, source in gallery.manifest.sources.items()}
    for row in range(rows.num_rows):
        path = rows["path"][row].as_py()
        try:
            data = sources[rows["batch"][row].as_py()].bytes_of(path)
            image = decode_reduced(data, side) if data is not None else None
        except (ImageRejected, OSError):
            other[path] += 1
            continue
        if image is None:
            gone += 1
            continue
        for name, encoder in encoders.items():
            [made_D] = encoder.encode_images(encoder.preprocess.pixels(image)[None])
            cosine = float(matrix(rows[name].slice(row, 1))[0].astype(np.float32) @ made_D)
            worst = min(worst, cosine)
            if cosine < SAME:
                other[path] += 1
    what = f"{rows.num_rows} images embedded again, least cosine {worst:.4f}"
    if other:
        return Finding(what, f"{len(other)} images are not what the gallery holds: {', '.join(list(other)[:5])}")
    return Finding(what, f"{gone} of them are no longer in their source" if gone else None)


def _sampled(gallery: Gallery, sample: int, seed: int) -> pa.Table:
    manifest = gallery.manifest
    chosen = np.random.default_rng(seed).choice(manifest.rows, min(sample, manifest.rows), replace=False)
    ends = np.cumsum([part.rows for part in manifest.parts])
    tables = []
    for part, end in zip(manifest.parts, ends, strict=True):
        inside = chosen[(chosen < end) & (chosen >= end - part.rows)] - (end - part.rows)
        if len(inside):
            table = gallery.folder.read_table(part.name, ["path", "batch", "vlm", "vision"])
            tables.append(table.take(pa.array(np.sort(inside))))
    return pa.concat_tables(tables).combine_chunks()
