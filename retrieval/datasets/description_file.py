"""The file of descriptions: CSV with a line for each, which a person reviews and edits.

Whatever makes descriptions adds lines at its end and changes none. So what a person wrote there stays, and what was
made before an interruption is kept.
"""

from __future__ import annotations

import csv
import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from retrieval.errors import UserError
from retrieval.folder import given_text
from retrieval.given import Rows, csv_rows

Status = Literal["made", "reviewed", "rejected"]
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
COLUMNS: Final = ("class", "name", "description", "status", "problem", "model", "prompt")


class Description(NamedTuple):
    """A line of the file."""

    label: str
    """The class, by its key or its name."""
    text: str
    status: Status = "reviewed"
    """``made`` by a model and read by nobody yet; ``reviewed`` or written by a person; ``rejected``: not used."""
    problem: str = ""
    """Why it was rejected as it was made."""
    name: str = ""
    """What a query calls the class; for whoever reads the file."""
    model: str = ""
    """What made it."""
    prompt: str = ""
    """The version of the prompt that it was made with."""

    @property
    def is_used(self) -> bool:
        """Whether it is a query."""
        return bool(self.text) and self.status != "rejected"


def read_csv(file: str | Path) -> list[Description]:
    """Read a file of descriptions: CSV with at least the columns ``class`` and ``description``.

    Without a column ``status``, and where a cell of it is blank, a person wrote the description.

    Args:
        file: path or URI.

    Raises:
        UserError: it is missing, not text, not CSV or has a line cut short (``malformed``), lacks a column
            (``wrong-columns``), or has a status that is none (``unknown``). The field is ``descriptions``.
    """
    columns, rows, lines = _read(file)
    if not {"class", "description"} <= set(columns):
        shown = ", ".join(columns) or "nothing"
        message = f"{file} needs the columns class and description; it has {shown}"
        raise UserError(message, code="wrong-columns", field="descriptions")
    return [_description(row, f"{file}, line {line}") for row, line in zip(rows, lines, strict=True)]


def _read(file: str | Path) -> Rows:
    text = given_text(file, "are no descriptions", field="descriptions")
    try:
        return csv_rows(text)
    except ValueError as error:
        raise UserError(f"{file} is not CSV: {error}", code="malformed", field="descriptions") from error


def _description(row: dict[str, str | None], where: str) -> Description:
    if "status" in row and row["status"] is None:
        message = f"{where} has fewer cells than the first line has columns; complete it, or delete it"
        raise UserError(message, code="malformed", field="descriptions")
    cells = {column: (row.get(column) or "").strip() for column in COLUMNS}
    status = cells["status"].lower() or "reviewed"
    if status not in STATUSES:
        message = f"{where}: the status is {cells['status']!r}; it must be one of {', '.join(STATUSES)}"
        raise UserError(message, code="unknown", field="descriptions")
    label, text = cells.pop("class"), cells.pop("description")
    return Description(label, text, **cells | {"status": status})  # type: ignore[arg-type]


@contextmanager
def adding(file: Path) -> Iterator[Callable[[Sequence[Description]], None]]:
    """Give the function that adds lines to a file, each time in one write; nobody else adds to it meanwhile.

    Args:
        file: it is made if it is not there.

    Raises:
        UserError: something else adds to it (``in-use``), it lacks a column (``wrong-columns``), or is not UTF-8 or
            CSV; the same of the function, where somebody has edited it so meanwhile. The field is ``descriptions``.
    """
    with file.open("ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"something else adds descriptions to {file}; wait until it has ended"
            raise UserError(message, code="in-use", field="descriptions") from error
        _columns(file)

        def add(descriptions: Sequence[Description]) -> None:
            # By its name each time: whoever edits it meanwhile saves another file there, maybe with other columns.
            columns = _columns(file)
            with file.open("ab+") as end:
                end.seek(max(0, end.tell() - 1))
                start = b"" if end.read(1) in (b"", b"\n") else b"\n"
                end.write(start + _csv(columns, descriptions))

        yield add


def _columns(file: Path) -> list[str]:
    """Return what columns a file has; one that is empty, or is not there, is given those of ``COLUMNS``."""
    if not file.exists() or not file.stat().st_size:
        file.write_bytes(_csv(COLUMNS, []))
    columns = _read(file).columns
    if missing := [column for column in COLUMNS if column not in columns]:
        message = f"{file} lacks the columns {', '.join(missing)}: add them to its first line, or name another file"
        raise UserError(message, code="wrong-columns", field="descriptions")
    return columns


def _csv(columns: Sequence[str], descriptions: Sequence[Description]) -> bytes:
    out = StringIO(newline="")
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    if not descriptions:
        writer.writeheader()
    for each in descriptions:
        cells = each._asdict()
        writer.writerow({"class": cells.pop("label"), "description": cells.pop("text"), **cells})
    return out.getvalue().encode()
