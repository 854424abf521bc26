"""What earlier lists of a source have: which inputs of a new one are known, and in what two lists differ."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from retrieval.folder import Folder
from retrieval.sources.inputs import hashes_of

_IDENTITY = ["path", "size", "mtime_ns"]
_EXAMPLES = 3


class Known(NamedTuple):
    """The list of an earlier run."""

    inputs: Folder
    again: Collection[str] = ()
    """Paths that are to be read again even if they have not changed: what could not be read then may be now."""


class KnownInputs:
    """The inputs of some lists, as two sorted arrays of 64-bit hashes: of paths, and of paths with size and time.

    Args:
        lists: the oldest first. Of a path that several have, the newest says what its size and time are.
    """

    def __init__(self, lists: Sequence[Known]) -> None:
        rows = sum(sum(known.inputs.count_rows(known.inputs.files(suffix=".parquet"))) for known in lists)
        path_hashes, key_hashes = np.empty(rows, np.uint64), np.empty(rows, np.uint64)
        is_valid = np.ones(rows, bool)
        end = 0
        for known in lists:
            again = np.sort(hashes_of(list(known.again)))
            for paths, keys in _identities(known.inputs):
                part = slice(end, end + len(paths))
                path_hashes[part], key_hashes[part] = hashes_of(paths), hashes_of(keys)
                is_valid[part] = ~is_in_sorted(again, path_hashes[part])
                end += len(paths)
        order = np.argsort(path_hashes, kind="stable")
        self._paths = path_hashes[order]
        is_newest = np.concatenate([self._paths[1:] != self._paths[:-1], np.ones(min(rows, 1), bool)])
        newest = order[is_newest]
        self._keys = np.sort(key_hashes[newest[is_valid[newest]]])

    def __len__(self) -> int:
        return len(self._paths)

    def look_up(self, paths: Sequence[str], keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return of each input whether it is known as it is, and whether its path is known."""
        return is_in_sorted(self._keys, hashes_of(keys)), is_in_sorted(self._paths, hashes_of(paths))


def difference(old: Folder, new: Folder) -> str | None:
    """Return what differs between two lists, as a clause, or None if they have the same inputs.

    For example: "3 inputs are new (a.jpg, b.jpg, …), 1 is gone (c.jpg), 2 have changed (d.jpg, e.jpg)". Takes 16 bytes
    of memory for each row of a list.
    """
    before = KnownInputs([Known(old)])
    news, gone, changed = _Examples(), _Examples(), _Examples()
    for paths, keys in _identities(new):
        is_unchanged, is_known = before.look_up(paths, keys)
        news.add(paths, ~is_known)
        changed.add(paths, is_known & ~is_unchanged)
    del before
    after = KnownInputs([Known(new)])
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


def is_in_sorted(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return of each value whether it is in an array that is sorted, bool (N,)."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values


def _identities(folder: Folder) -> Iterator[tuple[list[str], list[str]]]:
    for name in folder.files(suffix=".parquet"):
        for table in folder.tables(name, _IDENTITY):
            yield table["path"].to_pylist(), keys_of(table)


def keys_of(table: pa.Table) -> list[str]:
    """Return of each input what makes it the same as another: path, size and time of change."""
    columns = (table[name].to_pylist() for name in _IDENTITY)
    return [f"{path}\0{size}\0{mtime}" for path, size, mtime in zip(*columns, strict=True)]
