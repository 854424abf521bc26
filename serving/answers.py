"""What a search answers: the ranking, how it came about, what was missing. Each answer to a request is counted here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import quote

from retrieval.bridge import given_shares
from retrieval.errors import UserError
from serving import metrics
from serving.asked import Asked, Shortfall
from serving.deployments.messages import Ranking, Row
from serving.memory.entry import Remembered
from serving.protocol import ImaginedImage, MemoryUse, Result, SearchAnswer, Shards, Stage


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
    shortfalls = _shortfalls(ranking, [*asked.shortfalls, *degraded])
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
        words=[word.value for word in asked.read.words] if asked.read else [],
        recomposed=asked.read.text if asked.read else None,
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
    brings_EG = asked.brings_EG
    if brings_EG is None or brings_EG.shape[1] == 1:
        return list(rows)
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
