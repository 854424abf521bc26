"""How far a job is: one display on the driver, and the counter that its workers add to."""

from __future__ import annotations

import collections
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import NamedTuple, Protocol

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
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

from cluster.session import in_process

console = Console(stderr=True)
LINE_SECONDS = 60
NAMESPACE = "mindseye"
"""Of Ray: where the counters of each driver have its id as their name, so that others find them."""
Log = Callable[[str], None]
"""What a job is given to log a line for whoever runs it."""


def silent(line: str) -> None:
    """Log nothing."""


class ProgressCounter(Protocol):
    """What the workers of a job have done so far. It can be sent to them."""

    def add(self, count: int = 0, **seconds: float) -> None:
        """Count what was done, and the seconds of one worker that went into each part of it."""

    def flush(self) -> None:
        """Return when all that this worker has added is counted."""

    def done(self) -> int: ...

    def seconds(self) -> dict[str, float]: ...


class LocalCounter:
    """A counter within one process."""

    def __init__(self) -> None:
        self._done = 0
        self._seconds: collections.Counter[str] = collections.Counter()

    def add(self, count: int = 0, **seconds: float) -> None:
        self._done += count
        self._seconds.update(seconds)

    def flush(self) -> None:
        pass

    def done(self) -> int:
        return self._done

    def seconds(self) -> dict[str, float]:
        return dict(self._seconds)


class Stage(NamedTuple):
    """What a job is at: what it does, how much of it is done, of how much, and for how many seconds it has."""

    what: str
    done: int
    total: int | None
    seconds: float


class _Counts:
    """The counters of a driver by name, and what each counts."""

    def __init__(self) -> None:
        self._counters: collections.defaultdict[str, LocalCounter] = collections.defaultdict(LocalCounter)
        self._started: dict[str, tuple[str, int | None, float]] = {}

    def start(self, name: str, what: str, total: int | None) -> None:
        self._started[name] = what, total, time.monotonic()

    def add(self, name: str, count: int, seconds: dict[str, float]) -> None:
        self._counters[name].add(count, **seconds)

    def flush(self) -> None:
        pass

    def done(self, name: str) -> int:
        return self._counters[name].done()

    def seconds(self, name: str) -> dict[str, float]:
        return self._counters[name].seconds()

    def stages(self) -> list[Stage]:
        now = time.monotonic()
        return [Stage(what, self.done(name), total, now - at) for name, (what, total, at) in self._started.items()]

    def drop(self, name: str) -> None:
        self._counters.pop(name, None)
        self._started.pop(name, None)


@lru_cache(maxsize=1)
def _counts(node: str, job: str) -> ActorHandle:
    """One actor for all counters of a driver: each that starts takes a worker, and with it what that one has loaded.
    It is on the driver's own node: the loss of any other must not cost a job its count.
    """
    here = NodeAffinitySchedulingStrategy(node, soft=True)
    named = {"namespace": NAMESPACE, "name": job, "get_if_exists": True}
    return ray.remote(_Counts).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here, **named).remote()


class RayCounter(NamedTuple):
    """A counter in an actor, which any worker can reach. Its loss costs a job its count alone."""

    actor: ActorHandle
    name: str

    @classmethod
    def start(cls, what: str, total: int | None) -> RayCounter:
        context = ray.get_runtime_context()
        counter = cls(_counts(context.get_node_id(), context.get_job_id()), uuid.uuid4().hex)
        counter.actor.start.remote(counter.name, what, total)
        return counter

    def add(self, count: int = 0, **seconds: float) -> None:
        self.actor.add.remote(self.name, count, seconds)

    def flush(self) -> None:
        with suppress(RayError):
            ray.get(self.actor.flush.remote())  # calls of one worker are answered in order

    def done(self) -> int:
        return ray.get(self.actor.done.remote(self.name))

    def seconds(self) -> dict[str, float]:
        with suppress(RayError):
            return ray.get(self.actor.seconds.remote(self.name))
        return {}

    def stop(self) -> None:
        self.actor.drop.remote(self.name)


class _Rate(ProgressColumn):
    """Steps per second, of late."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text(f"{rate:,.1f}/s" if rate else "")


@contextmanager
def progress(what: str, total: int | None) -> Iterator[ProgressCounter]:
    """Show how far a job is; hand the yielded counter to its workers, which add to it what they have done.

    On a terminal this is a bar with the rate and the time left; elsewhere one line at the start, one a minute and one
    at the end.
    """
    counter: LocalCounter | RayCounter = LocalCounter() if in_process() else RayCounter.start(what, total)
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
            logged = time.monotonic()
            with suppress(RayError):
                while not over.wait(0.5):
                    done = counter.done()
                    display.update(task, completed=done)
                    if not console.is_terminal and time.monotonic() - logged >= LINE_SECONDS:
                        logged = time.monotonic()
                        console.print(_line(what, done, total, logged - started))

        started = time.monotonic()
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield counter
        finally:
            over.set()
            watcher.join()
            with suppress(RayError):  # an error that ends the job should not be hidden by one of its display
                done = counter.done()
                display.update(task, completed=done)
                if not console.is_terminal:
                    console.print(f"{what}: {done:,} in {time.monotonic() - started:.0f} s")
            if isinstance(counter, RayCounter):
                counter.stop()


def stages(seconds: float = 5) -> dict[str, list[Stage]]:
    """Return what the jobs of the cluster that this process is connected to are at, by the ids of their drivers.

    Args:
        seconds: to wait for counters, which a busy job may keep from answering.
    """
    named = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if each["namespace"] == NAMESPACE]
    asked = {}
    for driver in sorted(named):
        with suppress(ValueError, RayError):  # it has ended meanwhile
            asked[ray.get_actor(driver, namespace=NAMESPACE).stages.remote()] = driver
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds) if asked else ([], [])
    found: dict[str, list[Stage]] = {}
    for answer in answered:
        with suppress(RayError):
            found[asked[answer]] = ray.get(answer)
    return found


def _line(what: str, done: int, total: int | None, seconds: float) -> str:
    line = f"{what}: {done:,}{f' of {total:,}' if total else ''} in {seconds:.0f} s, {done / seconds:,.1f}/s"
    return f"{line}, {(total - done) * seconds / done:,.0f} s left" if total and 0 < done < total else line
