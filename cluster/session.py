"""Reaching Ray: a running cluster if there is one, else a local one that ends with the command; and one progress
display.
"""

from __future__ import annotations

import collections
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cluster.imports import ours_first
from cluster.profile import Stage
from retrieval.folder import Folder

console = Console(stderr=True)
LINE_SECONDS = 60
_local = threading.Event()
"""Set while the Ray that is used is a local one of ``session``."""


def check_room(what: str, field: str, cpus: float, gpus: float = 0) -> None:
    """Say what a job would wait for without end, on a local Ray, which no further node will join.

    Args:
        what: needs so many ``cpus`` and ``gpus``; by ``field`` of the profile.

    Raises:
        ValueError: there are fewer.
    """
    if not _local.is_set():
        return
    for resource, needed, there in lacking(cpus, gpus):
        raise ValueError(
            f"{what} needs {needed:g} {resource}s, and this machine's Ray has {there:g}: lower"
            f" {field}.{resource.lower()}s in the profile, choose another profile, or use a cluster (--address)"
        )


def lacking(cpus: float, gpus: float) -> Iterator[tuple[str, float, float]]:
    """Yield the resources, ``CPU`` or ``GPU``, that Ray has too few of: how many are needed, how many there are."""
    for resource, needed in (("CPU", cpus), ("GPU", gpus)):
        there = ray.cluster_resources().get(resource, 0)
        if needed > there:
            yield resource, needed, there


def check_shared(folder: Folder, name: str) -> None:
    """Look from every node for a file that this one has written: what the others write must be found as well.

    Raises:
        ValueError: a node does not see it.
    """
    asked = []
    for node in (node for node in ray.nodes() if node["Alive"]):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)  # it may be lost meanwhile
        seen = _exists.options(scheduling_strategy=there).remote(folder, name)
        asked.append((node["NodeManagerHostname"], seen))
    for host, seen in asked:
        if not ray.get(seen):
            raise ValueError(
                f"{host} does not see {folder.uri}/{name}, which {platform.node()} has written: give a target that"
                " every machine has at the same path, or one in an object store"
            )


@ray.remote(num_cpus=0)
def _exists(folder: Folder, name: str) -> bool:
    return folder.exists(name)


def cluster_address(given: str | None) -> str | None:
    """Return the address of the cluster to use: the one given, else ``RAY_ADDRESS``; None for a local Ray."""
    address = given or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address or None


@contextmanager
def session(address: str | None = None) -> Iterator[None]:
    """Connect to the Ray cluster at ``address`` (or ``RAY_ADDRESS``), or start a local one; leave it as it was found.

    Inside a session that is already open, that one goes on. A ValueError or OSError of a worker is raised as itself.

    Raises:
        ValueError: the address is one of Ray Client, which Ray Data does not work over.
    """
    address = cluster_address(address) or "local"
    if address.startswith("ray://"):
        raise ValueError(
            f"{address} is an address of Ray Client, which Ray Data does not work over: give the cluster's own, such as"
            " head:6379, on one of its machines; or hand the command to `ray job submit`"
        )
    if ray.is_initialized():
        with _plain_errors():
            yield
        return
    # One CPU more than there are cores, for tasks that read and write: see actor_pool.
    local: dict = {"include_dashboard": False, "num_cpus": (os.cpu_count() or 1) + 1} if address == "local" else {}
    with _silent_stderr():
        ray.init(address=address, runtime_env=ours_first(), log_to_driver=False, logging_level=logging.ERROR, **local)
    data_defaults()
    if local:
        _local.set()
    try:
        with _plain_errors():
            yield
    finally:
        _local.clear()
        ray.shutdown()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    # Ray's core writes to the file descriptor itself that it has read its log level; its errors are exceptions.
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise what a person can mend without Ray's wrapping, whose message is the worker's coloured traceback."""
    try:
        yield
    except RayTaskError as error:
        cause: BaseException = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, ValueError | OSError):
            raise cause from error
        raise


def actor_pool(stage: Stage) -> ActorPoolStrategy:
    """Return the pool of a stage: as many actors at once as the cluster has room for, and up to ``max_actors`` if it
    grows.

    One CPU is left for tasks that read and write, without which a pool that holds every CPU would wait for ever.
    """
    resources = ray.cluster_resources()
    room = [(resources.get("CPU", 1) - 1) // stage.cpus if stage.cpus else stage.max_actors]
    if stage.gpus:
        room.append(resources.get("GPU", 0) // stage.gpus)
    start = max(stage.min_actors, min(stage.max_actors, int(min(room))))
    return ActorPoolStrategy(min_size=stage.min_actors, max_size=stage.max_actors, initial_size=start)


def data_defaults() -> None:
    """Set what all our datasets want of Ray Data: to begin soon, and nothing of its own on the terminal (bars, notes,
    second copies of errors).
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # The newer reader of Parquet starts actors to read footers and list files, for each dataset: some eight seconds on
    # two cores, for files whose names and rows are known.
    context.use_datasource_v2 = False
    # Else an error of a worker arrives as a UserCodeException, which no longer knows what was raised.
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


@ray.remote(num_cpus=0)
class Counter:
    """What the workers of a job have done so far."""

    def __init__(self) -> None:
        self._done = 0
        self._seconds: collections.Counter[str] = collections.Counter()

    def add(self, count: int = 0, **seconds: float) -> None:
        """Count what was done, and the seconds of one worker that went into each part of it."""
        self._done += count
        self._seconds.update(seconds)

    def done(self) -> int:
        return self._done

    def seconds(self) -> dict[str, float]:
        return dict(self._seconds)


class _Rate(ProgressColumn):
    """Steps per second, of late."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text(f"{rate:,.1f}/s" if rate else "")


@contextmanager
def progress(what: str, total: int | None) -> Iterator[ActorHandle]:
    """Show how far a job is; hand the yielded counter to its workers, which ``add.remote(n)`` what they have done.

    On a terminal this is a bar with the rate and the time left; elsewhere one line at the start, one a minute and one
    at the end.
    """
    # On the driver's own node: the loss of any other must not cost the job its count.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    counter = Counter.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    over = threading.Event()
    with Progress(*columns, console=console, disable=not console.is_terminal) as display:
        task = display.add_task(what, total=total)
        if not console.is_terminal:
            console.print(f"{what}{f': {total:,}' if total else ''} …")

        def watch() -> None:
            said = time.monotonic()
            with suppress(RayError):
                while not over.wait(0.5):
                    done = ray.get(counter.done.remote())
                    display.update(task, completed=done)
                    if not console.is_terminal and time.monotonic() - said >= LINE_SECONDS:
                        said = time.monotonic()
                        console.print(_line(what, done, total, said - begun))

        begun = time.monotonic()
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield counter
        finally:
            over.set()
            watcher.join()
            with suppress(RayError):  # an error that ends the job should not be hidden by one of its display
                done = ray.get(counter.done.remote())
                display.update(task, completed=done)
                if not console.is_terminal:
                    console.print(f"{what}: {done:,} in {time.monotonic() - begun:.0f} s")
                ray.kill(counter)


def _line(what: str, done: int, total: int | None, seconds: float) -> str:
    line = f"{what}: {done:,}{f' of {total:,}' if total else ''} in {seconds:.0f} s, {done / seconds:,.1f}/s"
    return f"{line}, {(total - done) * seconds / done:,.0f} s left" if total and 0 < done < total else line
