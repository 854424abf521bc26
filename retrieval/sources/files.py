"""Files of a folder: what a walk over it meets, on a disk and in an object store."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pyarrow import fs

from retrieval.folder import Folder, advice


class File(NamedTuple):
    """A file of a source.

    Attributes:
        name: relative to the source's folder, with forward slashes.
        size: bytes.
        mtime_ns: when it was last changed, nanoseconds since the epoch.
        reason, detail: why it is known not to be usable, else None.
    """

    name: str
    size: int
    mtime_ns: int
    reason: str | None = None
    detail: str | None = None


def suffix(name: str) -> str:
    """Return what follows the last dot of a name, in lower case."""
    return posixpath.splitext(name)[1][1:].lower()


def is_safe(name: str) -> bool:
    """Return whether a relative name leads down only: no part of it is empty, hidden, ``.`` or ``..``."""
    return "\0" not in name and all(part and not part.startswith(".") for part in name.split("/"))


def files_in(root: Folder) -> Iterator[File]:
    """Yield the files of a folder, folder by folder in the order of names, without hidden ones (``.name``).

    What cannot be listed or named has a reason. Links are followed, but not to a folder that they lie in; one that
    leads nowhere is a file of no bytes, whose reading will say so.

    Raises:
        OSError: the folder itself, or one in an object store, cannot be listed now.
    """
    return _local_files(root.local_path) if root.local_path else _remote_files(root)


def _local_files(top: Path) -> Iterator[File]:
    # Arrow's own listing follows a link to a folder above it until the path is too long, silently leaves out links to
    # nothing, and fails as a whole at a name that is not UTF-8.
    todo: list[tuple[str, Path, tuple[Path, ...]]] = [("", top, (top.resolve(),))]
    while todo:
        inside, folder, above = todo.pop()
        below = []
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if not inside:
                raise
            detail = f"the folder {inside} cannot be listed: {error.strerror}"
            yield File(inside.rstrip("/"), 0, 0, "unreadable", detail)
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = inside + os.fsencode(entry.name).decode(errors="backslashreplace")
            try:
                if name != inside + entry.name:
                    yield File(name, 0, 0, "bad-name", f"the name {name} is not UTF-8; rename it")
                elif entry.is_file():
                    status = entry.stat()
                    yield File(name, status.st_size, status.st_mtime_ns)
                elif entry.is_dir():
                    place = Path(entry.path)
                    real = place.resolve() if entry.is_symlink() else above[-1] / entry.name
                    if real not in above:
                        below.append((f"{name}/", place, (*above, real)))
                elif entry.is_symlink():
                    yield File(name, 0, 0)
            except (OSError, RuntimeError):  # links in a circle, or it vanished in between
                yield File(name, 0, 0)
        todo += reversed(below)


def _remote_files(root: Folder) -> Iterator[File]:
    todo = [""]
    while todo:
        inside = todo.pop()
        try:
            with advice(root):
                infos = root.filesystem.get_file_info(fs.FileSelector(f"{root.path}/{inside}".rstrip("/")))
        except FileNotFoundError as error:
            if not inside:
                raise
            detail = f"the folder {inside} vanished while it was listed: {error}"
            yield File(inside.rstrip("/"), 0, 0, "unreadable", detail)
            continue
        below = []
        for info in sorted(infos, key=lambda info: info.path):
            name = info.path[len(root.path) + 1 :]
            size, mtime = info.size or 0, info.mtime_ns or 0
            if info.base_name.startswith(".") and name:
                continue
            # A key may have an empty part, which Arrow reports as the folder itself.
            if not is_safe(name) or len(name) <= len(inside):
                shown = f"{inside}/"
                yield File(shown, size, mtime, "bad-name", f"there are keys of two slashes ({shown}…); rename them")
            elif info.type == fs.FileType.Directory:
                below.append(f"{name}/")
            elif info.type == fs.FileType.File:
                yield File(name, size, mtime)
        todo += reversed(below)
