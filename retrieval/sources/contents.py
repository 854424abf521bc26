"""What one file of a source lists: the rows of a Parquet file, the members of a tar, the lines of a list of URIs.

Each is read in one pass, and given as tables of the columns ``INPUTS`` (without ``input``) and metadata. What is wrong
with a file, or with something in it, is a row with a reason.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from retrieval.folder import Folder
from retrieval.sources.files import ROWS, File, inputs_table, kind_of, pieces, refused, suffix
from retrieval.sources.metadata import RESERVED, is_bytes, metadata_of, text
from retrieval.sources.reader import SCHEMES, InputReader, split_uri
from retrieval.sources.tar import tar_inputs

_LINE, _LINES = 2**16, ROWS // 4
_THREADS = 16


def inputs_of(root: Folder, file: File) -> Iterator[pa.Table]:
    """Yield the inputs of a file, in its order."""
    of_kind = {"parquet": _parquet_inputs, "tar": tar_inputs, "list": _list_inputs}
    try:
        yield from of_kind[kind_of(file.name) or ""](root, file)
    except pa.ArrowException as error:
        yield refused(file, "broken-file", f"{file.name} can not be read as {suffix(file.name)}: {error}")
    except OSError as error:
        broken = suffix(file.name) == "parquet" and "arquet" in str(error)  # how Arrow says it of a cut file
        yield refused(file, "broken-file" if broken else "unreadable", f"{file.name} can not be read: {error}")


# Parquet


def _parquet_inputs(root: Folder, file: File) -> Iterator[pa.Table]:
    with root.open_input(file.name) as stream:
        parquet = pq.ParquetFile(stream)
        schema = parquet.schema_arrow
        place = next((name for name in ("uri", "path") if name in schema.names), None)
        problem = _unfit(schema)
        if problem:
            yield refused(file, "wrong-columns", f"{file.name} {problem}")
            return
        has_images = "image" in schema.names
        wanted = [
            field.name for field in schema if field.name in ("uri", "path", "label") or not _is_passed_over(field)
        ]
        reader = InputReader(root.uri)
        for group in range(parquet.num_row_groups):
            first = 0
            try:
                for batch in parquet.iter_batches(ROWS, row_groups=[group], columns=wanted):
                    table = pa.Table.from_batches([batch])
                    if has_images:
                        yield _rows_with_images(file, table, group, first)
                    else:
                        numbers = [f"row {first + i} of row group {group}" for i in range(len(table))]
                        yield _uri_rows(reader, root, file, Lines(numbers, *_uri_columns(table, place or "")))
                    first += len(table)
            except (OSError, pa.ArrowException) as error:
                left = parquet.metadata.row_group(group).num_rows - first
                yield refused(
                    file,
                    "broken-file",
                    f"{left:,} rows of row group {group} of {file.name} can not be read: {error}",
                    f"{file.name}#row-group-{group}",
                )


def _is_passed_over(field: pa.Field) -> bool:
    return field.name == "image" or field.name in RESERVED or is_bytes(field.type)


def _unfit(schema: pa.Schema) -> str | None:
    names = schema.names
    if _repeated(names):
        return _repeated(names)
    if "image" not in names:
        if {"uri", "path"} & set(names):
            return None
        return (
            f"has no column image; it has {', '.join(names)}. A gallery's Parquet needs image (bytes) and path (a name"
            " of its own for each image), or, as a list, uri or path"
        )
    if "path" not in names:
        return f"has no column path; it has {', '.join(names)}. It is the name of an image in results, its own for each"
    image = schema.field("image").type
    if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0:
        image = image.field("bytes").type
    if not is_bytes(image):
        return f"has a column image of {image}; it must hold bytes, or a struct with a field bytes"
    return None


def _repeated(names: Sequence[str]) -> str | None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    return f"has several columns {', '.join(repeated)}; give each a name of its own" if repeated else None


def _rows_with_images(file: File, table: pa.Table, group: int, first: int) -> pa.Table:
    rows = range(first, first + len(table))
    paths = text(table["path"]).to_pylist()
    reasons: list[str | None] = [None] * len(table)
    details: list[str | None] = [None] * len(table)
    for i, path in enumerate(paths):
        if not path:
            paths[i] = f"{file.name}#{group}.{rows[i]}"
            reasons[i], details[i] = "no-path", f"row {rows[i]} of row group {group} of {file.name} has no path"
    ours = {"label": _labels(table), "row_group": [group] * len(table), "row": list(rows)}
    return inputs_table(file, paths, metadata_of(table) | ours | {"reason": reasons, "detail": details})


def _labels(table: pa.Table) -> pa.Array:
    if "label" not in table.column_names:
        return pa.nulls(len(table), pa.string())
    return pa.array([label or None for label in text(table["label"]).to_pylist()], pa.string())


def _uri_columns(table: pa.Table, place: str) -> tuple[list[str | None], pa.Array, dict[str, Any]]:
    metadata = metadata_of(table)
    metadata.pop("uri", None)
    return text(table[place]).to_pylist(), _labels(table), metadata


# Lists of URIs and paths


class Lines(NamedTuple):
    """Some lines of a list: where each stands (``line 7``), what it names, its label (null if none), and metadata."""

    numbers: Sequence[str]
    values: Sequence[str | None]
    labels: pa.Array
    metadata: dict[str, Any]


def lines_of(root: Folder, file: File) -> Iterator[Lines | pa.Table]:
    """Yield the lines of a list, CSV or text, and rows that say what is wrong with it."""
    return _csv_lines(root, file) if suffix(file.name) == "csv" else _text_lines(root, file)


def _list_inputs(root: Folder, file: File) -> Iterator[pa.Table]:
    reader = InputReader(root.uri)
    for lines in lines_of(root, file):
        yield _uri_rows(reader, root, file, lines) if isinstance(lines, Lines) else lines


def _csv_lines(root: Folder, file: File) -> Iterator[Lines | pa.Table]:
    rows = _csv_rows(csv.reader(_decoded(root, file)))
    _, header = next(rows, (0, []))
    names = header if isinstance(header, list) else []
    place = next((name for name in ("uri", "path") if name in names), None)
    if place is None or _repeated(names):
        shown = ", ".join(names)[:200] or "nothing"
        problem = _repeated(names) or f"has no column uri or path in its first line; it has {shown}"
        yield refused(file, "wrong-columns", f"{file.name} {problem}")
        return
    for piece in pieces(rows, _LINES):
        good = [(number, row) for number, row in piece if len(row) == len(names)]
        if good:
            columns = zip(names, zip(*(row for _, row in good), strict=True), strict=True)
            table = pa.table({name: pa.array([value or None for value in c], pa.string()) for name, c in columns})
            yield Lines([f"line {number}" for number, _ in good], *_uri_columns(table, place))
        for number, row in piece:
            if len(row) != len(names):
                what = f"has {len(row)} fields, the first {len(names)}" if row else "can not be read as CSV"
                yield refused(file, "bad-row", f"line {number} of {file.name} {what}", f"{file.name}#line {number}")


def _csv_rows(rows: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield number and fields of each row that is not blank; no fields where it can not be read."""
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
    for piece in pieces(((number, line) for number, line in lines if line.strip()), _LINES):
        numbers, values = [f"line {number}" for number, _ in piece], [line for _, line in piece]
        yield Lines(numbers, values, pa.nulls(len(piece), pa.string()), {})


def _decoded(root: Folder, file: File) -> Iterator[str]:
    with root.open_input(file.name) as stream:
        decoded = io.TextIOWrapper(io.BufferedReader(stream), "utf-8-sig", errors="backslashreplace", newline="")
        while line := decoded.readline(_LINE):
            yield line


def _uri_rows(reader: InputReader, root: Folder, file: File, lines: Lines) -> pa.Table:
    places = [place_of(reader, root, file, value) for value in lines.values]
    with ThreadPoolExecutor(_THREADS) as pool:  # on an object store, what costs time is waiting
        stats = list(pool.map(lambda place: _stat(reader, place), places))
    paths = [
        f"{file.name}#{number}" if place.is_nameless else value or ""
        for number, value, place in zip(lines.numbers, lines.values, places, strict=True)
    ]
    details = [
        place.detail and f"{number} of {file.name}: {place.detail}"
        for number, place in zip(lines.numbers, places, strict=True)
    ]
    ours = {
        "label": lines.labels,
        "file": [place.file or file.name for place in places],
        "size": [size for size, _ in stats],
        "mtime_ns": [mtime for _, mtime in stats],
        "reason": [place.reason for place in places],
        "detail": details,
    }
    return inputs_table(file, paths, lines.metadata | ours)


class Place(NamedTuple):
    """What a line of a list leads to, or why it does not; ``is_nameless``: its text can not be shown as its path."""

    file: str
    reason: str | None = None
    detail: str | None = None
    is_nameless: bool = False


def place_of(reader: InputReader, root: Folder, file: File, value: str | None) -> Place:
    """Return what a line of a list leads to."""
    if not value:
        return Place("", "no-path", "it names nothing", is_nameless=True)
    if "\0" in value:
        return Place("", "bad-name", "it has a null character in its name", is_nameless=True)
    scheme = split_uri(value)[0] if "://" in value else None
    if scheme and scheme not in SCHEMES:
        advice = "download the images first (img2dataset, for one) and index what that writes"
        return Place("", "not-fetched", f"{scheme}:// is not read, only {', '.join(SCHEMES)}; {advice}")
    if (value.startswith("/") or scheme == "file") and root.local_path is None:
        return Place("", "bad-name", "it names a file of one machine, and the list lies in an object store")
    if scheme:
        try:
            reader.place(value)
        except (ValueError, OSError) as error:
            return Place("", "bad-name", str(error), is_nameless=True)
    if scheme or value.startswith("/"):
        return Place(value)
    name = posixpath.normpath(posixpath.join(posixpath.dirname(file.name), value))
    if name.startswith("..") and (name == ".." or name[2] == "/"):
        return Place("", "bad-name", f"{value} leads out of the list's folder; give an absolute path or a URI")
    return Place(name)


def _stat(reader: InputReader, place: Place) -> tuple[int, int]:
    """Return size and time of change; zeros for what can not be found, so that its reading says why."""
    if place.reason:
        return 0, 0
    try:
        filesystem, path = reader.place(place.file)
        info = filesystem.get_file_info(path)
    except (OSError, ValueError):
        return 0, 0
    return (info.size or 0, info.mtime_ns or 0) if info.type == fs.FileType.File else (0, 0)
