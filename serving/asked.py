"""A search under way: what it asks for, with the defaults filled in, and what is known of it so far."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from retrieval.assistant.material import Wanted
from retrieval.bridge import Reading
from retrieval.errors import UserError
from serving.deployments.calls import Deadline, Unavailable
from serving.deployments.messages import Piece, RowPiece, Tokens
from serving.memory.entry import Remembered, normalised
from serving.memory.picture import RememberedPicture
from serving.protocol import EvidencePiece, MemoryUse, SearchRequest, Visual


class Shortfall(NamedTuple):
    """Why an answer is not the one asked for: a word for ``metrics.degraded``, a sentence for people."""

    reason: str
    sentence: str

    @classmethod
    def of(cls, error: Unavailable) -> Shortfall:
        return cls(error.trouble, str(error))


@dataclass
class AskedText:
    """A text of a search, the query or evidence: normalised, and what is known of it so far.

    Attributes:
        name: what to call it in warnings.
        key: that it is remembered by, if it has one yet.
        known: as it was imagined.
        kept: places of the imagined images that count; all, but for those that the request drops.
        shortfall: why it has no imagined images.
    """

    text: str
    weight: float
    name: str
    memory: MemoryUse = "off"
    key: str | None = None
    vlm_D1: np.ndarray | None = None
    known: Remembered | None = None
    kept: list[int] = field(default_factory=list)
    shortfall: Shortfall | None = None

    def learn(self, known: Remembered) -> None:
        """Take note of what it was imagined as."""
        self.known, self.vlm_D1 = known, known.vlm_D1
        self.kept = list(range(len(known.seeds)))
        if not self.kept:
            reasons = ", ".join(sorted(set(known.rejected)))
            self.shortfall = Shortfall("rejected", f"no image could be imagined ({reasons})")

    @property
    def lacks_images(self) -> bool:
        """Nothing was imagined; what was dropped had been."""
        return not self.known or not len(self.known.seeds)

    def piece(self, *, visual: bool) -> Piece:
        """The text as the ranker takes it; if images count with its own, or else with the nearest real ones."""
        assert self.vlm_D1 is not None
        vision = self.known.vision_KD2[self.kept] if visual and self.known and self.kept else None
        return Piece(self.weight, self.vlm_D1, vision, nearest=visual and self.lacks_images, text=True)


@dataclass
class AskedPicture:
    """A picture of a search, and once it is known as both towers saw it."""

    given: EvidencePiece
    field: str
    seen: RememberedPicture | None = None

    @property
    def weight(self) -> float:
        return self.given.weight

    def piece(self, *, visual: bool) -> Piece:
        """The picture as the ranker takes it: with λ = 0 its visual half does not count by itself."""
        assert self.seen
        return Piece(self.weight, self.seen.vlm_D1, self.seen.vision_D2)


@dataclass
class Asked:
    """A search under way: the request with the defaults filled in, and what is known of how it went so far.

    ``evidence`` is all of it in its order, the query first; a ``Piece`` is what a composer has made.
    """

    request: SearchRequest
    request_id: str
    evidence: list[AskedText | AskedPicture | RowPiece | Piece]
    weight: float
    images: int
    deadline: Deadline
    version: str | None = None
    read: Reading | None = None
    """What pictures were read as."""
    brings_EG: np.ndarray | None = None
    """The share of each given piece in each piece of ``evidence``, if pictures were read or composed, and the search is
    made of what came of it since."""
    caller: str = ""
    """Who asks, for ``admission.Admission``."""
    shortfalls: list[Shortfall] = field(default_factory=list)
    """Why the answer will not be the one asked for, whatever it is ranked by."""
    warnings: list[str] = field(default_factory=list)
    timings_ms: dict[str, float] = field(default_factory=dict)

    @property
    def texts(self) -> list[AskedText]:
        return [one for one in self.evidence if isinstance(one, AskedText)]

    @property
    def pictures(self) -> list[AskedPicture]:
        return [one for one in self.evidence if isinstance(one, AskedPicture)]

    @property
    def query(self) -> AskedText | None:
        """The request's main text."""
        first = self.evidence[0]
        main = self.request.query is not None or self.read
        return first if isinstance(first, AskedText) and main else None

    @property
    def memory(self) -> MemoryUse:
        """Whether all texts were remembered that are imagined."""
        uses = {text.memory for text in self.texts}
        return "miss" if "miss" in uses else "hit" if "hit" in uses else "off"

    @property
    def in_words(self) -> Wanted:
        """What is searched for, as far as it is in words."""
        return Wanted.of((text.text, text.weight) for text in self.texts)

    def pieces(self, *, visual: bool) -> list[Piece | RowPiece]:
        """The evidence as the ranker takes it, its texts with or without their images."""
        return [one if isinstance(one, RowPiece | Piece) else one.piece(visual=visual) for one in self.evidence]

    @property
    def visual(self) -> Visual | None:
        """Where the visual half of what is wanted comes from, if it has one."""
        if any(text.lacks_images for text in self.texts):
            return "nearest"
        if any(text.kept for text in self.texts if text.weight > 0):
            return "imagined"
        given = [one for one in self.evidence if not isinstance(one, AskedText)]
        return "given" if any(one.weight > 0 for one in given) else None

    def warn_of(self, text: AskedText, tokens: Tokens) -> None:
        warning = f"{text.name} has {tokens.given} tokens, and the text model reads the first {tokens.read}"
        if tokens.given > tokens.read and warning not in self.warnings:  # it may be encoded to be read, and remembered
            self.warnings.append(warning)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time that a block takes to a stage's, also where it fails: the answer goes on without it."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + (time.monotonic() - started) * 1000


def no_images_to_drop() -> UserError:
    """Return the error of a request that drops imagined images and has no text that is imagined as its query."""
    return UserError("drop names images of the query, and there is none", code="no-such-image", field="drop")


def asked_evidence(request: SearchRequest) -> list[AskedText | AskedPicture | RowPiece | Piece]:
    """Return the evidence of a request, its query first.

    Raises:
        UserError: a text is blank.
    """
    query = [] if request.query is None else [AskedText(_normalised(request.query, "query"), 1.0, "the query")]
    return [*query, *(_asked(piece, f"evidence.{n}") for n, piece in enumerate(request.evidence))]


def _asked(piece: EvidencePiece, field: str) -> AskedText | AskedPicture | RowPiece:
    if piece.text is not None:
        return AskedText(_normalised(piece.text, f"{field}.text"), piece.weight, f"the text {piece.text[:40]!r}")
    if piece.row is not None and piece.box is None:
        return RowPiece(piece.weight, piece.row, f"{field}.row")
    return AskedPicture(piece, field)


def _normalised(text: str, field: str) -> str:
    try:
        return normalised(text)
    except UserError as error:
        raise UserError(str(error), code=error.code, field=field) from error
