"""Tables of a data set's own files, text or MATLAB's, as rows of strings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from retrieval.datasets.disk import Disk
from retrieval.datasets.findings import Finding
from retrieval.datasets.recipe import Joined, MatTable, Table, TextTable
from retrieval.errors import UserError

Row = dict[str, str]


def joined_rows(disk: Disk, tables: Joined, findings: list[Finding]) -> list[Row]:
    """Return the rows of tables that are put together, in the order of the first.

    What cannot be read as a row, and what of the first table another has not, is added to the findings.

    Raises:
        UserError: a file is missing (``missing``) or not what the recipe says (``malformed``).
    """
    first, *others = (list(_rows(disk, table, findings)) for table in tables.tables)
    for table, rows in zip(tables.tables[1:], others, strict=True):
        assert tables.by
        by_value = {row[tables.by]: row for row in rows}
        for row in first:
            value = row[tables.by]
            if value in by_value:
                row |= by_value[value]
            else:
                findings.append(Finding("bad-line", value, f"{table.file} has no line of {value}"))
        first = [row for row in first if row[tables.by] in by_value]
    return [row for row in first if all(row[column] == value for column, value in tables.where.items())]


def _rows(disk: Disk, table: Table, findings: list[Finding]) -> Iterator[Row]:
    data = disk.read(table.file)
    return _text_rows(table, data, findings) if isinstance(table, TextTable) else _mat_rows(table, data)


def _text_rows(table: TextTable, data: bytes, findings: list[Finding]) -> Iterator[Row]:
    pattern = re.compile(table.pattern)
    # Not splitlines(), which breaks at characters that a class may be named with.
    for number, line in enumerate(data.decode("utf-8-sig", errors="replace").split("\n"), 1):
        line = line.rstrip("\r ")
        if not line or (table.header and number == 1):
            continue
        if match := pattern.fullmatch(line):
            yield {name: value or "" for name, value in match.groupdict().items()}
        else:
            where = f"{table.file}, line {number}"
            findings.append(Finding("bad-line", where, f"{line[:80]!r} is not of the form {table.pattern}"))


def _mat_rows(table: MatTable, data: bytes) -> Iterator[Row]:
    from scipy.io import loadmat  # lazily: what a set of text files does not need

    try:
        content = loadmat(BytesIO(data), squeeze_me=True, variable_names=[table.variable])[table.variable]
    except (KeyError, NotImplementedError, OSError, TypeError, ValueError) as error:
        message = f"{table.file} has no variable {table.variable} that can be read ({error}); is it the set's own file?"
        raise UserError(message, code="malformed", field="root") from error
    values = content.reshape(-1)
    names = values.dtype.names
    missing = [column for column in table.columns if column not in (names or ("number", "value"))]
    if missing:
        message = f"{table.variable} in {table.file} has no {', '.join(missing)}; is it the set's own file?"
        raise UserError(message, code="malformed", field="root")
    for number, value in enumerate(values, 1):
        cells: dict[str, Any] = {name: value[name] for name in names} if names else {"number": number, "value": value}
        yield {new: str(cells[old]) for old, new in table.columns.items()}
