"""Inputs of a gallery: the columns of a frozen list of them, and the bytes of each as they are read from its source.

A list is Parquet that ``pipelines.sources`` writes. A row of it is a file, a range of one (a member of a tar), a row of
a Parquet file, or a URI; ``InputReader`` reads rows of any kind. An input that can not be read costs its own row.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, TypeVar
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from retrieval.folder import Folder
from retrieval.images import MAX_BYTES, ImageRejected

INPUTS: Final = pa.schema(
    [
        ("input", pa.int64()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("row_group", pa.int32()),
        ("row", pa.int32()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""Columns of every list of inputs; those of its metadata follow.

``input``: ordinal from 0. ``path``: the name that results show, unique within the list. ``file``: what holds the input,
relative to the source's folder, or a URI or absolute path for lists of such; ``offset`` and ``length``: the range of it
that is a tar's member; ``row_group`` and ``row`` (in that group): the row of a Parquet file with bytes. ``size`` in
bytes and ``mtime_ns`` are of ``file``. ``reason`` and ``detail``: why the input is known not to be usable, else null.
"""

SCHEMES: Final = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""Of URIs that a list may have: what ``pyarrow.fs`` reads."""

# Beside what the store's own client does about it. What it says of an error that will not pass:
_ATTEMPTS, _PAUSE_S = 3, 0.2
_LASTING = ("ACCESS_DENIED", "NO_SUCH", "NOT_FOUND", "RESOURCE_NOT_FOUND", "INVALID", "SIGNATURE", "PERMISSION")
# A gap of this size (other members of a sample) is read and thrown away rather than asked around; what is asked for at
# once stays below the second bound, unless it is one image.
_GAP, _REQUEST = 64 * 2**10, 32 * 2**20
# A row group is held whole up to here; a larger one is read through, in batches of about the second size.
_GROUP, _BATCH = 128 * 2**20, 16 * 2**20
_THREADS = 8  # object stores answer one request in tens of milliseconds, and many at once


def base_of(source: str) -> tuple[Folder, str | None]:
    """Return the folder that a source's files are relative to, and the file's name in it if the source is one file.

    Raises:
        ValueError: there is nothing there.
        OSError: it can not be seen whether there is; a PermissionError says what to do about credentials.
    """
    root = Folder(source)
    if not root.exists():
        advice = "" if root.local_path else "; look at the bucket's name and region too"
        raise ValueError(
            f"there is nothing at {root.uri}; expected an image folder, Parquet, tars, or a list of URIs (.csv,"
            f" .txt){advice}"
        )
    if root.filesystem.get_file_info(root.path).type == fs.FileType.File:
        return root.parent, root.name
    return root, None


def is_safe(name: str) -> bool:
    """Whether a relative name with forward slashes leads down: no part of it is empty, hidden, ``.`` or ``..``."""
    return "\0" not in name and all(part and not part.startswith(".") for part in name.split("/"))


def is_relative(file: str) -> bool:
    """Whether what a row names lies in the source itself, and not at a path or URI of its own."""
    return not file.startswith("/") and "://" not in file


def hashes_of(names: Iterable[str], key: bytes = b"") -> np.ndarray:
    """Return 64 bits of hash of each name, uint64; with a secret key nobody can look for names of equal hashes."""
    digests = (hashlib.blake2b(name.encode(errors="replace"), digest_size=8, key=key).digest() for name in names)
    return np.frombuffer(b"".join(digests), np.uint64)


T = TypeVar("T")


class _Lasting(OSError):
    """An error that will be the same at the next attempt."""


class _Row(NamedTuple):
    """Where one input lies."""

    file: str
    offset: int | None
    length: int | None
    row_group: int | None
    row: int | None
    size: int
    mtime_ns: int
    reason: str | None
    detail: str | None


Content = bytes | Exception


class InputReader:
    """Reads rows of a list of inputs. May be pickled; several threads may read at once.

    It holds at most one row group of a Parquet file, of 128 MiB, from one call to the next.

    Args:
        source: what was listed (``pipelines.sources.list_inputs``), which is opened when the first row is read.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._opening = threading.Lock()
        self._base: Folder | None = None
        self._stores: dict[tuple[str, str], fs.FileSystem] = {}
        self._group = _Group()

    def __reduce__(self) -> tuple[type[InputReader], tuple[str]]:
        return type(self), (self.source,)

    def read(self, rows: pa.Table) -> list[Content]:
        """Return the bytes of each row of a list, in order, or why they can not be had.

        Never more than ``MAX_BYTES`` are read for one input that is not a row of Parquet. What an object store fails to
        give is asked for a few times.

        Returns:
            For each row its bytes; or an ImageRejected, for a row that has a ``reason``, and for one of too many bytes;
            or an OSError that says what could not be read.
        """
        places = [_Row(*values) for values in zip(*(rows[name].to_pylist() for name in _Row._fields), strict=True)]
        contents: list[Content] = [b""] * len(places)
        runs = list(_runs(places))

        def read(run: list[int]) -> None:
            for i, content in zip(run, self._run([places[i] for i in run]), strict=True):
                contents[i] = content

        if len(runs) > 1 and self._is_remote(places):
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(read, runs))
        else:
            for run in runs:
                read(run)
        return contents

    def check_source(self) -> None:
        """Tell an input that can not be read from a source that is away: a mount that went, a store that is down.

        Raises:
            FileNotFoundError: there is nothing where the source was.
            OSError: it can not be seen whether there is.
        """
        cause: ValueError | None = None
        try:
            base = self._folder()
            there = patiently(base.filesystem, base.exists) and not (base.local_path and _is_empty(base.local_path))
        except ValueError as error:
            there, cause = False, error
        if not there:
            raise FileNotFoundError(
                f"the source {self.source} is not there any more, seen from {platform.node()}. When every machine of"
                " the job has it, run the same command again: it goes on where it stopped"
            ) from cause

    def _is_remote(self, places: Sequence[_Row]) -> bool:
        if any("://" in place.file for place in places):
            return True
        with suppress(OSError, ValueError):
            return self._folder().local_path is None
        return False

    def _folder(self) -> Folder:
        with self._opening:
            if self._base is None:
                self._base = base_of(self.source)[0]
            return self._base

    def _run(self, run: Sequence[_Row]) -> list[Content]:
        """Read rows that lie together: see ``_runs``."""
        first = run[0]
        if first.reason is not None:
            return [ImageRejected(row.reason or "", row.detail or "") for row in run]
        try:
            filesystem, path = self.place(first.file)
            return patiently(filesystem, lambda: self._contents(filesystem, path, run))
        except (OSError, ValueError) as error:  # pyarrow's own errors are of these
            return [_unreadable(first.file, error)] * len(run)

    def _contents(self, filesystem: fs.FileSystem, path: str, run: Sequence[_Row]) -> list[Content]:
        first = run[0]
        if first.row_group is not None:
            return self._group.read(filesystem, path, first.row_group, [row.row or 0 for row in run], first)
        _check_regular(filesystem, path)
        if first.offset is not None:
            _check_unchanged(filesystem, path, first)
        with filesystem.open_input_file(path) as file:
            if first.offset is not None:
                return _ranges(file, run)
            size = file.size()
            if size > MAX_BYTES:
                return [_too_many(size)]
            data = file.read(MAX_BYTES + 1)
            return [data if len(data) <= MAX_BYTES else _too_many(len(data))]

    def place(self, file: str) -> tuple[fs.FileSystem, str]:
        """Return filesystem and path of what a row names."""
        if file.startswith("/"):
            return fs.LocalFileSystem(), file
        folder = self._folder()
        if "://" not in file:
            return folder.filesystem, f"{folder.path}/{file}"
        scheme, authority, path, options = split_uri(file)
        if scheme not in SCHEMES:
            raise ValueError(f"URIs of {scheme} are not read")
        if not options and folder.uri.startswith(f"{scheme}://"):  # of the same store as the list itself
            options = folder.uri.partition("?")[2]
        key = (f"{scheme}://{authority}", options)
        if key not in self._stores:
            self._stores[key] = Folder(key[0] + ("?" + options if options else "/")).filesystem
        return self._stores[key], path if scheme in ("file", "hdfs", "viewfs") else f"{authority}{path}"


def split_uri(uri: str) -> tuple[str, str, str, str]:
    """Return scheme, authority, path (with its leading slash, percent signs decoded) and options of a URI."""
    scheme, _, rest = uri.partition("://")
    place, _, options = rest.partition("?")
    authority, slash, path = place.partition("/")
    return scheme.lower(), authority, slash + unquote(path), options


def _runs(places: Sequence[_Row]) -> Iterator[list[int]]:
    """Group rows that are read together: consecutive ones of one row group, or of one tar and not far apart."""
    run: list[int] = []
    for i, place in enumerate(places):
        if run and not _together(places[run[0]], places[run[-1]], place):
            yield run
            run = []
        run.append(i)
    if run:
        yield run


def _together(first: _Row, last: _Row, next_: _Row) -> bool:
    if first.reason is not None or next_.reason is not None:
        return first.reason is not None and next_.reason is not None
    if next_.file != first.file:
        return False
    if first.row_group is not None:
        return next_.row_group == first.row_group
    if first.offset is None or last.offset is None or next_.offset is None:
        return False
    gap = next_.offset - last.offset - (last.length or 0)
    end = next_.offset + (next_.length or 0)
    return 0 <= gap <= _GAP and end - first.offset <= min(_REQUEST, MAX_BYTES)


def _ranges(file: pa.NativeFile, run: Sequence[_Row]) -> list[Content]:
    spans = [(row.offset or 0, row.length or 0) for row in run]
    if len(run) == 1 and spans[0][1] > MAX_BYTES:
        return [_too_many(spans[0][1])]
    start = spans[0][0]
    data = file.read_at(spans[-1][0] + spans[-1][1] - start, start)
    pieces = [data[offset - start :][:length] for offset, length in spans]
    return [
        piece if len(piece) == length else OSError(f"{row.file} ends {length - len(piece):,} bytes before this member")
        for piece, (_, length), row in zip(pieces, spans, run, strict=True)
    ]


class _Group:
    """The last row group that was read: whole if it is small, else as far as it was read through."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._key: tuple[str, int, int] | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._start, self._images = 0, pa.array([], pa.binary())

    def read(
        self, filesystem: fs.FileSystem, path: str, group: int, rows: Sequence[int], listed: _Row
    ) -> list[Content]:
        """Return the column ``image`` of some rows of a group.

        Raises:
            OSError: the group can not be read, or the file is not the one that was listed.
        """
        with self._lock:
            try:
                return [self._image(filesystem, path, group, row, listed) for row in rows]
            except BaseException:
                self._forget()
                raise

    def _image(self, filesystem: fs.FileSystem, path: str, group: int, row: int, listed: _Row) -> Content:
        key = (path, group, listed.size)
        if self._key != key or row < self._start:
            self._forget()
            self._batches = _image_batches(filesystem, path, group, listed)
            self._key = key
        while row >= self._start + len(self._images):
            batch = next(self._batches, None)
            if batch is None:
                raise _Lasting(f"{listed.file} has no row {row} in row group {group}")
            self._start += len(self._images)
            self._images = batch.column(0)
        image = self._images[row - self._start].as_py()
        data = image["bytes"] if isinstance(image, dict) else image
        if data is None:
            return ImageRejected("empty", "the row has no image (null)")
        return data if len(data) <= MAX_BYTES else _too_many(len(data))


def _image_batches(filesystem: fs.FileSystem, path: str, group: int, listed: _Row) -> Iterator[pa.RecordBatch]:
    _check_unchanged(filesystem, path, listed)
    with filesystem.open_input_file(path) as stream:
        file = pq.ParquetFile(stream, buffer_size=2**20)
        metadata = file.metadata.row_group(group)
        of_image = [metadata.column(i) for i in range(metadata.num_columns)]
        size = sum(c.total_uncompressed_size for c in of_image if c.path_in_schema in ("image", "image.bytes"))
        batch = metadata.num_rows if size <= _GROUP else metadata.num_rows * _BATCH // size
        yield from file.iter_batches(max(batch, 1), row_groups=[group], columns=image_columns(file.schema_arrow))


def image_columns(schema: pa.Schema) -> list[str]:
    """Return what to read of a Parquet file for its images: ``image``, or of a struct only the bytes."""
    return ["image.bytes"] if pa.types.is_struct(schema.field("image").type) else ["image"]


def _is_empty(folder: Path) -> bool:
    """Whether there is nothing in a folder, as in one that nothing is mounted at."""
    with os.scandir(folder) as entries:
        return next(entries, None) is None


def _check_regular(filesystem: fs.FileSystem, path: str) -> None:
    # A pipe would be waited for without end, and a device never ends.
    if isinstance(filesystem, fs.LocalFileSystem) and not stat.S_ISREG(Path(path).stat().st_mode):
        raise _Lasting("it is not a file")


def _check_unchanged(filesystem: fs.FileSystem, path: str, listed: _Row) -> None:
    # Of another file, what was listed would be any bytes at all. The size alone does not say: tars are filled up.
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"{listed.file} is gone since it was listed")
    if (info.size, info.mtime_ns or 0) != (listed.size, listed.mtime_ns):
        raise _Lasting(
            f"{listed.file} has changed since it was listed: it had {listed.size:,} bytes and has {info.size:,}, or was"
            " written again; list it again"
        )


def _too_many(size: int) -> ImageRejected:
    return ImageRejected("too-many-bytes", f"the file has {size:,} bytes, the limit is {MAX_BYTES:,}")


def _unreadable(file: str, error: Exception) -> OSError:
    if isinstance(error, _Lasting):
        return OSError(str(error))
    if isinstance(error, OSError) and not isinstance(error, pa.ArrowException):
        return error
    return OSError(f"{file}: {error}")


def patiently(filesystem: fs.FileSystem, read: Callable[[], T]) -> T:
    """Read, and a few times more where what stops it may pass: a store that is busy, a connection that breaks."""
    for attempt in range(0 if isinstance(filesystem, fs.LocalFileSystem) else _ATTEMPTS - 1):
        try:
            return read()
        except OSError as error:
            if isinstance(error, FileNotFoundError | _Lasting) or any(word in str(error) for word in _LASTING):
                raise
        time.sleep(_PAUSE_S * 2**attempt)
    return read()
