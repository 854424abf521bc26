"""Metadata: the columns that a source has beside those of a gallery, brought to types that agree between its files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from retrieval.sources.reader import INPUTS

RESERVED = frozenset(INPUTS.names) | {"id", "width", "height", "batch", "vlm", "vision", "vlm_pixels", "vision_pixels"}
"""Names that a gallery's own columns have: metadata of these names is not carried."""
MAX_METADATA = 256
"""Columns of metadata; a source whose JSON files have more names than that between them has no columns."""
_WIDEST = (
    (pa.types.is_signed_integer, pa.int64()),
    (pa.types.is_unsigned_integer, pa.uint64()),
    (pa.types.is_floating, pa.float64()),
)


def unified(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return the schema that tables of these can be brought to: the columns of ``INPUTS``, then all metadata.

    Raises:
        ValueError: that would be more columns than anything can have been meant to have.
    """
    types = {name: type_ for name, type_ in _types(schemas).items() if name not in INPUTS.names}
    if len(types) > MAX_METADATA:
        raise ValueError(
            f"the source has metadata of {len(types):,} different names ({', '.join(list(types)[:5])}, …), the limit is"
            f" {MAX_METADATA}; keep what results should show, or move it below one name"
        )
    settled = [(name, pa.string() if pa.types.is_null(type_) else type_) for name, type_ in types.items()]
    return pa.schema([*INPUTS, *(pa.field(name, type_) for name, type_ in settled)])


def agreed(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Return tables whose columns of one name have one type: batches of a gallery were not listed together."""
    types = _types(table.schema for table in tables)
    return [conformed(table, pa.schema([(name, types[name]) for name in table.column_names])) for table in tables]


def _types(schemas: Iterable[pa.Schema]) -> dict[str, pa.DataType]:
    """The narrowest type of each name that columns of all its types can be brought to."""
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            types[field.name] = _common(types.get(field.name, pa.null()), field.type)
    return types


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    for is_kind, widest in _WIDEST:
        if is_kind(one) and is_kind(other):
            return widest
    return pa.string()


def conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns of a schema, nulls where it has none of that name."""
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
        else:
            columns.append(_cast(table[field.name], field.type))
    return pa.table(columns, schema=schema)


def _cast(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    try:
        return column.cast(type_)
    except pa.ArrowNotImplementedError:
        return pa.chunked_array([[None if value is None else str(value) for value in column.to_pylist()]], type_)


def metadata_of(table: pa.Table) -> dict[str, Any]:
    """Return the columns of a table that are metadata, in types that every reader of a gallery has.

    Text is valid UTF-8 afterwards; lists, structs and maps become JSON; bytes are left out.
    """
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if pa.types.is_dictionary(kind):
            column = column.cast(kind.value_type)
            kind = column.type
        if name in RESERVED or not name or is_bytes(kind):
            continue
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            columns[name] = text(column)
        elif pa.types.is_nested(kind):
            columns[name] = json_text(column.to_pylist())
        else:
            columns[name] = column
    return columns


def is_bytes(kind: pa.DataType) -> bool:
    return any(
        check(kind)
        for check in (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
            pa.types.is_fixed_size_binary,
        )
    )


def text(column: pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return a column as text; bytes in it that are not UTF-8 are written as ``\\xff``."""
    kind = column.type
    if not (
        is_bytes(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    ):
        return _cast(column, pa.string())
    raw = column.cast(pa.binary())
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        values = (None if value is None else value.decode(errors="backslashreplace") for value in raw.to_pylist())
        return pa.array(list(values), pa.string())


def json_text(values: Iterable[Any]) -> pa.Array:
    written = [None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in values]
    return pa.array([None if value is None else clean(value) for value in written], pa.string())


def clean(value: str) -> str:
    """Return text that can be written as UTF-8: half a surrogate pair, which JSON may have, as ``\\ud83d``."""
    return value.encode(errors="backslashreplace").decode()
