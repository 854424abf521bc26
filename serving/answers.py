"""What a search answers: the ranking, how it came about, what was missing. Each answer to a request is counted here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import quote

from retrieval.errors import UserError
from serving import metrics
from serving.deployments.calls import Deadline, Unavailable
from serving.deployments.messages import Ranking, Row, Tokens
from serving.memory.entry import Remembered
from serving.protocol import ImaginedImage, MemoryUse, Result, SearchAnswer, SearchRequest, Shards, Stage


class Shortfall(NamedTuple):
    """Why an answer is not the one asked for: a word for ``metrics.degraded``, a sentence for people."""

    reason: str
    sentence: str

    @classmethod
    def of(cls, error: Unavailable) -> Shortfall:
        return cls(error.trouble, str(error))


@dataclass
class Asked:
    """A search under way: the request with the defaults filled in, and what is known of how it went so far."""

    request: SearchRequest
    request_id: str
    text: str
    weight: float
    images: int
    deadline: Deadline
    version: str | None = None
    memory: MemoryUse = "off"
    warnings: list[str] = field(default_factory=list)
    timings_ms: dict[str, float] = field(default_factory=dict)

    def warn_of(self, tokens: Tokens) -> None:
        if tokens.given > tokens.read:
            self.warnings = [
                f"the query has {tokens.given} tokens, and the text model reads the first {tokens.read}",
            ]

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
    degraded: Shortfall | None = None,
    last: bool = True,
) -> SearchAnswer:
    """Assemble an answer; the ``last`` one to a request is counted."""
    request = asked.request
    stage: Stage = "text" if ranking.weight == 0 else "visual" if request.mode == "visual" else "fused"
    shortfalls = _shortfalls(ranking, degraded)
    timings_ms = asked.timings_ms | {"total": asked.deadline.spent_ms}
    if last:
        _count(stage, shortfalls, asked.memory, timings_ms)
    return SearchAnswer(
        query=asked.text,
        kind=request.kind,
        mode=request.mode,
        stage=stage,
        weight=ranking.weight,
        k=request.k,
        results=[_result(row) for row in ranking.rows],
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


def _shortfalls(ranking: Ranking, degraded: Shortfall | None) -> list[Shortfall]:
    found = [degraded] if degraded else []
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
    )
