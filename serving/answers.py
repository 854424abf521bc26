"""What a search answers: the ranking, how it came about, what was missing. Each answer to a request is counted here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from retrieval.assistant.material import Wanted
from retrieval.bridge import Reading, given_shares
from retrieval.errors import UserError
from serving import metrics
from serving.deployments.calls import Deadline, Unavailable
from serving.deployments.messages import Piece, Ranking, Row, RowPiece, Tokens
from serving.memory.entry import Remembered
from serving.memory.picture import RememberedPicture
from serving.protocol import (
    EvidencePiece,
    ImaginedImage,
    MemoryUse,
    Result,
    SearchAnswer,
    SearchRequest,
    Shards,
    Stage,
    Visual,
)


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

    ``evidence`` is all of it in its order, the query first.
    """

    request: SearchRequest
    request_id: str
    evidence: list[AskedText | AskedPicture | RowPiece]
    weight: float
    images: int
    deadline: Deadline
    version: str | None = None
    read: tuple[Reading, np.ndarray] | None = None
    """What pictures were read as, and the share of each given piece in each piece of ``evidence``, which is what the
    search is made of since."""
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
        return [one if isinstance(one, RowPiece) else one.piece(visual=visual) for one in self.evidence]

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
        if tokens.given > tokens.read:
            self.warnings.append(
                f"{text.name} has {tokens.given} tokens, and the text model reads the first {tokens.read}"
            )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.timings_ms[stage] = (time.monotonic() - started) * 1000


def answer(
    asked: Asked,
    ranking: Ranking,
    images: Sequence[ImaginedImage] = (),
    *,
    degraded: Sequence[Shortfall] = (),
    last: bool = True,
) -> SearchAnswer:
    """Assemble an answer; the ``last`` one to a request is counted."""
    request, query = asked.request, asked.query
    stage: Stage = "text" if ranking.weight == 0 else "visual" if request.mode == "visual" else "fused"
    shortfalls = _shortfalls(ranking, degraded)
    timings_ms = asked.timings_ms | {"total": asked.deadline.spent_ms}
    if last:
        _count(stage, shortfalls, asked.memory, timings_ms)
    return SearchAnswer(
        query=query.text if query and not asked.read else request.query or "",
        kind=None if request.query is None else request.kind,
        mode=request.mode,
        stage=stage,
        weight=ranking.weight,
        visual=None if ranking.weight == 0 else asked.visual,
        k=request.k,
        results=[_result(row) for row in _as_given(asked, ranking.rows)],
        words=[word.value for word in asked.read[0].words] if asked.read else [],
        recomposed=asked.read[0].text if asked.read else None,
        refinements=ranking.refinements,
        reranked=ranking.reranked,
        imagined=list(images),
        memory=asked.memory,
        index_version=ranking.name,
        shards=Shards(answered=ranking.answered, total=ranking.total),
        degraded="; ".join(one.sentence for one in shortfalls) or None,
        warnings=list(asked.warnings),
        timings_ms={name: round(ms, 2) for name, ms in timings_ms.items()},
        request_id=asked.request_id,
    )


def imagined_images(key: str, known: Remembered, drop: set[int]) -> list[ImaginedImage]:
    """What an answer says of the imagined images.

    Raises:
        UserError: one is to be dropped that does not exist.
    """
    indices = known.indices.tolist()
    if unknown := sorted(drop.difference(indices)):
        raise UserError(f"drop names images {unknown}, and there are {indices}", code="no-such-image", field="drop")
    return [
        ImaginedImage(index=i, seed=seed, url=f"/v1/imagined/{key}/{i}", attention=None, dropped=i in drop)
        for i, seed in zip(indices, known.seeds.tolist(), strict=True)
    ]


def _shortfalls(ranking: Ranking, degraded: Sequence[Shortfall]) -> list[Shortfall]:
    found = list(dict.fromkeys(degraded))  # two texts may lack the same
    if missing := ranking.total - ranking.answered:
        found.append(Shortfall("shards", f"{missing} of {ranking.total} shards of the index did not answer"))
    return found


def _count(stage: Stage, shortfalls: Sequence[Shortfall], memory: MemoryUse, timings_ms: dict[str, float]) -> None:
    metrics.answers.count(stage=stage)
    for shortfall in shortfalls:
        metrics.degraded.count(reason=shortfall.reason)
    if memory != "off":
        metrics.memory.count(outcome=memory)
    for name, ms in timings_ms.items():
        metrics.stage_seconds.observe(ms / 1000, stage=name)


def _as_given(asked: Asked, rows: Sequence[Row]) -> list[Row]:
    """Rows with the shares of what was given, whatever it was read as."""
    if not asked.read or asked.read[1].shape[1] == 1:
        return list(rows)
    _, brings_EG = asked.read
    # A ranking by one piece has no shares; by ranks of imagined images there are none to tell.
    alone = len(asked.evidence) == 1 and not (asked.request.fuse == "rrf" and asked.visual == "imagined")
    shares = given_shares([[row.score] if alone else row.shares for row in rows], brings_EG)
    return [replace(row, shares=of_row) for row, of_row in zip(rows, shares, strict=True)]


def _result(row: Row) -> Result:
    url = f"/v1/images/{quote(row.id, safe='')}?shard={row.shard}"
    return Result(
        id=row.id,
        path=row.path,
        label=row.label,
        metadata=row.metadata,
        url=url,
        thumbnail=f"{url}&size=thumbnail",
        score=row.score,
        text_part=row.text_part,
        visual_part=row.visual_part,
        shares=row.shares,
        rerank_score=row.rerank_score,
    )
