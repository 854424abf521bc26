"""Columns and strings as text that every reader of a gallery can show: valid UTF-8, with what is not made visible."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa


def clean(value: str) -> str:
    """Return text that can be written as UTF-8: half a surrogate pair, which JSON may have, as ``\\ud83d``."""
    return value.encode(errors="backslashreplace").decode()


def text(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Return a column as text; bytes in it that are not UTF-8 are written as ``\\xff``."""
    if not (is_bytes(column.type) or is_text(column.type)):
        return cast(column, pa.string())
    raw = column.cast(pa.binary())
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        values = (None if value is None else value.decode(errors="backslashreplace") for value in raw.to_pylist())
        return pa.array(list(values), pa.string())


def json_text(values: Iterable[Any]) -> pa.Array:
    """Return each value as JSON; None stays null."""
    written = [None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in values]
    return pa.array([None if value is None else clean(value) for value in written], pa.string())


def cast(column: pa.ChunkedArray | pa.Array, type_: pa.DataType) -> pa.ChunkedArray:
    """Return a column as another type; where Arrow has no such cast, as Python writes the values."""
    try:
        return column.cast(type_)
    except pa.ArrowNotImplementedError:
        return pa.chunked_array([[None if value is None else str(value) for value in column.to_pylist()]], type_)


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds bytes."""
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(check(kind) for check in checks)


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds text."""
    return any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))
