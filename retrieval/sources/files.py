"""Files of a source: which there are, and which of them list inputs themselves."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
from pyarrow import fs

from retrieval.folder import Folder, advice
from retrieval.sources.metadata import clean
from retrieval.sources.reader import INPUTS, is_safe

IMAGE_SUFFIXES = frozenset(
    [
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff"),
        *("heic", "heif", "avif", "jxl", "jp2", "svg", "psd", "ico", "ppm", "pgm", "tga"),
    ]
)
"""Of names that promise an image, readable or not."""
_COMPRESSED = ("gz", "tgz", "bz2", "tbz2", "xz", "txz", "zst", "zip")
ROWS = 65_536

T = TypeVar("T")


class File(NamedTuple):
    """A file of a source: its name relative to it, bytes, and when it was last changed."""

    name: str
    size: int
    mtime_ns: int
    reason: str | None = None
    detail: str | None = None


def suffix(name: str) -> str:
    """Return what follows the last dot of a name, in small letters."""
    return posixpath.splitext(name)[1][1:].lower()


def kind_of(name: str) -> str | None:
    """Return the kind of file that lists inputs by its name: parquet, tar, or list; None for any other."""
    kind = suffix(name)
    if kind in _COMPRESSED and (kind.startswith("t") or suffix(name.rpartition(".")[0]) == "tar"):
        return "tar"
    return {"parquet": "parquet", "tar": "tar", "csv": "list", "txt": "list"}.get(kind)


def inputs_table(file: File, paths: Sequence[str] | pa.Array, columns: dict[str, Any]) -> pa.Table:
    """Return rows of a list: all are of ``file`` unless the columns say otherwise; what they do not say is null."""
    given = {
        "file": [file.name] * len(paths),
        "size": [file.size] * len(paths),
        "mtime_ns": [file.mtime_ns] * len(paths),
    }
    given |= columns | {"path": paths}
    ours = {
        field.name: _array(given.pop(field.name), field.type)
        if field.name in given
        else pa.nulls(len(paths), field.type)
        for field in INPUTS
        if field.name != "input"
    }
    return pa.table(ours | given)


def _array(values: Any, type_: pa.DataType) -> Any:
    return values.cast(type_) if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, type_)


def refused(file: File, reason: str, detail: str, path: str | None = None) -> pa.Table:
    """Return the row of something that can not be used: a whole file, or what ``path`` names."""
    return inputs_table(file, [clean(path or file.name)], {"reason": [reason], "detail": [clean(detail)]})


def pieces(items: Iterable[T], size: int = ROWS) -> Iterator[list[T]]:
    """Yield items as lists of at most ``size``."""
    rest = iter(items)
    while piece := list(islice(rest, size)):
        yield piece


def files_in(root: Folder) -> Iterator[File]:
    """Yield the files of a folder, folder by folder in the order of names; hidden ones (``.name``) are passed over.

    What can not be listed or named has a reason. Links are followed, but not to a folder that they lie in; one that
    leads nowhere is a file of no bytes, whose reading will say so.

    Raises:
        OSError: the folder itself, or one in an object store, can not be listed now.
    """
    return _local_files(root.local_path) if root.local_path else _remote_files(root)


def _local_files(top: Path) -> Iterator[File]:
    # Arrow's own listing follows a link to a folder above it until the path is too long, leaves out links to nothing
    # without a word, and fails as a whole at a name that is not UTF-8.
    todo: list[tuple[str, Path, tuple[Path, ...]]] = [("", top, (top.resolve(),))]
    while todo:
        inside, folder, above = todo.pop()
        below = []
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if not inside:
                raise
            yield File(
                inside.rstrip("/"), 0, 0, "unreadable", f"the folder {inside} can not be listed: {error.strerror}"
            )
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
                elif entry.is_symlink():  # to nothing; its reading says so
                    yield File(name, 0, 0)
            except (OSError, RuntimeError):  # links in a circle, or it went in between
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
            yield File(inside.rstrip("/"), 0, 0, "unreadable", f"the folder {inside} went while it was listed: {error}")
            continue
        below = []
        for info in sorted(infos, key=lambda info: info.path):
            name = info.path[len(root.path) + 1 :]
            size, mtime = info.size or 0, info.mtime_ns or 0
            if info.base_name.startswith(".") and name:
                continue
            # A key may have an empty part, which Arrow says as the folder itself.
            if not is_safe(name) or len(name) <= len(inside):
                shown = f"{inside}/"
                yield File(shown, size, mtime, "bad-name", f"there are keys of two slashes ({shown}…); rename them")
            elif info.type == fs.FileType.Directory:
                below.append(f"{name}/")
            elif info.type == fs.FileType.File:
                yield File(name, size, mtime)
        todo += reversed(below)
