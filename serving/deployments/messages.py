"""What the deployments send one another: plain values, small enough to travel with a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from retrieval.artifacts import ModelRecord
from retrieval.index.hits import Hits
from retrieval.rankings import Fuse
from retrieval.second_stage import DEPTH, Rerank

PROBE = "a red striped star"
"""The query of warm-ups and health checks."""
START_SECONDS = 600
"""How long models and shards may take to be there, and shards to fetch and map a new version."""
SHARE_OF_SHARDS = 0.8
"""Of the time that a call has, so much is for the shards: what they found still has to be merged and sent."""


@dataclass(frozen=True)
class Model:
    """Which model a deployment runs; if it takes texts, the templates it puts them in and how many tokens it reads."""

    record: ModelRecord
    templates: Sequence[str] = ()
    context: int = 0


class Tokens(NamedTuple):
    """How many tokens a text is in its longest template, and how many of them the VLM reads."""

    given: int
    read: int


@dataclass(frozen=True, eq=False)
class EncodedText:
    """``vlm_D1``, float32 of unit norm, and the text's tokens."""

    vlm_D1: np.ndarray
    tokens: Tokens


@dataclass(frozen=True, eq=False)
class Imagination:
    """What a query was imagined as: K accepted images, as vectors float32 (K, D2), seeds (K,) and small JPEGs; and a
    reason for each image that was not accepted.
    """

    vision_KD2: np.ndarray
    seeds: np.ndarray
    thumbnails: list[bytes]
    rejected: list[str]


@dataclass(frozen=True, eq=False)
class Part:
    """What one shard of the index found for a query: ``hits``, (1, n), and ``columns`` of its n rows in their order.
    There are ``more`` of the k best where it sent fewer, because they were unlikely to be among the best of all shards.
    """

    shard: int
    """Its place in the manifest."""
    hits: Hits
    columns: dict[str, list[Any]]
    more: bool


@dataclass(frozen=True, eq=False)
class Piece:
    """One piece of evidence (``retrieval.evidence``), as vectors.

    Attributes:
        weight: below zero for what is not wanted.
        vlm_D1: τ, float32 of unit norm.
        vision: vectors of a text's K imagined images, float32 (K, D2), which are pooled to ν; or ν itself, (D2,); None
            for a text that has none.
        nearest: the nearest real images of the index are to stand in for those that it has not.
        text: whether it is a text; what a picture is, or was composed of one, has the means of pictures.
    """

    weight: float
    vlm_D1: np.ndarray
    vision: np.ndarray | None
    nearest: bool = False
    text: bool = False


@dataclass(frozen=True, eq=False)
class RowPiece:
    """A row of the gallery as evidence: c and d are where the ranker is.

    Attributes:
        weight: as of a ``Piece``.
        id: of the row.
        field: of the request, where the id came from.
    """

    weight: float
    id: str
    field: str


class Way(NamedTuple):
    """How several imagined images become one ranking, which second stage there is, and how many rows take part in it
    (``retrieval.rankings``, ``retrieval.second_stage``); which aspects count (``retrieval.lens``); and whether words
    are to be found that split what was found.
    """

    fuse: Fuse = "mean"
    rerank: Rerank = "none"
    depth: int = DEPTH
    focus: str | None = None
    ignore: tuple[str, ...] = ()
    refine: bool = False


AS_EVER = Way()


@dataclass(frozen=True, eq=False)
class Question:
    """What is to be ranked by, and how.

    Attributes:
        pieces: of evidence, one for something at least.
        weight: λ; with 0 no visual half counts.
        k: rows, from 1.
        version: URI of the index version; by default the current one.
        seconds: the time there is; shards that take too long are left out.
        way: how several images become one ranking, and what it is put in order by.
    """

    pieces: Sequence[Piece | RowPiece]
    weight: float
    k: int
    version: str | None
    seconds: float
    way: Way = AS_EVER

    @property
    def deep(self) -> int:
        """How many rows the shards are asked for."""
        images = self.weight and any(isinstance(one, Piece) and one.vision is not None for one in self.pieces)
        further = self.way.rerank != "none" or (self.way.fuse == "rrf" and images)
        return max(self.k, self.way.depth) if further else self.k


@dataclass(frozen=True)
class Row:
    """One ranked row of the gallery."""

    id: str
    shard: int
    """That it lies in, as its place in the manifest."""
    path: str
    source: str
    """What the path is relative to."""
    label: str | None
    metadata: dict[str, Any]
    score: float
    text_part: float
    visual_part: float
    shares: list[float] = field(default_factory=list)
    """What each piece of evidence brought to the score, of a question of several."""
    rerank_score: float | None = None
    """Of the second stage, by which it was put in its place."""


@dataclass(frozen=True)
class Ranking:
    """Rows, best first; the λ that they are ranked by; URI and name of the version that they are of; how many of its
    shards answered; the share of each image of the first piece in its ν; and the second stage.
    """

    rows: list[Row]
    weight: float
    version: str
    name: str
    answered: int
    total: int
    attention: list[float | None]
    reranked: str | None = None
    refinements: list[str] = field(default_factory=list)
    """Words that split the rows best."""


@dataclass(frozen=True)
class Served:
    """What is served: URI and name of an index version, its gallery's URI, rows, shards and models; and the λ where
    a request gives none.
    """

    version: str
    name: str
    gallery: str
    rows: int
    shards: int
    models: dict[str, str]
    weight: float
    aspects: list[str] | None = None
    """Of the dictionary; None without one."""
    composer: str | None = None
    """URI of the composer; None without one."""
