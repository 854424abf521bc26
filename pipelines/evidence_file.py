"""A file of queries made of evidence, one JSON object a line: what each is made of, and which rows are relevant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.truth import Truth
from retrieval.errors import UserError
from retrieval.evidence import MAX_PIECES, MAX_WEIGHT, check_weights
from retrieval.folder import Folder, given_text
from retrieval.prompts import usable

SUFFIX = ".jsonl"
Words = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Piece(BaseModel):
    """One piece of evidence: a text, the id of a row, or the place of a picture."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    text: Words | None = None
    row: Words | None = None
    picture: Words | None = None
    """A URI, or a path; one that is not absolute is relative to the file."""
    weight: Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)] = 1.0
    box: Annotated[list[Fraction], Field(min_length=4, max_length=4)] | None = None
    """The part of the picture that is meant: left, top, right, bottom, as fractions of its sides."""

    @model_validator(mode="after")
    def _one_of_three(self) -> Piece:
        if sum(value is not None for value in (self.text, self.row, self.picture)) != 1:
            raise ValueError("a piece of evidence is one of text, row and picture")
        if self.box:
            if self.picture is None:
                raise ValueError("only a picture has a box")
            left, top, right, bottom = self.box
            if left >= right or top >= bottom:
                raise ValueError(f"the box {self.box} (left, top, right, bottom) has nothing in it")
        return self

    @property
    def modality(self) -> str:
        return next(name for name in ("text", "row", "picture") if getattr(self, name) is not None)

    @property
    def name(self) -> str:
        """Return it in a few words, for people."""
        what = self.text or self.row or (self.picture or "").rsplit("/", 1)[-1]
        return what if self.weight == 1 else f"{self.weight:+g} {what}"


class _Line(BaseModel):
    """One line as it stands."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Words | None = None
    text: Words | None = None
    evidence: Annotated[list[Piece], Field(max_length=MAX_PIECES)] = []
    kind: Words | None = None
    relevant: list[Words]
    junk: list[Words] = []
    edits: list[Words] = []


class EvidenceQuery(NamedTuple):
    """One query.

    Attributes:
        where: file and line, for messages.
        id: as the file has it, or else the number of the line.
        kind: as the file has it, or else of what it is made, such as ``picture+text``.
        pieces: at least one of which is for something.
        truth: which rows are relevant and which are junk.
        edits: what the text, its first piece, becomes in round 1, 2, … of a simulated user.
    """

    where: str
    id: str
    kind: str
    pieces: tuple[Piece, ...]
    truth: Truth
    edits: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What it is made of, for people."""
        return "; ".join(piece.name for piece in self.pieces)


def is_evidence_file(place: object) -> bool:
    """Return whether a place is such a file, rather than a query set."""
    return isinstance(place, str | Path) and str(place).partition("?")[0].endswith(SUFFIX)


def read_evidence_file(file: str | Path) -> list[EvidenceQuery]:
    """Read a file of queries; docs/evidence.md describes it.

    Args:
        file: path or URI, ending in ``.jsonl``.

    Returns:
        The queries in the order of the file, pictures as URIs.

    Raises:
        UserError: the file is missing (``missing``), not UTF-8 (``not-utf-8``) or empty (``empty``); a line is not what
            it must be (``bad-line``), has rows that are both relevant and junk (``overlap``), an id that another has
            (``repeated``), a picture that is not there (``missing``), or evidence that ``check_weights`` or ``usable``
            refuses. Message and field say which line and which part of it.
    """
    place, content = Folder(file), given_text(file, "is no file of queries", field="queries")
    queries: dict[str, EvidenceQuery] = {}
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            query = _query(line, number, f"{file}, line {number}", place.parent)
            if query.id in queries:
                message = f"{query.where}: the id {query.id!r} is that of {queries[query.id].where} too"
                raise UserError(message, code="repeated", field="id")
            queries[query.id] = query
    if not queries:
        raise UserError(f"{file} has no queries in it", code="empty", field="queries")
    return list(queries.values())


def _query(line: str, number: int, where: str, folder: Folder) -> EvidenceQuery:
    try:
        read = _Line.model_validate_json(line)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, fault["loc"])) or "queries"
        message = f"{where}: {field}: {fault['msg'].removeprefix('Value error, ')}"
        raise UserError(message, code="bad-line", field=field) from error
    first = [Piece(text=read.text)] if read.text else []
    pieces = tuple(_placed(piece, n, where, folder) for n, piece in enumerate([*first, *read.evidence]))
    if both := sorted(set(read.relevant) & set(read.junk)):
        message = f"{where}: {len(both)} rows are both relevant and junk: {', '.join(both[:3])}"
        raise UserError(message, code="overlap", field="junk")
    if read.edits and (not pieces or pieces[0].text is None):
        message = f"{where}: edits are of a text, and the first piece of evidence is none"
        raise UserError(message, code="bad-line", field="edits")
    try:
        check_weights([piece.weight for piece in pieces])
        for text in (*(piece.text for piece in pieces), *read.edits):
            if text is not None:
                usable(text)
    except UserError as error:
        raise UserError(f"{where}: {error}", code=error.code, field=error.field) from error
    truth = Truth(None, tuple(dict.fromkeys(read.relevant)), tuple(dict.fromkeys(read.junk)))
    kind = read.kind or "+".join(dict.fromkeys(piece.modality for piece in pieces))
    return EvidenceQuery(where, read.id or str(number), kind, pieces, truth, tuple(read.edits))


def _placed(piece: Piece, number: int, where: str, folder: Folder) -> Piece:
    """Return a piece whose picture, if it is one, is a URI of a file that is there."""
    if piece.picture is None:
        return piece
    absolute = "://" in piece.picture or piece.picture.startswith("/")
    place = Folder(piece.picture) if absolute else folder / piece.picture
    if not place.exists():
        message = f"{where}: there is no picture at {place.uri}"
        raise UserError(message, code="missing", field=f"evidence.{number}.picture")
    return piece.model_copy(update={"picture": place.uri})


def missing_rows(queries: list[EvidenceQuery], known: set[str]) -> Iterator[tuple[EvidenceQuery, int, str]]:
    """Yield the rows that queries are made of and that are not known: the query, the number of the piece, the id."""
    for query in queries:
        for number, piece in enumerate(query.pieces):
            if piece.row is not None and piece.row not in known:
                yield query, number, piece.row
