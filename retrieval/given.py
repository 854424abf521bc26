"""CSV and JSON that users give; whatever is wrong with the text is a ValueError that says where."""

from __future__ import annotations

import csv
import json
from io import StringIO
from typing import Any, NamedTuple


class Rows(NamedTuple):
    """A CSV file.

    Attributes:
        columns: that its first line names.
        rows: the others, by column; None in the place of cells that a row is too short for.
        lines: of the file, on which each row ends, from 1.
    """

    columns: list[str]
    rows: list[dict[str, Any]]
    lines: list[int]


def csv_rows(text: str) -> Rows:
    """Return the rows of a text that is CSV.

    Raises:
        ValueError: a cell is longer than Python's reader takes (131,072 characters), a row has more of them than there
            are columns, as a text with a comma and without quotes makes it, or it is otherwise none; with the line.
    """
    reader = csv.DictReader(StringIO(text, newline=""))
    try:
        columns = list(reader.fieldnames or ())
        rows, lines = [], []
        for row in reader:
            if any(row.pop(None, ())):
                raise ValueError(
                    f"line {reader.line_num} has more cells than the first line has columns; put quotes around a text"
                    " that has a comma in it"
                )
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(f"line {reader.reader.line_num}: {error}") from error
    return Rows(columns, rows, lines)


def json_value(text: str) -> Any:
    """Return the value of a text that is JSON.

    Raises:
        ValueError: it is none, or nested more deeply than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
