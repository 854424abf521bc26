"""What goes over the wire: typed requests, answers and events of the HTTP API, version 1.

Bounds that no service would ever lift are here and show in the OpenAPI document; those an operator sets are in the
profile's ``serve.limits`` and are checked by ``serving.guards.limits``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from retrieval.errors import UserError
from retrieval.evidence import MAX_PIECES, MAX_WEIGHT, check_weights
from retrieval.prompts import Kind
from retrieval.rankings import Fuse
from retrieval.second_stage import DEPTH, MAX_DEPTH, Rerank

Stage = Literal["text", "visual", "fused"]
Mode = Stage
"""As in ``retrieval.finder``, which loads all models, and this module none."""
MemoryUse = Literal["hit", "miss", "off"]


Visual = Literal["imagined", "nearest", "given"]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class EvidencePiece(BaseModel):
    """One thing to search for, or against: exactly one of ``text``, ``row``, ``upload`` and ``imagined``."""

    model_config = ConfigDict(extra="forbid")
    text: str | None = Field(None, min_length=1, description="Words, which are imagined as a query is.")
    row: str | None = Field(None, min_length=1, max_length=4096, description="An image of the gallery, by its id.")
    upload: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="A picture, by the key that POST /v1/pictures gave."
    )
    imagined: str | None = Field(
        None, pattern="^[0-9a-f]{64}/[0-9]{1,4}$", description="An imagined image, by the last two parts of its URL."
    )
    weight: float = Field(
        1.0, ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False, description="Below zero for what is not wanted."
    )
    box: tuple[Fraction, Fraction, Fraction, Fraction] | None = Field(
        None, description="The part of a row or an upload that is meant: left, top, right, bottom, as fractions of it."
    )

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        kinds = [kind for kind in ("text", "row", "upload", "imagined") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise UserError(
                f"a piece of evidence has one of text, row, upload and imagined, and this one has"
                f" {' and '.join(kinds) or 'none'}",
                code="ambiguous" if kinds else "empty",
            )
        if not self.weight:
            raise UserError("evidence of weight 0 says nothing", code="out-of-range", field="weight")
        if self.box:
            if kinds[0] not in ("row", "upload"):
                raise UserError(f"{kinds[0]} has no box: a row or an upload has", code="no-picture", field="box")
            left, top, right, bottom = self.box
            if left >= right or top >= bottom:
                message = f"a box is left, top, right, bottom, and nothing lies within {self.box}"
                raise UserError(message, code="out-of-range", field="box")
        return self


class SearchRequest(BaseModel):
    """A search by evidence: a text as ``query``, further ``evidence`` for and against, or both."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"query": "yellow dotted fish"},
                {"query": "yellow dotted fish", "k": 20, "weight": 0.3, "images": 8, "deadline_ms": 2000},
                {"query": "an object with five spikes like a badge", "kind": "description", "mode": "text"},
                {"query": "star", "evidence": [{"text": "red", "weight": -0.4}, {"row": "2042c464ddd920ef-2edbd0de"}]},
                {"evidence": [{"upload": "0123456789abcdef" * 4, "box": [0.1, 0.1, 0.6, 0.9]}], "k": 20},
            ]
        },
    )
    query: str | None = Field(
        None, min_length=1, description="What to find: a name, a description, or both. It is a text of weight 1."
    )
    evidence: list[EvidencePiece] = Field(
        default_factory=list, max_length=MAX_PIECES, description="What else to search for, and against."
    )
    kind: Kind = Field("name", description="What kind of text the query is; it changes no answer.")
    mode: Mode = Field("fused", description="Rank by text alone, by imagined images alone, or by both.")
    k: int = Field(10, ge=1, strict=True, description="Number of results.")
    weight: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="λ of the fused ranking: 0 text alone, 1 images alone."
    )
    images: int | None = Field(None, ge=1, strict=True, description="K, images to imagine; by default the profile's.")
    seed: int = Field(0, ge=0, lt=2**63, strict=True, description="Seed of the imagined images.")
    deadline_ms: int | None = Field(
        None, ge=1, strict=True, description="The answer is the best there is by then; by default the service's."
    )
    fuse: Fuse = Field("mean", description="How several imagined images become one ranking.")
    rerank: Rerank = Field(
        "none",
        description="The second stage: none, the candidates' neighbours, or an assistant that is shown their pictures"
        " one by one (judge) or on one (list).",
    )
    depth: int = Field(
        DEPTH, ge=1, le=MAX_DEPTH, strict=True, description="How many rows the second stage, or each list of rrf, has."
    )
    focus: str | None = Field(None, min_length=1, description="An aspect of the dictionary, which then counts alone.")
    ignore: list[str] = Field(
        default_factory=list, max_length=MAX_PIECES, description="Aspects of the dictionary that do not count."
    )
    bridge: Literal["auto", "none", "words", "composer"] = Field(
        "auto",
        description="Whether pictures are read into words: together with texts (auto), always (words) or never (none)."
        " With composer a trained network makes one query of pictures and texts instead.",
    )
    drop: list[int] = Field(
        default_factory=list,
        description="Imagined images of the query to leave out, by their index in the answer; nothing is imagined"
        " again.",
    )

    @model_validator(mode="after")
    def _wants_something(self) -> Self:
        check_weights([*([1.0] if self.query is not None else []), *(piece.weight for piece in self.evidence)])
        return self


class UploadedPicture(BaseModel):
    """A picture that was sent and is remembered: ``upload`` is its key, for evidence."""

    upload: str
    width: int
    height: int


class Result(BaseModel):
    """One found image: ``score`` = ``text_part`` + ``visual_part``, (1 − λ)·⟨t, c⟩ and λ·⟨v, d⟩.

    ``shares`` is what each piece of evidence brought to the score, the query first, and adds up to it; empty for a
    query of one piece. With ``fuse`` = ``max`` the visual part is by the image that the row is most like; with ``rrf``
    both parts are sums of 1 / (60 + rank), and there are no shares. ``rerank_score`` is the second stage's, by which
    the row was put in its place; null without one, or beyond its depth.
    """

    id: str
    path: str
    label: str | None
    metadata: dict[str, Any]
    """Width and height of the image, and what else its source says of it."""
    url: str
    thumbnail: str
    score: float
    text_part: float
    visual_part: float
    shares: list[float] = []
    rerank_score: float | None = None


class ImaginedImage(BaseModel):
    """One imagined image. ``attention`` is its share in the visual vector; those of an answer add up to 1."""

    index: int
    seed: int
    url: str
    attention: float | None
    dropped: bool


class Shards(BaseModel):
    """How many shards answered, of how many."""

    answered: int
    total: int


class SearchAnswer(BaseModel):
    """The ranking and how it came about.

    ``stage`` says what it was ranked by and ``weight`` the λ really used. ``degraded`` is the reason for which the
    answer is not the one asked for (no imagined images, a shard missing, the deadline), or null. ``visual`` is where
    the visual half came from: ``imagined`` images, the ``nearest`` images of the gallery, or pictures that were
    ``given``; null where the ranking has none. ``imagined`` lists the images of ``query`` alone. ``query`` is empty and
    ``kind`` null where the request had no query.
    """

    query: str
    kind: Kind | None
    mode: Mode
    stage: Stage
    weight: float
    visual: Visual | None = None
    k: int
    results: list[Result]
    words: list[str] = Field(default=[], description="What was read from a picture.")
    recomposed: str | None = Field(
        default=None,
        description="The text that pictures and texts became by that, which was imagined and ranked by. To send it as"
        " the query, edited or not, needs no picture.",
    )
    refinements: list[str] = Field(default=[], description="Words that split the results best.")
    reranked: str | None = Field(default=None, description="The second stage that the results were put in order by.")
    imagined: list[ImaginedImage]
    memory: MemoryUse
    index_version: str
    shards: Shards
    degraded: str | None
    warnings: list[str]
    timings_ms: dict[str, float] = Field(description="Milliseconds by stage: text, imagine, rank, total.")
    request_id: str


class ImaginedEvent(BaseModel):
    """The data of the event ``imagined``: what the fused ranking, which comes next, is made with."""

    imagined: list[ImaginedImage]
    memory: MemoryUse


class QuestionAnswer(BaseModel):
    """What would narrow a search most, as an assistant asks it.

    ``question`` is null where there is none: ``degraded`` says what fell short, and is null where the results differ in
    no words. ``choices`` are words in which they differ: each is meant to be added to the search as a text.
    """

    question: str | None
    choices: list[str]
    degraded: str | None
    request_id: str


class Info(BaseModel):
    """What the service serves, and its limits."""

    version: str
    index: str
    index_version: str
    rows: int
    shards: int
    models: dict[str, str]
    aggregator: str | None
    composer: str | None = Field(default=None, description="Of the bridge of that name; null without one.")
    weight: float
    images: int
    assistant: int = Field(default=0, description="How many results an assistant may be shown; 0 without one.")
    limits: dict[str, Any]
    examples: list[str]
    aspects: list[str] = Field(default=[], description="Those of the dictionary, for focus and ignore.")


class IndexSwitch(BaseModel):
    """Which index to serve from now on."""

    model_config = ConfigDict(extra="forbid")
    index: str = Field(min_length=1, description="URI of an index, or of one version of it.")


class Fault(BaseModel):
    """Why a request was not answered: a short fixed word, a sentence, and the field that is wrong, if one is."""

    code: str
    message: str
    field: str | None = None


class FaultAnswer(BaseModel):
    """The body of every answer that is an error, and of the event ``error``."""

    error: Fault
    request_id: str
