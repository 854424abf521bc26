"""Reading rows of a list of inputs: those that lie together in one go, bounded, with retries, each for itself."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from pyarrow import fs

from retrieval.errors import UserError
from retrieval.images import MAX_BYTES, ImageRejected
from retrieval.sources.inputs import Row, rows_of
from retrieval.sources.places import Places
from retrieval.sources.retries import PermanentError, with_retries

_THREADS = 8  # object stores answer one request in tens of milliseconds, and many at once

Content = bytes | Exception
"""The bytes of an input, or why it has none: an ImageRejected, or an OSError that says what could not be read."""


class RowReader(Protocol):
    """Reads rows of one kind of file. Several threads may read at once."""

    def together(self, first: Row, last: Row, following: Row) -> bool:
        """Return whether a row is read in one go with those of the same file from ``first`` to ``last``."""

    def read(self, filesystem: fs.FileSystem, path: str, rows: Sequence[Row]) -> list[Content]:
        """Return the contents of rows that are read together.

        Raises:
            OSError: none can be read; a PermanentError if a retry would not help.
        """


def read_rows(places: Places, rows: Sequence[Row], reader_of: Callable[[Row], RowReader]) -> list[Content]:
    """Return the content of each row, in order. An input that cannot be read costs its own row.

    Args:
        places: finds what rows name.
        reader_of: the reader for a row, the same object for rows that may be read together.
    """
    contents: list[Content] = [b""] * len(rows)
    runs = list(_runs(rows, reader_of))

    def read(run: Sequence[int]) -> None:
        for i, content in zip(run, _read_run(places, [rows[i] for i in run], reader_of), strict=True):
            contents[i] = content

    if len(runs) > 1 and places.is_remote([row.file for row in rows]):
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(read, runs))
    else:
        for run in runs:
            read(run)
    return contents


def read_known(places: Places, table: pa.Table, reader: RowReader) -> dict[str, bytes]:
    """Return the bytes of inputs by path, without those that are gone or were rejected.

    Raises:
        OSError: one is there and cannot be read now.
    """
    found = {}
    contents = read_rows(places, rows_of(table), lambda row: reader)
    for path, content in zip(table["path"].to_pylist(), contents, strict=True):
        if isinstance(content, bytes):
            found[path] = content
        elif not isinstance(content, ImageRejected | FileNotFoundError):
            raise content
    return found


def _runs(rows: Sequence[Row], reader_of: Callable[[Row], RowReader]) -> Iterator[list[int]]:
    """Group consecutive rows that are read together."""
    run: list[int] = []
    for i, row in enumerate(rows):
        if run and not _together(rows[run[0]], rows[run[-1]], row, reader_of):
            yield run
            run = []
        run.append(i)
    if run:
        yield run


def _together(first: Row, last: Row, row: Row, reader_of: Callable[[Row], RowReader]) -> bool:
    if first.reason is not None or row.reason is not None:
        return first.reason is not None and row.reason is not None
    if row.file != first.file:
        return False
    reader = reader_of(first)
    return reader_of(row) is reader and reader.together(first, last, row)


def _read_run(places: Places, rows: Sequence[Row], reader_of: Callable[[Row], RowReader]) -> list[Content]:
    first = rows[0]
    if first.reason is not None:
        return [ImageRejected(row.reason or "", row.detail or "") for row in rows]
    try:
        filesystem, path = places.locate(first.file)
        reader = reader_of(first)
        return with_retries(filesystem, lambda: reader.read(filesystem, path, rows))
    except (OSError, pa.ArrowException, UserError) as error:
        return [_unreadable(first.file, error)] * len(rows)


def _unreadable(file: str, error: Exception) -> OSError:
    if isinstance(error, PermanentError):
        return OSError(str(error))
    if isinstance(error, OSError) and not isinstance(error, pa.ArrowException):
        return error
    return OSError(f"{file}: {error}")


def over_limit(size: int) -> ImageRejected | None:
    """Return why an input of so many bytes is not read, None if it may be."""
    if size <= MAX_BYTES:
        return None
    return ImageRejected("too-many-bytes", f"the file has {size:,} bytes, the limit is {MAX_BYTES:,}")


def check_regular(filesystem: fs.FileSystem, path: str) -> None:
    """Refuse what is not a file: a pipe would be waited for without end, and a device never ends.

    Raises:
        OSError: it is not a file, or not there.
    """
    if isinstance(filesystem, fs.LocalFileSystem) and not stat.S_ISREG(Path(path).stat().st_mode):
        raise PermanentError("it is not a file")


def check_unchanged(filesystem: fs.FileSystem, path: str, listed: Row) -> None:
    """Refuse another file than was listed: at the place of an input it would have any bytes at all.

    Raises:
        OSError: it has another size or time of change (the size alone does not say: tars are padded), or is gone.
    """
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"{listed.file} is gone since it was listed")
    if (info.size, info.mtime_ns or 0) != (listed.size, listed.mtime_ns):
        raise PermanentError(
            f"{listed.file} has changed since it was listed: it had {listed.size:,} bytes and has {info.size:,}, or was"
            " written again; list it again"
        )
