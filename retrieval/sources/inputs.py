"""Inputs of a gallery as rows: the columns of a list of them, and tables of these columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from retrieval.sources.files import File
from retrieval.sources.text import clean

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

ROWS_PER_TABLE: Final = 65_536

T = TypeVar("T")


class Row(NamedTuple):
    """Where one input lies: the columns of ``INPUTS`` that say so."""

    file: str
    offset: int | None
    length: int | None
    row_group: int | None
    row: int | None
    size: int
    mtime_ns: int
    reason: str | None
    detail: str | None

    @property
    def is_part(self) -> bool:
        """Whether the input is a part of its file, which the file's kind reads, and not the whole of it."""
        return self.offset is not None or self.row_group is not None


def rows_of(table: pa.Table) -> list[Row]:
    """Return the rows of a table of inputs."""
    return [Row(*values) for values in zip(*(table[name].to_pylist() for name in Row._fields), strict=True)]


def inputs_table(file: File, paths: Sequence[str] | pa.Array, columns: dict[str, Any]) -> pa.Table:
    """Return inputs as a table of ``INPUTS`` without ``input``, then metadata.

    Args:
        file: what all inputs lie in, unless the columns say otherwise.
        paths: one for each input.
        columns: of ``INPUTS`` and of metadata; those of ``INPUTS`` that are not given are null.
    """
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


def rejected(file: File, reason: str, detail: str, path: str | None = None) -> pa.Table:
    """Return the row of something that cannot be used: a whole file, or what ``path`` names."""
    return inputs_table(file, [clean(path or file.name)], {"reason": [reason], "detail": [clean(detail)]})


def path_column(names: Sequence[str], *, has_images: bool) -> str | None:
    """Return which column of a file says what an input is called, None if there is none.

    That is ``path`` where the images are in the file, too; of a file that only names images, ``uri``, else ``path``.
    """
    return next((name for name in (("path",) if has_images else ("uri", "path")) if name in names), None)


def pieces(items: Iterable[T], size: int = ROWS_PER_TABLE) -> Iterator[list[T]]:
    """Yield items as lists of at most ``size``."""
    rest = iter(items)
    while piece := list(islice(rest, size)):
        yield piece


def hashes_of(names: Iterable[str], key: bytes = b"") -> np.ndarray:
    """Return 64 bits of hash of each name, uint64; with a secret key nobody can look for names of equal hashes."""
    digests = (hashlib.blake2b(name.encode(errors="replace"), digest_size=8, key=key).digest() for name in names)
    return np.frombuffer(b"".join(digests), np.uint64)
