"""Lists of URIs and paths, CSV or plain text: each line names an image that lies elsewhere.

Parquet that names images and does not hold them is read through the same functions (``named_inputs``, ``NamedImages``).
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import fs

from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.sources.files import File, suffix
from retrieval.sources.image_folder import WholeFiles
from retrieval.sources.inputs import (
    ROWS_PER_TABLE,
    hashes_of,
    inputs_table,
    path_column,
    pieces,
    rejected,
)
from retrieval.sources.metadata import labels_of, metadata_of
from retrieval.sources.places import SCHEMES, Places, is_relative, lies_inside, split_uri
from retrieval.sources.rows import read_known
from retrieval.sources.text import text

_LINE_BYTES, _LINES_PER_TABLE = 2**16, ROWS_PER_TABLE // 4
_THREADS = 16


class Lines(NamedTuple):
    """Some lines of a list: where each stands (``line 7``), what it names, its label (null if none), and metadata."""

    numbers: Sequence[str]
    values: Sequence[str | None]
    labels: pa.Array
    metadata: dict[str, Any]


class UriList:
    """The kind of file that has a URI, or a path, on each line."""

    title = "a list of URIs (.csv, .txt)"
    in_folders, alone = False, True

    def has(self, name: str) -> bool:
        return suffix(name) in ("csv", "txt")

    def inputs(self, root: Folder, files: Sequence[File]) -> Iterator[pa.Table]:
        for file in files:
            for lines in _lines_of(root, file):
                yield named_inputs(root, file, lines) if isinstance(lines, Lines) else lines

    def reader(self) -> WholeFiles:
        return WholeFiles()

    def lookup(self, root: Folder, name: str | None, *, links_out: bool) -> _Lookup:
        assert name is not None  # a folder is never of this kind
        return _Lookup(root, name, links_out)


# The lines of a list


def _lines_of(root: Folder, file: File) -> Iterator[Lines | pa.Table]:
    """Yield the lines of a list, and rows that say what is wrong with it."""
    return _csv_lines(root, file) if suffix(file.name) == "csv" else _text_lines(root, file)


def _csv_lines(root: Folder, file: File) -> Iterator[Lines | pa.Table]:
    rows = _csv_rows(csv.reader(_decoded(root, file)))
    _, names = next(rows, (0, []))
    column = path_column(names, has_images=False)
    if column is None or repeated(names):
        shown = ", ".join(names)[:200] or "nothing"
        problem = repeated(names) or f"has no column uri or path in its first line; it has {shown}"
        yield rejected(file, "wrong-columns", f"{file.name} {problem}")
        return
    for piece in pieces(rows, _LINES_PER_TABLE):
        good = [(number, row) for number, row in piece if len(row) == len(names)]
        if good:
            columns = zip(names, zip(*(row for _, row in good), strict=True), strict=True)
            table = pa.table({name: pa.array([value or None for value in c], pa.string()) for name, c in columns})
            yield lines_of_table(table, column, [f"line {number}" for number, _ in good])
        for number, row in piece:
            if len(row) != len(names):
                what = f"has {len(row)} fields, the first {len(names)}" if row else "cannot be read as CSV"
                yield rejected(file, "bad-row", f"line {number} of {file.name} {what}", f"{file.name}#line {number}")


def _csv_rows(rows: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield number and fields of each row that is not blank; no fields where it cannot be read."""
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            yield rows.line_num, []
            continue
        if row:
            yield rows.line_num, row


def _text_lines(root: Folder, file: File) -> Iterator[Lines]:
    lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(_decoded(root, file), 1))
    for piece in pieces(((number, line) for number, line in lines if line.strip()), _LINES_PER_TABLE):
        numbers, values = [f"line {number}" for number, _ in piece], [line for _, line in piece]
        yield Lines(numbers, values, pa.nulls(len(piece), pa.string()), {})


def _decoded(root: Folder, file: File) -> Iterator[str]:
    with root.open_input(file.name) as stream:
        decoded = io.TextIOWrapper(io.BufferedReader(stream), "utf-8-sig", errors="backslashreplace", newline="")
        while line := decoded.readline(_LINE_BYTES):
            yield line


def lines_of_table(table: pa.Table, column: str, numbers: Sequence[str]) -> Lines:
    """Return the rows of a table as lines; ``column`` has what they name."""
    metadata = metadata_of(table)
    metadata.pop("uri", None)
    return Lines(numbers, text(table[column]).to_pylist(), labels_of(table), metadata)


def repeated(names: Sequence[str]) -> str | None:
    """Return what is wrong with columns of one name, None if there are none."""
    several = sorted({name for name in names if names.count(name) > 1})
    return f"has several columns {', '.join(several)}; give each a name of its own" if several else None


# What lines name


class _Target(NamedTuple):
    """What a line leads to, or why it does not; ``is_nameless``: its text cannot be shown as its path."""

    file: str
    reason: str | None = None
    detail: str | None = None
    is_nameless: bool = False


def named_inputs(root: Folder, file: File, lines: Lines) -> pa.Table:
    """Return what the lines of a list name, as inputs."""
    places = Places(root)
    targets = [_target_of(places, file, value) for value in lines.values]
    with ThreadPoolExecutor(_THREADS) as pool:  # on an object store, what costs time is waiting
        stats = list(pool.map(lambda target: _stat(places, target), targets))
    paths = [
        f"{file.name}#{number}" if target.is_nameless else value or ""
        for number, value, target in zip(lines.numbers, lines.values, targets, strict=True)
    ]
    details = [
        target.detail and f"{number} of {file.name}: {target.detail}"
        for number, target in zip(lines.numbers, targets, strict=True)
    ]
    ours = {
        "label": lines.labels,
        "file": [target.file or file.name for target in targets],
        "size": [size for size, _ in stats],
        "mtime_ns": [mtime for _, mtime in stats],
        "reason": [target.reason for target in targets],
        "detail": details,
    }
    return inputs_table(file, paths, lines.metadata | ours)


def _target_of(places: Places, file: File, value: str | None) -> _Target:
    """Return what a line of the list ``file`` leads to."""
    if not value:
        return _Target("", "no-path", "it names nothing", is_nameless=True)
    if "\0" in value:
        return _Target("", "bad-name", "it has a null character in its name", is_nameless=True)
    scheme = split_uri(value)[0] if "://" in value else None
    if scheme and scheme not in SCHEMES:
        advice = "download the images first (img2dataset, for one) and index what that writes"
        return _Target("", "not-fetched", f"{scheme}:// is not read, only {', '.join(SCHEMES)}; {advice}")
    if (value.startswith("/") or scheme == "file") and places.root.local_path is None:
        return _Target("", "bad-name", "it names a file of one machine, and the list lies in an object store")
    if scheme:
        try:
            places.locate(value)
        except (UserError, OSError) as error:
            return _Target("", "bad-name", str(error), is_nameless=True)
    if scheme or value.startswith("/"):
        return _Target(value)
    name = posixpath.normpath(posixpath.join(posixpath.dirname(file.name), value))
    if name.startswith("..") and (name == ".." or name[2] == "/"):
        return _Target("", "bad-name", f"{value} leads out of the list's folder; give an absolute path or a URI")
    return _Target(name)


def _stat(places: Places, target: _Target) -> tuple[int, int]:
    """Return size and time of change; zeros for what cannot be found, so that its reading says why."""
    if target.reason:
        return 0, 0
    try:
        filesystem, path = places.locate(target.file)
        info = filesystem.get_file_info(path)
    except (OSError, pa.ArrowException, UserError):
        return 0, 0
    return (info.size or 0, info.mtime_ns or 0) if info.type == fs.FileType.File else (0, 0)


# One of them again


class NamedImages:
    """Images that lists name, by the text that stands in the list."""

    def __init__(self, root: Folder, links_out: bool) -> None:
        self._links_out = links_out
        self._places = Places(root)
        self._reader = WholeFiles()

    def read(self, list_name: str, paths: Iterable[str]) -> dict[str, bytes]:
        """Return some of what the list of this name names. That it does, its caller has checked."""
        file = File(list_name, 0, 0)
        names, files = [], []
        for path in sorted(paths):
            target = _target_of(self._places, file, path)
            if not target.reason and (not is_relative(target.file) or self._is_inside(target.file)):
                names.append(path)
                files.append(target.file)
        return read_known(self._places, inputs_table(file, names, {"file": files}), self._reader)

    def _is_inside(self, name: str) -> bool:
        return lies_inside(self._places.root, name, links_out=self._links_out)


class _Lookup:
    """A path is a line of the list; nothing that does not stand in it is read."""

    def __init__(self, root: Folder, name: str, links_out: bool) -> None:
        self._name = name
        self._named = NamedImages(root, links_out)
        self._key = os.urandom(16)  # so that nobody can find a path that looks like one of the list
        lines = (lines.values for lines in _lines_of(root, File(name, 0, 0)) if isinstance(lines, Lines))
        hashes = [hashes_of((value or "" for value in values), self._key) for values in lines]
        self._hashes = np.concatenate([np.empty(0, np.uint64), *hashes])
        self._hashes.sort()

    def read(self, paths: set[str]) -> dict[str, bytes]:
        names = sorted(path for path in paths if path)
        hashes = hashes_of(names, self._key)
        ends = np.searchsorted(self._hashes, hashes, "right") - np.searchsorted(self._hashes, hashes)
        return self._named.read(self._name, [name for name, there in zip(names, ends, strict=True) if there])
