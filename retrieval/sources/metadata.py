"""Columns that a source has beside those of a gallery, brought to types that agree between its files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import pyarrow as pa

from retrieval.errors import UserError
from retrieval.sources.inputs import INPUTS
from retrieval.sources.text import cast, is_bytes, is_text, json_text, text

RESERVED: Final = frozenset(INPUTS.names) | {
    *("id", "width", "height", "batch", "vlm", "vision", "vlm_pixels", "vision_pixels")
}
"""Names that a gallery's own columns have: metadata of these names is not carried."""
MAX_METADATA: Final = 256
"""Columns of metadata; a source whose JSON files have more names than that between them has no columns."""
_WIDEST = (
    (pa.types.is_signed_integer, pa.int64()),
    (pa.types.is_unsigned_integer, pa.uint64()),
    (pa.types.is_floating, pa.float64()),
)


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
        if is_text(kind):
            columns[name] = text(column)
        elif pa.types.is_nested(kind):
            columns[name] = json_text(column.to_pylist())
        else:
            columns[name] = column
    return columns


def labels_of(table: pa.Table) -> pa.Array:
    """Return the column ``label`` of a table, null where it is empty or the table has none."""
    if "label" not in table.column_names:
        return pa.nulls(len(table), pa.string())
    return pa.array([label or None for label in text(table["label"]).to_pylist()], pa.string())


def common_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return the schema that tables of these can be brought to: the columns of ``INPUTS``, then all metadata.

    Raises:
        UserError: that would be more columns than anything can have been meant to have.
    """
    types = {name: type_ for name, type_ in _common_types(schemas).items() if name not in INPUTS.names}
    if len(types) > MAX_METADATA:
        raise UserError(
            f"the source has metadata of {len(types):,} different names ({', '.join(list(types)[:5])}, …), the limit is"
            f" {MAX_METADATA}; keep what results should show, or move it below one name",
            code="too-much-metadata",
            field="source",
        )
    settled = [(name, pa.string() if pa.types.is_null(type_) else type_) for name, type_ in types.items()]
    return pa.schema([*INPUTS, *(pa.field(name, type_) for name, type_ in settled)])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns of a schema, nulls where it has none of that name."""
    columns = [
        cast(table[field.name], field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def with_common_types(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Return tables whose columns of one name have one type: batches of a gallery were not listed together."""
    types = _common_types(table.schema for table in tables)
    return [conform(table, pa.schema([(name, types[name]) for name in table.column_names])) for table in tables]


def _common_types(schemas: Iterable[pa.Schema]) -> dict[str, pa.DataType]:
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
