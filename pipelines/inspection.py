"""What an operator asks of a target: which versions there are, how far a job is, what was rejected.

All of it is read from markers and manifests alone: no Ray, so that it is answered while a job has the cluster.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from cluster.hold import Hold, holds
from cluster.loading import GALLERY, INDEX
from pipelines.batches import JOB, read_job, unfinished_batches
from pipelines.embedding import count_written
from pipelines.index_plan import read_plan
from retrieval.artifacts import MANIFEST, Gallery, Index
from retrieval.artifacts.gallery import REJECTED_SCHEMA
from retrieval.artifacts.index import PLAN, VersionState, version_states
from retrieval.folder import Folder


@dataclass(frozen=True)
class Version:
    """One version of an index."""

    name: str
    state: VersionState
    index: Index | None
    """None if it is not published."""


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
    """What is at a target: the locks on it, its unfinished jobs, and the versions of its index."""

    holds: list[Hold]
    jobs: list[JobState]
    versions: list[Version]


def versions(root: Folder) -> list[Version]:
    """Return the versions of an index, oldest first."""
    return [
        Version(name, state, Index.open(root / name) if state == "published" else None)
        for name, state in version_states(root).items()
    ]


def state(target: Folder) -> TargetState:
    """Return what runs or ran at a target, from its markers."""
    gallery, root = target / GALLERY, target / INDEX
    jobs = [_batch_state(batch) for batch in unfinished_batches(gallery) if batch.exists(JOB)]
    known = versions(root)
    unfinished = [root / each.name for each in known if each.state == "unfinished"]
    jobs += [_version_state(version) for version in unfinished if version.exists(PLAN)]
    return TargetState(holds(target), jobs, known)


def rejected(target: Folder) -> pa.Table:
    """Return the rejected inputs of a gallery, those of a job that has not finished included: path, reason, detail."""
    gallery = target / GALLERY
    published = [Gallery.open(gallery).rejected()] if gallery.exists(MANIFEST) else []
    unfinished = [
        batch.read_table(file)
        for batch in unfinished_batches(gallery)
        for file in batch.files("parts", Gallery.REJECTED)
    ]
    return pa.concat_tables([REJECTED_SCHEMA.empty_table(), *published, *unfinished])


def _batch_state(batch: Folder) -> JobState:
    job = read_job(batch)
    return JobState(
        f"batch {batch.name} of {job.source}", count_written(batch), job.inputs, "inputs", _newest(batch, "parts")
    )


def _version_state(version: Folder) -> JobState:
    plan = read_plan(version)
    done = [name for name in version.files(suffix=".json") if name.startswith("shard-")]
    return JobState(f"index version {version.name}", len(done), plan.shards, "shards", _newest(version, ""))


def _newest(folder: Folder, name: str) -> float | None:
    times = []
    for file in folder.files(name):
        with suppress(FileNotFoundError):  # a running job has renamed it meanwhile
            times.append(folder.modified(file))
    return max(times, default=None)
