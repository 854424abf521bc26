"""Parquet: each row is an input, with its bytes in the column ``image``, or named by a column ``uri`` or ``path``."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from retrieval.folder import Folder
from retrieval.images import ImageRejected
from retrieval.sources.files import File, files_in, suffix
from retrieval.sources.inputs import ROWS_PER_TABLE, Row, hashes_of, inputs_table, path_column, rejected
from retrieval.sources.metadata import RESERVED, labels_of, metadata_of
from retrieval.sources.retries import PermanentError
from retrieval.sources.rows import Content, check_unchanged, over_limit
from retrieval.sources.text import is_bytes, text
from retrieval.sources.uri_list import NamedImages, lines_of_table, named_inputs, repeated

# A row group is held whole up to here; a larger one is read through, in batches of about the second size.
_GROUP_BYTES, _BATCH_BYTES = 128 * 2**20, 16 * 2**20
_LOOKUP_ROWS = 64


class Parquet:
    """The kind of file that has a row for each image."""

    title = "Parquet (.parquet)"
    in_folders, alone = True, True

    def has(self, name: str) -> bool:
        return suffix(name) == "parquet"

    def inputs(self, root: Folder, files: Sequence[File]) -> Iterator[pa.Table]:
        for file in files:
            try:
                yield from _inputs(root, file)
            except OSError as error:
                if "arquet" not in str(error):  # Arrow's word of a file that is cut
                    raise
                yield rejected(file, "broken-file", f"{file.name} cannot be read as Parquet: {error}")

    def reader(self) -> _RowGroup:
        return _RowGroup()

    def lookup(self, root: Folder, name: str | None, *, links_out: bool) -> _Lookup:
        names = [name] if name else [file.name for file in files_in(root) if not file.reason and self.has(file.name)]
        return _Lookup(root, names, links_out)


# What the column image may be: bytes, or a struct with a field bytes.


def _has_images(schema: pa.Schema) -> bool:
    return "image" in schema.names


def _bytes_type(schema: pa.Schema) -> pa.DataType:
    """Return the type of what should be the bytes."""
    image = schema.field("image").type
    in_struct = pa.types.is_struct(image) and image.get_field_index("bytes") >= 0
    return image.field("bytes").type if in_struct else image


def _image_column(schema: pa.Schema) -> str:
    """Return what to read of a file for its images; of a struct only the bytes."""
    return "image.bytes" if pa.types.is_struct(schema.field("image").type) else "image"


def _image_bytes(value: pa.Scalar) -> bytes | None:
    image = value.as_py()
    return image["bytes"] if isinstance(image, dict) else image


def _path_column(schema: pa.Schema) -> str | None:
    return path_column(schema.names, has_images=_has_images(schema))


# Listing


def _inputs(root: Folder, file: File) -> Iterator[pa.Table]:
    with root.open_input(file.name) as stream:
        parquet = pq.ParquetFile(stream)
        schema = parquet.schema_arrow
        column = _path_column(schema)
        problem = _problem_of(schema)
        if problem or column is None:
            yield rejected(file, "wrong-columns", f"{file.name} {problem}")
            return
        wanted = [field.name for field in schema if field.name in ("uri", "path", "label") or _is_metadata(field)]
        for group in range(parquet.num_row_groups):
            first = 0
            try:
                for batch in parquet.iter_batches(ROWS_PER_TABLE, row_groups=[group], columns=wanted):
                    table = pa.Table.from_batches([batch])
                    if _has_images(schema):
                        yield _inputs_with_bytes(file, table, group, first)
                    else:
                        numbers = [f"row {first + i} of row group {group}" for i in range(len(table))]
                        yield named_inputs(root, file, lines_of_table(table, column, numbers))
                    first += len(table)
            except (OSError, pa.ArrowException) as error:
                left = parquet.metadata.row_group(group).num_rows - first
                detail = f"{left:,} rows of row group {group} of {file.name} cannot be read: {error}"
                yield rejected(file, "broken-file", detail, f"{file.name}#row-group-{group}")


def _is_metadata(field: pa.Field) -> bool:
    return field.name != "image" and field.name not in RESERVED and not is_bytes(field.type)


def _problem_of(schema: pa.Schema) -> str | None:
    names = schema.names
    if repeated(names):
        return repeated(names)
    if not _has_images(schema):
        if _path_column(schema):
            return None
        return (
            f"has no column image; it has {', '.join(names)}. A gallery's Parquet needs image (bytes) and path (a name"
            " of its own for each image), or, as a list, uri or path"
        )
    if not _path_column(schema):
        return f"has no column path; it has {', '.join(names)}. It is the name of an image in results, its own for each"
    if not is_bytes(_bytes_type(schema)):
        return f"has a column image of {_bytes_type(schema)}; it must hold bytes, or a struct with a field bytes"
    return None


def _inputs_with_bytes(file: File, table: pa.Table, group: int, first: int) -> pa.Table:
    rows = range(first, first + len(table))
    paths = text(table["path"]).to_pylist()
    reasons: list[str | None] = [None] * len(table)
    details: list[str | None] = [None] * len(table)
    for i, path in enumerate(paths):
        if not path:
            paths[i] = f"{file.name}#{group}.{rows[i]}"
            reasons[i], details[i] = "no-path", f"row {rows[i]} of row group {group} of {file.name} has no path"
    ours = {"label": labels_of(table), "row_group": [group] * len(table), "row": list(rows)}
    return inputs_table(file, paths, metadata_of(table) | ours | {"reason": reasons, "detail": details})


# Reading


class _RowGroup:
    """Reads images of one row group after another, and holds the last: whole if it is small, else the batch it is at.

    That is at most 128 MiB from one call to the next.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._key: tuple[str, int | None, int] | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._start, self._images = 0, pa.array([], pa.binary())

    def together(self, first: Row, last: Row, following: Row) -> bool:
        return following.row_group == first.row_group

    def read(self, filesystem: fs.FileSystem, path: str, rows: Sequence[Row]) -> list[Content]:
        with self._lock:
            try:
                return [self._image(filesystem, path, row) for row in rows]
            except BaseException:
                self._forget()
                raise

    def _image(self, filesystem: fs.FileSystem, path: str, row: Row) -> Content:
        key = (path, row.row_group, row.size)
        number = row.row or 0
        if self._key != key or number < self._start:
            self._forget()
            self._batches = _image_batches(filesystem, path, row)
            self._key = key
        while number >= self._start + len(self._images):
            batch = next(self._batches, None)
            if batch is None:
                raise PermanentError(f"{row.file} has no row {number} in row group {row.row_group}")
            self._start += len(self._images)
            self._images = batch.column(0)
        data = _image_bytes(self._images[number - self._start])
        if data is None:
            return ImageRejected("empty", "the row has no image (null)")
        return over_limit(len(data)) or data


def _image_batches(filesystem: fs.FileSystem, path: str, listed: Row) -> Iterator[pa.RecordBatch]:
    check_unchanged(filesystem, path, listed)
    with filesystem.open_input_file(path) as stream:
        file = pq.ParquetFile(stream, buffer_size=2**20)
        image = _image_column(file.schema_arrow)
        group = file.metadata.row_group(listed.row_group)
        columns = (group.column(i) for i in range(group.num_columns))
        size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == image)
        rows = group.num_rows if size <= _GROUP_BYTES else group.num_rows * _BATCH_BYTES // size
        yield from file.iter_batches(max(rows, 1), row_groups=[listed.row_group], columns=[image])


# One of them again


class _Lookup:
    """A path is one that stands in a row.

    It is known in which row group each path lies, so that no other is read: a filter on the path would read every image
    to find one.
    """

    def __init__(self, root: Folder, files: list[str], links_out: bool) -> None:
        self._root = root
        self._named = NamedImages(root, links_out)
        self._groups: list[tuple[str, pq.FileMetaData, int]] = []
        hashes_of_groups = []
        damage: OSError | None = None
        for name in files:
            try:
                with self._open(name) as file:
                    column = _path_column(file.schema_arrow)
                    for group in range(file.num_row_groups) if column else ():
                        hashes_of_groups.append(hashes_of(_paths(file.read_row_group(group, columns=[column]), column)))
                        self._groups.append((name, file.metadata, group))
            except _DamagedError as error:  # its rows were rejected when it was listed; others have theirs
                damage = error
        if damage and not self._groups:
            raise damage
        hashes = np.concatenate([np.empty(0, np.uint64), *hashes_of_groups])
        groups = np.repeat(np.arange(len(self._groups)), [len(of_group) for of_group in hashes_of_groups])
        order = np.argsort(hashes)
        self._hashes, self._group_of = hashes[order], groups[order]

    def read(self, paths: set[str]) -> dict[str, bytes]:
        names = sorted(paths)
        hashes = hashes_of(names)
        starts, ends = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        wanted: defaultdict[int, set[str]] = defaultdict(set)
        for name, start, end in zip(names, starts, ends, strict=True):
            for group in self._group_of[start:end]:
                wanted[int(group)].add(name)
        return {path: data for group in sorted(wanted) for path, data in self._rows(group, wanted[group])}

    def _rows(self, number: int, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
        name, metadata, group = self._groups[number]
        with self._open(name, metadata) as file:
            schema = file.schema_arrow
            column = _path_column(schema)
            columns = [column, _image_column(schema)] if _has_images(schema) else [column]
            for batch in file.iter_batches(_LOOKUP_ROWS, row_groups=[group], columns=columns):
                found = [(i, path) for i, path in enumerate(_paths(batch, column)) if path in wanted]
                if not _has_images(schema):
                    yield from self._named.read(name, [path for _, path in found]).items()
                    continue
                for i, path in found:
                    data = _image_bytes(batch["image"][i])
                    if data is not None:
                        yield path, data

    @contextmanager
    def _open(self, name: str, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
        try:
            with self._root.open_input(name) as stream:
                yield pq.ParquetFile(stream, metadata=metadata)
        except pa.ArrowInvalid as error:
            raise _DamagedError(f"{name} cannot be read as Parquet: {error}") from error


class _DamagedError(OSError):
    """A file that is no Parquet, or no whole one."""


def _paths(rows: pa.Table | pa.RecordBatch, column: str | None) -> list[str]:
    return [path or "" for path in text(rows[column]).to_pylist()]
