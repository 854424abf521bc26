"""A search from request to answer: which deployments are asked for what, in which order, and what is said when one of
them does not answer. Runs inside the ingress.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import numpy as np
from ray.serve.handle import DeploymentHandle

from cluster.profile import ServeSettings
from serving import metrics
from serving.deployments.calls import Deadline, Trouble, Unavailable, call
from serving.deployments.messages import (
    BY_VALUE_BYTES,
    PROBE,
    START_SECONDS,
    EncodedText,
    Imagination,
    Model,
    Ranking,
    Row,
    Served,
    Tokens,
)
from serving.memory.memory import Memory, Remembered, memory_key, normalised
from serving.protocol import (
    ImaginedEvent,
    ImaginedImage,
    MemoryUse,
    Mode,
    Result,
    SearchAnswer,
    SearchRequest,
    Shards,
    Stage,
)

Event = tuple[Literal["text", "imagined", "fused"], SearchAnswer | ImaginedEvent]

EXAMPLES, EXAMPLES_FROM = 6, 100
"""Labels to try, out of those of so many images."""
PATHS = 20_000
"""Rows of answers whose paths are at hand when their pictures are asked for."""
SHARE_OF_MEMORY = 0.25
"""Of the time that a request has, what looking for its images may take."""
SPECIAL_TOKENS = 3
"""A tokenizer adds its start and end, and some a space; each other token stands for a byte at least."""


@dataclass(frozen=True)
class Parts:
    """The deployments that a search asks; without a ``generator`` only remembered queries are fused."""

    vlm: DeploymentHandle
    vision: DeploymentHandle
    generator: DeploymentHandle | None
    ranker: DeploymentHandle


@dataclass(frozen=True)
class Defaults:
    """K where a request gives none; and the generator whose images are remembered, if none runs."""

    images: int
    generator_fingerprint: str | None = None


class _Shortfall(NamedTuple):
    """Why an answer is not the one asked for: a word for ``metrics.degraded``, a sentence for people."""

    reason: str
    sentence: str

    @classmethod
    def of(cls, error: Unavailable) -> _Shortfall:
        return cls(error.trouble, str(error))


@dataclass
class _Asked:
    """A search under way: the request with the defaults filled in, and what there is to say of how it went."""

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
            said = f"the query has {tokens.given} tokens, and the text model reads the first {tokens.read}"
            self.warnings = [said]

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.timings_ms[stage] = (time.monotonic() - begun) * 1000


class Search:
    """Answers requests by asking the other deployments. For one event loop.

    Attributes:
        ready: every deployment has answered once.
        examples: queries that the gallery has an answer to, if its images have labels.
    """

    def __init__(self, parts: Parts, memory: Memory, settings: ServeSettings, defaults: Defaults) -> None:
        self.memory = memory
        self.defaults = defaults
        self.ready = False
        self.examples: list[str] = []
        self._parts = parts
        self._settings = settings
        self._weight: float | None = None
        self._models: dict[str, Model] = {}
        self._generator_back: asyncio.Task[Any] | None = None
        self._generator_trouble: Trouble = "down"
        # Who has got an answer asks for its pictures next.
        self._paths: OrderedDict[str, tuple[str, str]] = OrderedDict()

    async def warm_up(self) -> None:
        """Ask every deployment once, as requests will. Texts are answered before there is a generator.

        Raises:
            Unavailable, ValueError: one of them does not work.
        """
        vlm, vision, generator, ranker = self._parts.vlm, self._parts.vision, self._parts.generator, self._parts.ranker
        served: Served = await _start("the ranker", ranker.served)
        self._weight = served.weight
        encoded: EncodedText = await _start("the text encoder", vlm.encode_text, PROBE)
        near: Ranking = await _start(
            "the ranker", ranker.rank, encoded.vlm_D1, None, 0.0, EXAMPLES_FROM, None, START_SECONDS
        )
        self.examples = list(dict.fromkeys(row.label for row in near.rows if row.label))[:EXAMPLES]
        self._models["vision"] = await _start("the vision encoder", vision.model)
        self._models["vlm"] = await _start("the text encoder", vlm.model)
        if generator:
            self._models["generator"] = await _start("the generator", generator.model)
            await _start("the generator", generator.imagine, PROBE, 1, 0)
        self.ready = True

    async def served(self) -> Served:
        """Return what the ranker serves."""
        return await call("the ranker", self._parts.ranker.served, seconds=self._settings.deadline_ms / 1000)

    async def switch(self, index: str) -> Served:
        """Serve another index from now on; return once every replica of the ranker has moved to it.

        Raises:
            ValueError: there is none at that URI, or other models made it.
        """
        await call("the ranker", self._parts.ranker.switch, index, seconds=START_SECONDS)
        await asyncio.wait_for(self._parts.ranker.broadcast("follow").results_async(), START_SECONDS)
        return await self.served()

    async def path(self, id: str) -> tuple[str, str] | None:
        """Return the path of the gallery row of that id, and the URI of its source; None if there is none."""
        if id not in self._paths:
            found = await call("the ranker", self._parts.ranker.path, id, seconds=self._settings.deadline_ms / 1000)
            if not found:
                return None
            self._keep_path(id, *found)
        return self._paths[id]

    async def answer(self, request: SearchRequest, request_id: str) -> SearchAnswer:
        """Return the best answer that there is by the request's deadline.

        Raises:
            Unavailable: not even the text could be ranked.
            ValueError: the text is blank, or an image to be dropped does not exist.
        """
        async with aclosing(self._stages(request, request_id, each=False)) as stages:
            answers = [data async for _, data in stages]
        assert isinstance(answers[-1], SearchAnswer)
        return answers[-1]

    def stages(self, request: SearchRequest, request_id: str) -> AsyncGenerator[Event]:
        """Yield the stages of an answer as they come: ``text``; then ``imagined``, if anything was; then ``fused``, the
        last answer, whatever it was ranked by. A search by text alone is over after ``text``.

        Raises:
            as ``answer``.
        """
        return self._stages(request, request_id, each=True)

    async def by_picture(
        self, data: bytes, request_id: str, *, k: int, mode: Mode = "fused", weight: float | None = None
    ) -> SearchAnswer:
        """Rank by a picture: by the VLM's vector of it in the place of the text's, and by the vision encoder's.

        Raises:
            Unavailable: it could not be ranked.
            ImageRejected: there is no picture in ``data`` that can be read.
        """
        asked = self._asked(
            SearchRequest.model_validate({"query": "picture", "k": k, "mode": mode, "weight": weight}), request_id
        )
        options = {"method_name": "encode_file", "_by_reference": len(data) > BY_VALUE_BYTES or None}
        with asked.timed("text"), metrics.waiting.one(part="pictures"):
            vlm_D1, vision_D2 = await asyncio.gather(
                *(
                    call(name, handle.options(**options), data, seconds=asked.deadline.left)
                    for name, handle in (
                        ("the image encoder", self._parts.vlm),
                        ("the vision encoder", self._parts.vision),
                    )
                )
            )
        answer = self._answer(asked, await self._rank(asked, "rank", vlm_D1, vision_D2))
        return answer.model_copy(update={"query": "", "kind": None})

    async def _stages(self, request: SearchRequest, request_id: str, *, each: bool) -> AsyncGenerator[Event]:
        asked = self._asked(request, request_id)
        if asked.weight == 0:
            yield "text", self._answer(asked, await self._rank(asked, "rank", await self._encode(asked)))
            return
        key, trouble = self._key(asked)
        known = await self._recalled(asked, key) if key else None
        asked.memory = "hit" if known else "miss" if key else "off"
        vlm_D1 = known.vlm_D1 if known else await self._encode(asked)
        making = asyncio.create_task(self._obtain(asked, key, vlm_D1)) if key and not known else None
        by_text: Ranking | None = None
        try:
            if each or not known:
                by_text = await self._rank(asked, "text_rank", vlm_D1)
                yield "text", self._answer(asked, by_text, last=False)
            if making:
                with asked.timed("imagine"):
                    known, trouble = await making
        finally:
            # If the client has gone, and nobody else waits for these images, their making ends.
            if making:
                making.cancel()
        if key and known:
            images = _images(key, known, set(request.drop))
            if images:
                yield "imagined", ImaginedEvent(imagined=images, memory=asked.memory)
            yield "fused", await self._by_images(asked, known, images, by_text)
        else:
            by_text = by_text or await self._rank(asked, "rank", vlm_D1)
            yield "fused", self._answer(asked, by_text, degraded=trouble)

    async def _recalled(self, asked: _Asked, key: str) -> Remembered | None:
        """What is remembered, if the store says so in time: one that hangs costs the images, and not the text."""
        try:
            return await asyncio.wait_for(self.memory.recall(key), SHARE_OF_MEMORY * asked.deadline.left)
        except TimeoutError:
            return None

    async def _by_images(
        self, asked: _Asked, known: Remembered, images: list[ImaginedImage], by_text: Ranking | None
    ) -> SearchAnswer:
        """The answer by the images that are kept; by the text, if none is or they can not be ranked by."""
        kept = [place for place, image in enumerate(images) if not image.dropped]
        trouble = _Shortfall("dropped", "every imagined image was left out")
        if not images:
            reasons = ", ".join(sorted(set(known.rejected)))
            trouble = _Shortfall("rejected", f"no image could be imagined ({reasons})")
        if kept:
            counted = asyncio.create_task(self._count_tokens(asked))
            try:
                ranking = await self._rank(asked, "rank", known.vlm_D1, known.vision_KD2[kept])
                await counted
            except Unavailable as error:
                if not by_text:
                    raise
                trouble = _Shortfall.of(error)
            else:
                shares = dict(zip(kept, ranking.attention, strict=True))
                images = [image.model_copy(update={"attention": shares.get(i)}) for i, image in enumerate(images)]
                return self._answer(asked, ranking, images)
            finally:
                counted.cancel()
        by_text = by_text or await self._rank(asked, "rank", known.vlm_D1)
        return self._answer(asked, by_text, images, degraded=trouble)

    def _asked(self, request: SearchRequest, request_id: str) -> _Asked:
        weight: float | None = {"text": 0.0, "visual": 1.0}.get(request.mode, request.weight)
        weight = self._weight if weight is None else float(weight)
        if weight is None:
            raise Unavailable("the service", "starting")
        most = self._settings.deadline_ms
        return _Asked(
            request=request,
            request_id=request_id,
            text=normalised(request.query),
            weight=weight,
            images=request.images or self.defaults.images,
            deadline=Deadline(min(request.deadline_ms or most, most) / 1000),
        )

    async def _encode(self, asked: _Asked) -> np.ndarray:
        """t of the text, float32 (D1,)."""
        with asked.timed("text"), metrics.waiting.one(part="text"):
            encoded: EncodedText = await call(
                "the text encoder", self._parts.vlm.encode_text, asked.text, seconds=asked.deadline.left
            )
        asked.warn_of(encoded.tokens)
        return encoded.vlm_D1

    async def _count_tokens(self, asked: _Asked) -> None:
        """Warn of a text whose vector was remembered, as encoding it would have. Most are too short to be counted."""
        model = self._models.get("vlm")
        if asked.memory != "hit" or not model:
            return
        longest = max(len(template.encode()) for template in model.templates)
        if len(asked.text.encode()) + longest + SPECIAL_TOKENS > model.context:
            with suppress(Unavailable):  # an answer without the warning is better than none
                tokens = self._parts.vlm.tokens
                asked.warn_of(await call("the text encoder", tokens, asked.text, seconds=asked.deadline.left))

    async def _rank(self, asked: _Asked, stage: str, vlm_D1: np.ndarray, vision: np.ndarray | None = None) -> Ranking:
        """Rank by text, or with ``vision`` (``Ranker.rank``) as asked; by one index version throughout a search."""
        seconds = asked.deadline.left
        weight = 0.0 if vision is None else asked.weight
        with asked.timed(stage), metrics.waiting.one(part="ranker"):
            ranking: Ranking = await call(
                "the ranker",
                self._parts.ranker.rank,
                vlm_D1,
                vision,
                weight,
                asked.request.k,
                asked.version,
                seconds,
                seconds=seconds,
            )
        asked.version = ranking.version
        for row in ranking.rows:
            self._keep_path(row.id, row.path, row.source)
        return ranking

    def _keep_path(self, id: str, path: str, source: str) -> None:
        self._paths[id] = path, source
        self._paths.move_to_end(id)
        while len(self._paths) > PATHS:
            self._paths.popitem(last=False)

    def _key(self, asked: _Asked) -> tuple[str | None, _Shortfall | None]:
        """The key that the text is remembered by, or why there is none."""
        models = self._models
        generator = models["generator"].record.fingerprint if "generator" in models else None
        generator = generator or self.defaults.generator_fingerprint
        if not generator or not {"vlm", "vision"} <= models.keys():
            return None, _Shortfall.of(Unavailable("the generator", "starting"))
        key = memory_key(
            asked.text,
            asked.request.kind,
            asked.images,
            asked.request.seed,
            generator_fingerprint=generator,
            vision_fingerprint=models["vision"].record.fingerprint,
            vlm_fingerprint=models["vlm"].record.fingerprint,
            templates=models["vlm"].templates,
        )
        return key, None

    async def _obtain(self, asked: _Asked, key: str, vlm_D1: np.ndarray) -> tuple[Remembered | None, _Shortfall | None]:
        """The imagined query, or why there is none. Many who ask for the same one wait for one generation."""
        if not self._parts.generator:
            return None, _Shortfall("down", "this service has no generator, and does not remember this query")
        try:
            known, remembered = await self.memory.obtain(
                key, lambda: self._imagine(asked, vlm_D1), seconds=asked.deadline.left
            )
        except TimeoutError:
            return None, _Shortfall("deadline", "no image was imagined by the deadline")
        except Unavailable as error:
            return None, _Shortfall.of(error)
        asked.memory = "hit" if remembered else "miss"
        return known, None

    async def _imagine(self, asked: _Asked, vlm_D1: np.ndarray) -> Remembered:
        generator = self._parts.generator
        assert generator
        if self._generator_back and not self._generator_back.done():
            raise Unavailable("the generator", self._generator_trouble)
        seconds = self._settings.deadline_ms / 1000
        try:
            with metrics.waiting.one(part="generator"):
                made: Imagination = await call(
                    "the generator",
                    generator.imagine,
                    asked.text,
                    asked.images,
                    asked.request.seed,
                    seconds=seconds,
                    again=False,
                )
        except Unavailable as error:
            if error.trouble in ("down", "late"):
                # A call would wait for the next replica, and with it the client. Until that is there, text answers. One
                # that died with nothing to do is missed only by being late.
                self._generator_trouble = error.trouble
                self._generator_back = asyncio.create_task(_arrival(generator))
            raise
        indices = np.arange(len(made.seeds))
        return Remembered(
            asked.text, asked.request.kind, vlm_D1, made.vision_KD2, made.seeds, indices, made.thumbnails, made.rejected
        )

    def _answer(
        self,
        asked: _Asked,
        ranking: Ranking,
        images: Sequence[ImaginedImage] = (),
        *,
        degraded: _Shortfall | None = None,
        last: bool = True,
    ) -> SearchAnswer:
        """Say it all; the ``last`` answer to a request is counted."""
        request = asked.request
        stage: Stage = "text" if ranking.weight == 0 else "visual" if request.mode == "visual" else "fused"
        missing = ranking.total - ranking.answered
        faults = [degraded] if degraded else []
        if missing:
            faults.append(_Shortfall("shards", f"{missing} of {ranking.total} shards of the index did not answer"))
        timings_ms = asked.timings_ms | {"total": asked.deadline.spent_ms}
        if last:
            metrics.answers.count(stage=stage)
            for fault in faults:
                metrics.degraded.count(reason=fault.reason)
            if asked.memory != "off":
                metrics.memory.count(outcome=asked.memory)
            for name, ms in timings_ms.items():
                metrics.stage_seconds.observe(ms / 1000, stage=name)
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
            degraded="; ".join(fault.sentence for fault in faults) or None,
            warnings=list(asked.warnings),
            timings_ms={name: round(ms, 2) for name, ms in timings_ms.items()},
            request_id=asked.request_id,
        )


async def _start(part: str, method: Any, *arguments: Any) -> Any:
    return await call(part, method, *arguments, seconds=START_SECONDS)


async def _arrival(generator: DeploymentHandle) -> None:
    with suppress(Unavailable):
        await _start("the generator", generator.model)


def _images(key: str, known: Remembered, drop: set[int]) -> list[ImaginedImage]:
    """What an answer says of the imagined images.

    Raises:
        ValueError: one is to be dropped that is not there.
    """
    indices = known.indices.tolist()
    if unknown := sorted(drop.difference(indices)):
        raise ValueError(f"drop names images {unknown}, and there are {indices}")
    return [
        ImaginedImage(index=i, seed=seed, url=f"/v1/imagined/{key}/{i}", attention=None, dropped=i in drop)
        for i, seed in zip(indices, known.seeds.tolist(), strict=True)
    ]


def _result(row: Row) -> Result:
    url = f"/v1/images/{quote(row.id, safe='')}"
    return Result(
        id=row.id,
        path=row.path,
        label=row.label,
        metadata=row.metadata,
        url=url,
        thumbnail=f"{url}?size=thumbnail",
        score=row.score,
        text_part=row.text_part,
        visual_part=row.visual_part,
    )
