"""What goes over the wire: typed requests, answers and events of the HTTP API, version 1.

Bounds that no service would ever lift are here and show in the OpenAPI document; those an operator sets are in the
profile's ``serve.limits`` and are checked by ``serving.guards.limits``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from retrieval.prompts import Kind

Stage = Literal["text", "visual", "fused"]
Mode = Stage
"""As in ``retrieval.finder``, which loads all models, and this module none."""
MemoryUse = Literal["hit", "miss", "off"]


class SearchRequest(BaseModel):
    """A search by text."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"query": "yellow dotted fish"},
                {"query": "yellow dotted fish", "k": 20, "weight": 0.3, "images": 8, "deadline_ms": 2000},
                {"query": "an object with five spikes like a badge", "kind": "description", "mode": "text"},
            ]
        },
    )
    query: str = Field(min_length=1, description="What to find: a name, a description, or both.")
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
    drop: list[int] = Field(
        default_factory=list,
        description="Imagined images to leave out, by their index in the answer; nothing is imagined again.",
    )


class Result(BaseModel):
    """One found image: ``score`` = ``text_part`` + ``visual_part``, (1 − λ)·⟨t, c⟩ and λ·⟨v, d⟩."""

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
    answer is not the one asked for (no imagined images, a shard missing, the deadline), or null.
    """

    query: str
    kind: Kind | None
    mode: Mode
    stage: Stage
    weight: float
    k: int
    results: list[Result]
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


class Info(BaseModel):
    """What the service serves, and its limits."""

    version: str
    index: str
    index_version: str
    rows: int
    shards: int
    models: dict[str, str]
    aggregator: str | None
    weight: float
    images: int
    limits: dict[str, Any]
    examples: list[str]


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
