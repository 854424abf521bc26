"""One job at a time on one target: a lock with a heartbeat, a small file beside what the job writes.

Object stores have no lock, and no way to create a file only if there is none. So a job writes a lock file of its own
first and then looks for others: of two that begin at once at least one sees the other, and whoever sees another backs
off. A lock is renewed while its job lives, and is stale when the heartbeat has stopped. Times are the store's own, of
its files, so clocks of machines need not agree.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from retrieval.errors import UserError
from retrieval.folder import Folder

HOLDS = ".holds"
HEARTBEAT_SECONDS = 15
STALE_SECONDS = 120


class Hold(NamedTuple):
    """The lock of one job: the job, its machine and process, when it began, and seconds since its last heartbeat."""

    file: str
    job: str
    host: str
    pid: int
    since: str
    silent_s: float

    @property
    def dead(self) -> bool:
        """Whether the process is known to be gone."""
        return self.host == socket.gethostname() and not _alive(self.pid)

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
    target.write_json(file, mine)
    over = threading.Event()
    heartbeat = threading.Thread(target=_renew, args=(target, file, mine, over), daemon=True)
    try:
        _back_off(target, file, take_over)
        heartbeat.start()
        yield
    finally:
        over.set()
        if heartbeat.is_alive():
            heartbeat.join()
        with suppress(OSError):
            target.delete(file)


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
        with suppress(FileNotFoundError, ValueError, TypeError):
            found.append(Hold(file, **target.read_json(file), silent_s=max(now - target.modified(file), 0)))
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
                f" {STALE_SECONDS} s after its last heartbeat; if you are sure that it is, take over (--take-over).",
                code="locked",
                field="target",
            )


def _renew(target: Folder, file: str, content: dict[str, Any], over: threading.Event) -> None:
    while not over.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):  # a store may be away for a while
            if not target.exists(file):  # another job was told to take over
                return
            target.write_json(file, content)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
