"""A vocabulary: the texts to imagine, read from a text file, CSV, Parquet or JSON lines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import UserError
from retrieval.folder import Folder, given_text
from retrieval.given import csv_rows, json_value
from retrieval.prompts import KINDS, Kind, fill, query_text


class VocabularyEntry(NamedTuple):
    """One query to imagine.

    Attributes:
        text: what to imagine.
        kind: what the text is: a name, a description, or both.
        label: the gallery label that the query should find, if that is known.
        relevant: ids of the gallery rows that the query should find, in place of a label.
        junk: ids of rows that are left out of its ranking.
        aspect: what the text tells of an image, such as ``colour``, if it is a word of a dictionary.
        value: what it says of that, such as ``red``; several texts may say the same.
    """

    text: str
    kind: Kind = "name"
    label: str | None = None
    relevant: tuple[str, ...] | None = None
    junk: tuple[str, ...] | None = None
    aspect: str | None = None
    value: str | None = None

    @property
    def id(self) -> str:
        """The id of its query: a hash of kind, text, label, and of the other columns where they are given."""
        parts = [self.kind, self.text, self.label or ""]
        if self.relevant is not None:
            parts += ["relevant", *self.relevant, "junk", *(self.junk or ())]
        if self.aspect is not None:
            parts += ["aspect", self.aspect, self.value or ""]
        return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).hexdigest()


def read_vocabulary(file: str | Path) -> list[VocabularyEntry]:
    """Read a vocabulary: a text file with one name a line, or CSV, Parquet or JSON lines (``.jsonl``) with columns.

    Columns are ``name`` and/or ``description``, and optionally ``label`` (by default the name). Each row gives a query
    of every kind that its columns allow: with both, three. Or they are ``text``, ``kind`` and optionally ``label``,
    one query a row. In either case there may be ``relevant`` and ``junk``: lists of ids of gallery rows, or, as CSV has
    no lists, ids with spaces between them or a JSON list. An empty list is not the same as none. With ``aspect``, and
    ``value`` (by default the text), a row is a word of a dictionary: ``retrieval.words``.

    Args:
        file: path or URI.

    Returns:
        The entries in the order of the file.

    Raises:
        UserError: the file is missing, empty or cannot be read as what its name says, or a row lacks a text, has an
            unknown kind, or relevant and junk rows that are not lists of ids (``wrong-type``), have an id in common
            (``overlap``), or junk alone (``missing``), or a value without an aspect (``missing``); the message names
            file and row.
    """
    entries = [entry for number, row in enumerate(_rows(file), 1) for entry in _entries(row, f"{file}, row {number}")]
    if not entries:
        raise UserError(f"{file} has no queries in it", code="empty", field="vocabulary")
    return entries


def read_templates(file: str | Path) -> list[str]:
    """Read prompt templates from a text file, one a line.

    Raises:
        UserError: the file is missing or is not text, or a line has not exactly one ``{}``.
    """
    lines = given_text(file, "are no templates", field="templates").splitlines()
    templates = [line for line in lines if line.strip()]
    fill(templates, "")
    return templates


def _rows(file: str | Path) -> Iterable[Mapping[str, Any]]:
    place = Folder(file)
    name = place.name
    if name.endswith(".parquet") and place.exists():
        try:
            return pq.read_table(BytesIO(place.parent.read_bytes(name))).to_pylist()
        except pa.ArrowInvalid as error:
            raise UserError(f"{file} is not Parquet: {error}", code="damaged", field="vocabulary") from error
    text = given_text(file, "is no vocabulary", field="vocabulary")
    if name.endswith(".csv"):
        try:
            return csv_rows(text).rows
        except ValueError as error:
            raise UserError(f"{file} is not CSV: {error}", code="damaged", field="vocabulary") from error
    if name.endswith(".jsonl"):
        lines = enumerate(text.split("\n"), 1)  # a string of JSON may have other line separators within
        return [_object(line, f"{file}, line {number}") for number, line in lines if line.strip()]
    return [{"name": line} for line in text.splitlines() if line.strip()]


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json_value(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}", code="damaged", field="vocabulary") from error
    if not isinstance(row, dict):
        message = f'{where}: expected an object such as {{"name": "red star"}}, not {line[:40]}'
        raise UserError(message, code="wrong-type", field="vocabulary")
    return row


def _entries(row: Mapping[str, Any], where: str) -> list[VocabularyEntry]:
    name, description, text = (str(row.get(column) or "").strip() for column in ("name", "description", "text"))
    label = str(row.get("label") or "") or name or None
    relevant, junk = _truth(row, where)
    if text:
        kind = row.get("kind") or "name"
        if kind not in KINDS:
            message = f"{where}: kind is {kind!r}; it must be one of {', '.join(KINDS)}"
            raise UserError(message, code="unknown", field="kind")
        return [VocabularyEntry(text, kind, label, relevant, junk, *_said(row, text, where))]
    if not name and not description:
        message = f"{where}: expected a column name, description or text with a value; the row is {dict(row)}"
        raise UserError(message, code="no-text", field="vocabulary")
    kinds = [kind for kind in KINDS if (name or "name" not in kind) and (description or "description" not in kind)]
    said = _said(row, name or description, where)
    return [VocabularyEntry(query_text(kind, name, description), kind, label, relevant, junk, *said) for kind in kinds]


def _said(row: Mapping[str, Any], text: str, where: str) -> tuple[str | None, str | None]:
    """Return of which aspect of an image a text says which value."""
    aspect, value = (str(row.get(column) or "").strip() for column in ("aspect", "value"))
    if value and not aspect:
        message = f"{where} has the value {value!r} of no aspect; give the column aspect as well, such as colour"
        raise UserError(message, code="missing", field="aspect")
    return (aspect, value or text) if aspect else (None, None)


def _truth(row: Mapping[str, Any], where: str) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Return the ids of the rows that are relevant and of those that are junk."""
    relevant, junk = (_ids(row.get(column), f"{where}: {column}", column) for column in ("relevant", "junk"))
    if junk and relevant is None:
        message = f"{where} has junk rows and no relevant ones; give the column relevant, which may be an empty list"
        raise UserError(message, code="missing", field="relevant")
    if both := sorted(set(relevant or ()).intersection(junk or ())):
        message = f"{where}: {len(both)} rows are both relevant and junk: {', '.join(both[:3])}"
        raise UserError(message, code="overlap", field="junk")
    return relevant, junk


def _ids(value: Any, where: str, column: str) -> tuple[str, ...] | None:
    if value is None or value == "":
        return None
    ids = value
    if isinstance(value, str):
        ids = value.split()
        if value.lstrip().startswith("["):
            with suppress(ValueError):
                ids = json_value(value)
    if not isinstance(ids, list) or not all(isinstance(id, str) and id for id in ids):
        raise UserError(f"{where} must be a list of ids, not {value!r:.60}", code="wrong-type", field=column)
    return tuple(dict.fromkeys(ids))
