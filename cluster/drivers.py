"""The jobs that run on the cluster that this process is connected to, and what each is at."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import PurePath

import ray

from cluster.progress import Stage, stages
from cluster.reach import gcs

_OF_RAY = "_ray_internal"
"""How the namespaces begin of jobs that are Ray's own, such as the one that watches over submitted commands."""


@dataclass(frozen=True)
class Job:
    """A driver that runs.

    Attributes:
        id: of the driver.
        submitted: the id under which it was submitted; None if it was started on a node.
        command: its command line.
        since: seconds since the epoch.
        host: IP address of the machine that it runs on.
    """

    id: str
    submitted: str | None
    command: str
    since: float
    host: str
    stages: list[Stage]


def running_jobs() -> list[Job]:
    """Return the jobs that run, but for this process's own, oldest first."""
    context = ray.get_runtime_context()
    known, mine = stages(), context.get_job_id()
    found = []
    # The public list of jobs needs a dashboard.
    for id, record in gcs(context.gcs_address).get_all_job_info().items():
        job, space = id.hex(), record.config.ray_namespace
        if record.is_dead or job == mine or space.startswith(_OF_RAY):
            continue
        submitted = record.config.metadata.get("job_submission_id")
        command, host = command_in(record.entrypoint), record.driver_ip_address
        found.append(Job(job, submitted, command, record.start_time / 1000, host, known.get(job, [])))
    return sorted(found, key=lambda job: job.since)


def command_in(entrypoint: str) -> str:
    """Return the command line of a driver; that of mindseye as a person gives it, without the Python that runs it."""
    try:
        words = shlex.split(entrypoint)
    except ValueError:
        return entrypoint
    for position, word in enumerate(words):
        if PurePath(word).name in ("mindseye", "mindseye.py"):
            return shlex.join(["mindseye", *words[position + 1 :]])
    return entrypoint
