"""Shards of an object store, downloaded once to this machine's disk, for all processes of its user.

A shard never changes and has a checksum of each file in its version's manifest, so its copy is known by those:
versions, and indexes, that share a shard share the copy. ``DIGEST`` is the folder of a copy and ``DIGEST.lock`` its
lock: exclusive for whoever downloads or evicts it, shared for whoever has it open, until that shard is closed. So one
process downloads and the others wait, and what is mapped is not evicted. A process that dies leaves no lock behind.

``MINDSEYE_SHARD_CACHE`` names the folder, which must lie on a disk of this machine; by default it is
``mindseye/shards`` in ``XDG_CACHE_HOME``. ``MINDSEYE_SHARD_CACHE_BYTES`` bounds it, by default half of what it and the
free space of its disk come to; those that were not opened for longest are evicted, and 0 keeps no copies.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from retrieval.errors import DamagedError, UserError
from retrieval.folder import Folder
from retrieval.index.files import verify

FOLDER, BYTES = "MINDSEYE_SHARD_CACHE", "MINDSEYE_SHARD_CACHE_BYTES"
Files = Mapping[str, Mapping[str, Any]]
"""Bytes and sha256 of each file of a shard, as the manifest of an index has them."""
T = TypeVar("T")
_PIECE_BYTES = 8 * 2**20
_SEALED_NS: Final = 946_684_800 * 10**9
"""When files of a finished copy say that they were written: any later write shows."""
_PAUSE_S: Final = 0.01
_FULL = (errno.ENOSPC, errno.EDQUOT)
log = logging.getLogger(__name__)


class Unusable(Exception):
    """The cache cannot hold a shard; the message says why."""


def open_copy(source: Folder, files: Files, opener: Callable[[Path], T], *, verified: bool = False) -> T:
    """Open the files of a shard from this machine's copy, downloaded first if there is none.

    Where the cache cannot hold it (its bound is too small, its disk full or read-only), a line of the log says so and
    the copy is a temporary one, deleted as soon as it is open: what is mapped stays readable until it is unmapped.

    Args:
        source: the shard's folder.
        files: of the shard; all are downloaded.
        opener: makes what is returned of the folder of the copy, which is not evicted as long as that lives.
        verified: compare the checksums of a copy that was there with ``files`` again. Without it, one that was written
            to since it was downloaded is noticed by sizes and times. Either way it is downloaded anew.

    Raises:
        UserError: the bound is no number of bytes (``malformed``).
        DamagedError: the source has not the bytes that ``files`` records; the field is the file's name.
        OSError: the store fails, or neither the cache nor the temporary folder has room.
    """
    if odd := [name for name in files if Path(name).name != name]:
        raise DamagedError(f"{source.uri} cannot have a file named {odd[0]!r}", field=odd[0])
    with ExitStack() as held:
        try:
            place = held.enter_context(_copy(cache_folder(), source, files, verified))
        except Unusable as why:
            log.warning("%s is downloaded to a temporary folder: %s", source.uri, why)
            with tempfile.TemporaryDirectory(prefix="mindseye-shard-") as scratch:
                _download(source, files, Path(scratch))
                return opener(Path(scratch))
        opened = opener(place)
        weakref.finalize(opened, held.pop_all().close)
    return opened


def cache_folder() -> Path:
    """Return the folder of the cache, which need not be there yet."""
    given = os.environ.get(FOLDER) or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/mindseye/shards"
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError as error:  # a container may have a user without a home
        raise Unusable(f"{given} is nowhere ({error})") from error


def cache_bound() -> int | None:
    """Return how many bytes the cache may hold; None if that depends on its disk.

    Raises:
        UserError: as ``open_copy``.
    """
    given = os.environ.get(BYTES)
    if given and not given.isdecimal():
        raise UserError(f"{BYTES} must be a number of bytes, not {given!r}", code="malformed", field=BYTES)
    return int(given) if given else None


@contextmanager
def _copy(folder: Path, source: Folder, files: Files, verified: bool) -> Iterator[Path]:
    """Hold the copy of a shard in a cache."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    place, lock = folder / digest, folder / f"{digest}.lock"
    if cache_bound() == 0:
        raise Unusable(f"{BYTES} is 0")
    with _needed(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(lock, os.O_RDWR | os.O_CREAT, 0o600))
    while True:
        with _locked(lock, fcntl.LOCK_SH):
            if _is_whole(place, files, verified):
                now = time.time_ns()  # the kernel's own stamps are some milliseconds apart
                os.utime(lock, ns=(now, now))
                yield place
                return
            changed = place.exists()
        # Nobody waits for an exclusive lock: whoever has the copy open may keep it so for ever, this process as well.
        try:
            with _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                if not _is_whole(place, files, verified):
                    _fetch(folder, place, source, files)
        except BlockingIOError as error:
            if changed:
                raise Unusable(f"{place} has changed since it was downloaded, and is in use") from error
            time.sleep(_PAUSE_S)  # for whoever looks at it for a moment; a download is waited for by the shared lock
        verified = False


def _is_whole(place: Path, files: Files, verified: bool) -> bool:
    try:
        stats = [(place / name).stat() for name in files]
    except FileNotFoundError:
        return False
    expected = [(file["bytes"], _SEALED_NS) for file in files.values()]
    if [(stat.st_size, stat.st_mtime_ns) for stat in stats] != expected:
        log.warning("%s has changed since it was downloaded, and is downloaded again", place)
        return False
    if verified:
        try:
            verify(place, files)
        except DamagedError as damage:
            log.warning("%s; it is downloaded again", damage)
            return False
    return True


def _fetch(folder: Path, place: Path, source: Folder, files: Files) -> None:
    """Download a shard into the cache; whoever calls it has its lock."""
    partial = place.with_suffix(".partial")
    try:
        with _needed(folder), _room(folder):
            for leftover in (place, partial):
                shutil.rmtree(leftover, ignore_errors=True)
            _evict(folder, sum(file["bytes"] for file in files.values()))
            partial.mkdir()
            for name, file in files.items():
                with (partial / name).open("wb") as target:
                    if file["bytes"]:  # from now on it counts, and is no longer free
                        os.posix_fallocate(target.fileno(), 0, file["bytes"])
            _seal(partial, files)  # whether times are kept is seen before it is downloaded
        _download(source, files, partial)
        _seal(partial, files)
        with _room(folder):
            partial.rename(place)
    except OSError as error:
        if error.errno in _FULL:
            raise Unusable(f"the disk of {folder} is full ({error})") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _seal(place: Path, files: Files) -> None:
    for name in files:
        os.utime(place / name, ns=(_SEALED_NS, _SEALED_NS))
        if (place / name).stat().st_mtime_ns != _SEALED_NS:
            raise Unusable(f"{place.parent} does not keep the times of files")


def _download(source: Folder, files: Files, target: Path) -> None:
    for name, expected in files.items():
        found, left = hashlib.sha256(), expected["bytes"]
        path = target / name
        with source.open_input(name) as stream, path.open("r+b" if path.exists() else "wb") as file:
            while piece := stream.read(min(_PIECE_BYTES, left + 1)):
                found.update(piece)
                left -= len(piece)
                if left < 0:
                    break
                file.write(piece)
        if left or found.hexdigest() != expected["sha256"]:
            size = "more" if left < 0 else f"{expected['bytes'] - left:,}"
            raise DamagedError(
                f"{source.uri}/{name} is damaged: it has {size} bytes of SHA-256 {found.hexdigest()}, recorded were"
                f" {expected['bytes']:,} of {expected['sha256']}",
                field=name,
            )


class _Entry(NamedTuple):
    used: float
    lock: Path
    folders: tuple[Path, Path]
    bytes: int


def _entries(folder: Path) -> list[_Entry]:
    """What is in a cache, that which was not used for longest first."""
    entries = []
    for lock in folder.glob("*.lock"):
        folders = lock.with_suffix(""), lock.with_suffix(".partial")
        with suppress(FileNotFoundError):
            size = sum(file.stat().st_size for each in folders if each.exists() for file in each.iterdir())
            entries.append(_Entry(lock.stat().st_mtime, lock, folders, size))
    return sorted(entries)


def _evict(folder: Path, needed: int) -> None:
    """Make room for so many bytes, or evict nothing. Whoever calls it keeps others from doing the same."""
    entries = _entries(folder)
    used = sum(entry.bytes for entry in entries)
    given = cache_bound()
    bound = (shutil.disk_usage(folder).free + used) // 2 if given is None else given
    with ExitStack() as held:
        evicted = []
        for entry in entries:
            if used + needed <= bound:
                break
            with suppress(BlockingIOError):  # it is open, or being downloaded
                held.enter_context(_locked(entry.lock, fcntl.LOCK_EX | fcntl.LOCK_NB))
                evicted.append(entry)
                used -= entry.bytes
        if used + needed > bound:
            raise Unusable(
                f"it has {needed:,} bytes, {used:,} are in use, and {folder} may hold {bound:,} ({BYTES} sets that)"
            )
        for entry in evicted:
            for each in entry.folders:
                shutil.rmtree(each, ignore_errors=True)
            entry.lock.unlink()


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """One process at a time counts and changes what is there."""
    with _locked(folder / "room", fcntl.LOCK_EX):
        yield


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, how)
            if _is_at(file, path):
                yield
                return
        finally:
            os.close(file)


def _is_at(file: int, path: Path) -> bool:
    """Whether the file is still the one of that name: whoever evicts a copy deletes the file that others wait for."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _needed(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unusable(f"{folder} cannot be written to ({error})") from error
