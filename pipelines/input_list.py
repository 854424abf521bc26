"""Lists of inputs as files: written as they come, bounded in memory, and compared with earlier ones."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrieval.folder import Folder
from retrieval.sources.metadata import conformed, unified
from retrieval.sources.reader import INPUTS, hashes_of

ROWS_PER_FILE, ROWS_PER_GROUP = 65_536, 4_096
_IDENTITY = ["path", "size", "mtime_ns"]
_EXAMPLES = 3


@dataclass(frozen=True)
class Listing:
    """What ``list_inputs`` wrote."""

    count: int
    """Rows of the list, those with a reason included."""
    digest: str
    """Hash over path, size and time of change of every row, in order."""
    root: Folder
    """What the list's relative file names are relative to."""
    metadata: tuple[str, ...]
    """Names of the columns that the source has beside ours."""
    skipped: int
    """Inputs that are left out, since a known list has the same path, size and time of change."""
    changed: tuple[str, ...]
    """Paths that a known list has with another size or time of change; they are listed again."""


class Known(NamedTuple):
    """The list of an earlier run."""

    inputs: Folder
    again: Collection[str] = ()
    """Paths that are to be read again even if they have not changed: what could not be read then may be now."""


def difference(old: Folder, new: Folder) -> str | None:
    """Return what differs between two lists, as a clause, or None if they have the same inputs.

    For example: "3 inputs are new (a.jpg, b.jpg, …), 1 is gone (c.jpg), 2 have changed (d.jpg, e.jpg)". Takes 16 bytes
    of memory for each row of a list.
    """
    before = Seen([Known(old)])
    news, gone, changed = _Examples(), _Examples(), _Examples()
    for paths, keys in _identities(new):
        is_unchanged, is_known = before.look_up(paths, keys)
        news.add(paths, ~is_known)
        changed.add(paths, is_known & ~is_unchanged)
    del before
    after = Seen([Known(new)])
    for paths, keys in _identities(old):
        gone.add(paths, ~after.look_up(paths, keys)[1])
    clauses: list[str] = []
    for found, one, many in (
        (news, "is new", "are new"),
        (gone, "is gone", "are gone"),
        (changed, "has changed", "have changed"),
    ):
        if found.count:
            noun = "" if clauses else "input " if found.count == 1 else "inputs "
            clauses.append(f"{found.count:,} {noun}{one if found.count == 1 else many} ({found})")
    return ", ".join(clauses) or None


class _Examples:
    def __init__(self) -> None:
        self.count = 0
        self._paths: list[str] = []

    def add(self, paths: Sequence[str], which: np.ndarray) -> None:
        self.count += int(which.sum())
        for i in np.flatnonzero(which)[: _EXAMPLES - len(self._paths)]:
            self._paths.append(paths[i])

    def __str__(self) -> str:
        return ", ".join(self._paths) + (", …" if self.count > len(self._paths) else "")


class Seen:
    """The inputs of some lists, as two sorted arrays of 64-bit hashes: of paths, and of paths with size and time.

    Args:
        lists: the oldest first. Of a path that several have, the newest says what its size and time are.
    """

    def __init__(self, lists: Sequence[Known]) -> None:
        rows = sum(_rows(known.inputs, name) for known in lists for name in known.inputs.files(suffix=".parquet"))
        every, its_keys, valid = np.empty(rows, np.uint64), np.empty(rows, np.uint64), np.ones(rows, bool)
        end = 0
        for known in lists:
            again = np.sort(hashes_of(list(known.again)))
            for paths, keys in _identities(known.inputs):
                part = slice(end, end + len(paths))
                every[part], its_keys[part] = hashes_of(paths), hashes_of(keys)
                valid[part] = ~_contains(again, every[part])
                end += len(paths)
        order = np.argsort(every, kind="stable")
        self._paths = every[order]
        is_newest = np.concatenate([self._paths[1:] != self._paths[:-1], np.ones(min(rows, 1), bool)])
        newest = order[is_newest]
        self._keys = np.sort(its_keys[newest[valid[newest]]])

    def __len__(self) -> int:
        return len(self._paths)

    def look_up(self, paths: Sequence[str], keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return of each input whether it is here as it is, and whether its path is."""
        return _contains(self._keys, hashes_of(keys)), _contains(self._paths, hashes_of(paths))


def _contains(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    if not len(ordered):
        return np.zeros(len(values), bool)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values


def _rows(folder: Folder, name: str) -> int:
    with folder.open_input(name) as file:
        return pq.ParquetFile(file).metadata.num_rows


def _identities(folder: Folder) -> Iterator[tuple[list[str], list[str]]]:
    for name in folder.files(suffix=".parquet"):
        for table in folder.tables(name, _IDENTITY):
            yield table["path"].to_pylist(), _keys(table)


def _keys(table: pa.Table) -> list[str]:
    columns = (table[name].to_pylist() for name in _IDENTITY)
    return [f"{path}\0{size}\0{mtime}" for path, size, mtime in zip(*columns, strict=True)]


class ListWriter:
    """Writes a list of inputs, file by file as rows come. Only when all have come are the types of its columns known,
    so files that have others are written again at the end.

    Args:
        into: an empty folder.
        known: inputs to leave out.
    """

    def __init__(self, into: Folder, known: Seen) -> None:
        self._into = into
        self._known = known
        self.clear()

    def clear(self) -> None:
        """Forget and delete what was written."""
        self._into.delete()
        self._into.create()
        self.count = self.skipped = self.refused = 0
        self.changed: list[str] = []
        self.first_detail = ""
        self._digest = hashlib.sha256()
        self._waiting: list[pa.Table] = []
        self._hashes: list[np.ndarray] = []
        self._files: list[pa.Schema] = []

    def add(self, table: pa.Table, *, unique: bool = False) -> None:
        """Add rows: ``INPUTS`` without ``input``, and metadata.

        Args:
            unique: these paths are of no other row. Where they might be, it is looked into at the end, for 8 bytes of
                memory a row.
        """
        keys = _keys(table)
        if len(self._known):
            paths = table["path"].to_pylist()
            is_unchanged, is_known = self._known.look_up(paths, keys)
            self.changed += [paths[i] for i in np.flatnonzero(is_known & ~is_unchanged)]
            self.skipped += int(is_unchanged.sum())
            table = table.filter(pa.array(~is_unchanged))
            keys = [keys[i] for i in np.flatnonzero(~is_unchanged)]
        for key in keys:
            self._digest.update(f"{key}\0".encode())
        refused = pc.drop_null(table["detail"])
        self.refused += len(refused)
        if not self.first_detail and len(refused):
            self.first_detail = refused[0].as_py()
        if not unique:
            self._hashes.append(hashes_of(table["path"].to_pylist()))
        self.count += table.num_rows
        self._waiting.append(table)
        if sum(len(waiting) for waiting in self._waiting) >= ROWS_PER_FILE:
            self._write_waiting(all=False)

    def finish(self, root: Folder) -> Listing:
        """Write what waits, and settle the columns' types and paths that more than one input has."""
        self._write_waiting(all=True)
        schema = unified(self._files)
        repeated = self._repeated()
        met: set[str] = set()
        for number, written in enumerate(self._files):
            if written.equals(schema) and not len(repeated):
                continue
            table = conformed(self._into.read_table(_name(number)), schema)
            self._write(number, _told_apart(table, repeated, met) if len(repeated) else table)
        names = tuple(schema.names[len(INPUTS) :])
        return Listing(self.count, self._digest.hexdigest(), root, names, self.skipped, tuple(self.changed))

    def _write_waiting(self, *, all: bool) -> None:
        if not self._waiting:
            return
        schema = unified([table.schema for table in self._waiting])
        rows = pa.concat_tables([conformed(table, schema) for table in self._waiting])
        while rows.num_rows >= ROWS_PER_FILE or (all and rows.num_rows):
            number = len(self._files)
            table = rows.slice(0, ROWS_PER_FILE)
            ordinals = pa.array(np.arange(len(table), dtype=np.int64) + number * ROWS_PER_FILE)
            table = table.set_column(0, schema.field(0), ordinals)
            self._files.append(schema)
            self._write(number, table)
            rows = rows.slice(len(table))
        self._waiting = [rows] if rows.num_rows else []

    def _write(self, number: int, table: pa.Table) -> None:
        # Small groups, since a single row is looked up when its picture is shown.
        with self._into.writing(_name(number)) as stream:
            pq.write_table(table, stream, row_group_size=ROWS_PER_GROUP)

    def _repeated(self) -> np.ndarray:
        if not self._hashes:
            return np.empty(0, np.uint64)
        hashes = np.concatenate(self._hashes)
        self._hashes = []
        hashes.sort()
        return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def _name(number: int) -> str:
    return f"{number:06d}.parquet"


def _told_apart(table: pa.Table, repeated: np.ndarray, met: set[str]) -> pa.Table:
    """Refuse inputs whose path an earlier one has, under a path of their own; ``met`` has the paths so far."""
    paths = table["path"].to_pylist()
    again = []
    for i in np.flatnonzero(_contains(repeated, hashes_of(paths))):
        if paths[i] in met:
            again.append(i)
        met.add(paths[i])
    if not again:
        return table
    columns = {name: table[name].to_pylist() for name in ("path", "reason", "detail", "input")}
    for i in again:
        if columns["reason"][i] is None:
            columns["reason"][i] = "same-path"
            columns["detail"][i] = f"an earlier input has the path {paths[i]} too; give each a path of its own"
        columns["path"][i] = f"{paths[i]}#{columns['input'][i]}"
    for name in ("path", "reason", "detail"):
        table = table.set_column(table.column_names.index(name), name, pa.array(columns[name], pa.string()))
    return table
