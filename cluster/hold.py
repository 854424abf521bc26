"""One job at a time on one target: a lock with a heartbeat, a small file beside what the job writes.

Object stores have no lock, and no way to create a file only if there is none. So a job writes a lock file of its own
first and then looks for others: of two that begin at once at least one sees the other, and whoever sees another backs
off. A lock is renewed while its job lives, and is stale when the heartbeat has stopped. Times are the store's own, of
its files, so clocks of machines need not agree.

A job can lose its lock without knowing: another one took over, or the job slept and was taken for dead. So whatever it
publishes is fenced (``check_held``). It counts its lock as lost well before others may count it as stale.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from retrieval.errors import UserError
from retrieval.folder import Folder

HOLDS = ".holds"
HEARTBEAT_SECONDS = 15
STALE_SECONDS = 120
LOST_SECONDS = STALE_SECONDS - 2 * HEARTBEAT_SECONDS
"""Without a heartbeat for so long, a job publishes no more. The rest is for what it is publishing just then."""


class Hold(NamedTuple):
    """The lock of one job: the job, its machine and process, when it began, and seconds since its last heartbeat."""

    file: str
    job: str
    host: str
    pid: int
    since: str
    silent_s: float
    boot: str | None = None
    pids: str | None = None
    """The kernel's boot and the namespace that ``pid`` is of; None in records of earlier versions, or if unknown."""

    @property
    def dead(self) -> bool:
        """Whether the process is known to be gone: a container of the same host name may not see a live one."""
        here = (socket.gethostname(), *_process_space())
        return None not in here and (self.host, self.boot, self.pids) == here and not _alive(self.pid)

    @property
    def stale(self) -> bool:
        """Whether its job has ended without releasing it, as far as can be known."""
        return self.dead or self.silent_s > STALE_SECONDS

    def __str__(self) -> str:
        return (
            f"{self.job} of process {self.pid} on {self.host}, since {self.since}, last heartbeat {self.silent_s:.0f} s"
            " ago"
        )


@contextmanager
def hold(target: Folder, job: str, *, take_over: bool = False) -> Iterator[None]:
    """Keep other jobs from writing to ``target`` until the block ends.

    Args:
        target: the folder that the job writes to.
        job: what it is, for the message that another job gets.
        take_over: break the locks of others, alive or not.

    Raises:
        UserError: another job has locked the target; the message says which, and how to break a lock without an owner.
    """
    file = f"{HOLDS}/{uuid.uuid4().hex}.json"
    mine = {
        "job": job,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    mine["boot"], mine["pids"] = _process_space()
    lock = _Lock(target, file, mine)
    lock.write()
    over = threading.Event()
    heartbeat = threading.Thread(target=_renew, args=(lock, over), daemon=True)
    token = _held.set((*_held.get(), lock))
    try:
        _back_off(target, file, take_over)
        heartbeat.start()
        yield
    finally:
        _held.reset(token)
        over.set()
        if heartbeat.is_alive():
            heartbeat.join()
        with suppress(OSError):
            target.delete(file)


def check_held(folder: Folder) -> None:
    """Refuse to publish in a folder whose lock this job had and has lost. Call it just before anything is published.

    A caller that has locked nothing there has nothing to lose.

    Raises:
        UserError: another job took over, or may have (``lock-lost``).
    """
    for lock in _held.get():
        if f"{folder.path}/".startswith(f"{lock.target.path}/"):
            lock.check()


def holds(target: Folder, now: float | None = None) -> list[Hold]:
    """Return the locks on a target, stale ones included.

    Args:
        target: the folder that jobs write to.
        now: seconds since the epoch by the store's clock; by default by this machine's.
    """
    now = datetime.now(UTC).timestamp() if now is None else now
    found = []
    for file in target.files(HOLDS, ".json"):
        # It may be gone, or half written, by the time that it is read. Any other error must not pass for no lock.
        with suppress(FileNotFoundError, ValueError, TypeError, AttributeError):
            record = {name: value for name, value in target.read_json(file).items() if name in Hold._fields}
            found.append(Hold(**record | {"file": file, "silent_s": max(now - target.modified(file), 0)}))
    return found


def _back_off(target: Folder, mine: str, take_over: bool) -> None:
    for other in holds(target, target.modified(mine)):
        if other.file == mine:
            continue
        if other.stale or take_over:
            target.delete(other.file)
        else:
            raise UserError(
                f"{target.uri} is locked by {other}. Wait until it ends. If it is dead, its lock becomes stale"
                f" {STALE_SECONDS} s after its last heartbeat; if you are sure that it is, take over.",
                code="locked",
                field="target",
            )


def _renew(lock: _Lock, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):  # a store may be away for a while
            if lock.lost():
                return
            lock.write()


class _Lock:
    """A lock of this process: its file, and when that was last renewed."""

    def __init__(self, target: Folder, file: str, content: dict[str, Any]) -> None:
        self.target, self.file, self.content = target, file, content
        self.renewed = _clock()

    def write(self) -> None:
        """Create or renew it."""
        began = _clock()  # the store may take its time
        self.target.write_json(self.file, self.content)
        self.renewed = began

    def lost(self) -> str | None:
        """Return why it is no longer this job's, or None. Once lost by time it stays so: nothing renews it any more."""
        silent = _clock() - self.renewed
        if silent > LOST_SECONDS:
            return f"it could not be renewed for {silent:.0f} s (the machine slept, or the store was away)"
        return None if self.target.exists(self.file) else "another job has taken over"

    def check(self) -> None:
        if why := self.lost():
            raise UserError(
                f"this job has lost its lock of {self.target.uri}, so it publishes nothing: {why}. See that no other"
                " job runs there, and run the same one again: it resumes",
                code="lock-lost",
                field="target",
            )


_held: ContextVar[tuple[_Lock, ...]] = ContextVar("held", default=())


def _clock() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


def _process_space() -> tuple[str | None, str | None]:
    """Return the kernel's boot and the namespace of process ids, within which a process id means one process."""
    if sys.platform != "linux":
        return "", ""  # there are no containers: the host's name tells
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None, None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
