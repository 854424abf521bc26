"""Files of benchmarks: JSON, CSV, lines; what is not as it should be is named by file and place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from retrieval.errors import UserError
from retrieval.folder import Folder, given_text
from retrieval.given import csv_rows, json_value

T = TypeVar("T")


def read_bytes(folder: Folder, name: str) -> bytes:
    """Return a file below the benchmark's folder.

    Raises:
        UserError: it is not there (code ``missing``, field ``folder``).
    """
    if not folder.exists(name):
        message = f"{folder.uri} lacks {name}: give the folder of the benchmark as its authors lay it out"
        raise UserError(message, code="missing", field="folder")
    return folder.read_bytes(name)


def read_text(folder: Folder, name: str) -> str:
    """Return a file as text.

    Raises:
        UserError: it is not there (code ``missing``) or not UTF-8 (``not-utf-8``); the field is ``folder``.
    """
    return given_text(folder / name, "is no such file of the release", field="folder")


def read_json(folder: Folder, name: str, kind: type[T]) -> T:
    """Return a JSON file whose outermost value is of a kind.

    Raises:
        UserError: as ``read_text``, or it is not such JSON (code ``damaged``).
    """
    return checked(_parsed(folder, name, read_text(folder, name)), kind, f"{folder.uri}/{name}")


def read_json_lines(folder: Folder, name: str) -> Iterable[tuple[dict[str, Any], str]]:
    """Yield the objects of a file of JSON lines, each with its place for messages.

    Raises:
        UserError: as ``read_json``.
    """
    for number, line in enumerate(read_text(folder, name).split("\n"), 1):
        if line.strip():
            where = f"{folder.uri}/{name}, line {number}"
            yield checked(_parsed(folder, f"{name}, line {number}", line), dict, where), where


def read_csv(folder: Folder, name: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV file that has some columns.

    Raises:
        UserError: as ``read_text``, or it is not CSV, or a row lacks a value of a column (code ``damaged``).
    """
    text = read_text(folder, name)
    try:
        rows = csv_rows(text).rows
    except ValueError as error:
        raise damaged(folder, name, f"it is not CSV ({error})") from error
    for number, row in enumerate(rows, 1):
        if lacks := [column for column in columns if not row.get(column)]:
            raise damaged(folder, name, f"row {number} lacks {', '.join(lacks)}; it has {', '.join(map(str, row))}")
    return rows


def read_lines(folder: Folder, name: str) -> list[str]:
    """Return the lines of a text file without blanks around them; the last may be empty.

    Raises:
        UserError: as ``read_text``.
    """
    return [line.strip() for line in read_text(folder, name).removesuffix("\n").split("\n")]


def value(row: Mapping[str, Any], name: str, kind: type[T], where: str) -> T:
    """Return a field of an object that is of a kind.

    Raises:
        UserError: it is not there or not of the kind (code ``damaged``).
    """
    if name not in row:
        raise UserError(f"{where} lacks {name}; it has {', '.join(row)}", code="damaged", field="folder")
    return checked(row[name], kind, f"{where}: {name}")


def checked(found: Any, kind: type[T], where: str) -> T:
    """Return what is of a kind; a truth value is no number.

    Raises:
        UserError: it is not (code ``damaged``).
    """
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is int):
        message = f"{where} must be {kind.__name__}, not {type(found).__name__}: {found!r:.60}"
        raise UserError(message, code="damaged", field="folder")
    return found


def damaged(folder: Folder, name: str, why: str) -> UserError:
    """Return the error of a file that is not as its benchmark's are."""
    return UserError(f"{folder.uri}/{name} cannot be read: {why}", code="damaged", field="folder")


def no_truth(benchmark: str, part: str, where: str) -> UserError:
    """Return the error of a part whose relevant images its authors keep to themselves."""
    message = f"the part {part} of {benchmark} has no relevant images ({where}): its authors measure it on their server"
    return UserError(message, code="no-truth", field="part")


def _parsed(folder: Folder, name: str, text: str) -> Any:
    try:
        return json_value(text)
    except ValueError as error:
        raise damaged(folder, name, f"it is not JSON ({error})") from error
