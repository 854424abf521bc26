"""A search from request to answer: which deployments are asked for what, in which order. Runs inside the ingress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from ray.serve.handle import DeploymentHandle

from cluster.profile import ServeSettings
from retrieval.errors import UserError
from retrieval.images import ImageRejected
from serving import metrics
from serving.admission import Admission
from serving.answers import Asked, Shortfall, answer, imagined_images
from serving.deployments.calls import Deadline, Unavailable, call, call_every_replica
from serving.deployments.gathering import Gathering
from serving.deployments.messages import (
    PROBE,
    SHARE_OF_SHARDS,
    START_SECONDS,
    EncodedText,
    Question,
    Ranking,
    Served,
)
from serving.imaginer import Imaginer
from serving.memory.entry import Remembered, normalised
from serving.memory.memory import Memory
from serving.pictures import Places
from serving.protocol import ImaginedEvent, ImaginedImage, Mode, SearchAnswer, SearchRequest
from serving.ray_names import sized_for

Event = tuple[Literal["text", "imagined", "fused"], SearchAnswer | ImaginedEvent]

EXAMPLES, EXAMPLES_FROM = 6, 100
"""Labels to try, out of those of so many images."""
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
    """K where a request gives none; and the generator whose images were warmed, if any were."""

    images: int
    generator_fingerprint: str | None = None


class Asking(NamedTuple):
    """What the ranker is to be asked: a ``Question`` whose time is not known until it is sent."""

    deadline: Deadline
    vlm_D1: np.ndarray
    vision: np.ndarray | None
    weight: float
    k: int
    version: str | None


class Search:
    """Answers requests by asking the other deployments. For one event loop.

    Attributes:
        memory: of imagined queries.
        places: of the pictures of the gallery.
        defaults: for what a request leaves out.
        admission: whose search may run.
        ready: every deployment has answered once.
        examples: queries that the gallery has an answer to, if its images have labels.
    """

    def __init__(self, parts: Parts, memory: Memory, settings: ServeSettings, defaults: Defaults) -> None:
        self.memory = memory
        self.defaults = defaults
        self.ready = False
        self.examples: list[str] = []
        self._parts = parts
        self.seconds = settings.deadline_ms / 1000
        """The longest that an answer may take."""
        self._shard_seconds = settings.shard_timeout_ms / 1000
        self._weight: float | None = None
        self.admission = Admission(settings.ingress.ongoing, settings.ingress.queued)
        self._texts: Gathering[str, EncodedText] = Gathering.of("the text encoder", self._encode_each, settings.vlm)
        self._rankings: Gathering[Asking, Ranking] = Gathering.of("the ranker", self._rank_each, settings.ranker)
        self.places = Places(parts.ranker, seconds=self.seconds)
        self._imaginer = Imaginer(
            memory, parts.generator, fingerprint=defaults.generator_fingerprint, seconds=self.seconds
        )

    async def warm_up(self) -> None:
        """Ask every deployment once, as requests will. Texts are answered before there is a generator.

        Raises:
            Unavailable: one of them does not work.
        """
        vlm, vision, generator, ranker = self._parts.vlm, self._parts.vision, self._parts.generator, self._parts.ranker
        learn = self._imaginer.learn
        served: Served = await _start("the ranker", ranker.served)
        self._weight = served.weight
        encoded: EncodedText = await _start("the text encoder", vlm.encode_text, PROBE)
        near: Ranking = await _start(
            "the ranker", ranker.rank, encoded.vlm_D1, None, 0.0, EXAMPLES_FROM, None, START_SECONDS
        )
        self.examples = list(dict.fromkeys(row.label for row in near.rows if row.label))[:EXAMPLES]
        learn("vision", await _start("the vision encoder", vision.model))
        learn("vlm", await _start("the text encoder", vlm.model))
        if generator:
            learn("generator", await _start("the generator", generator.model))
            await _start("the generator", generator.imagine, PROBE, 1, 0)
        self.ready = True

    async def served(self) -> Served:
        """Return what the ranker serves."""
        return await call("the ranker", self._parts.ranker.served, seconds=self.seconds)

    async def switch(self, index: str) -> Served:
        """Serve another index from now on; return once every replica of the ranker has switched to it.

        Raises:
            UserError: there is none at that URI, it is damaged, or other models made it.
            Unavailable: it could not be opened for another reason.
        """
        ranker = self._parts.ranker
        await call("the ranker", ranker.switch, index, seconds=START_SECONDS, refusals=(UserError,))
        await call_every_replica("the ranker", ranker, "follow", seconds=START_SECONDS)
        self.places.switched()
        return await self.served()

    async def answer(self, request: SearchRequest, request_id: str, *, caller: str = "") -> SearchAnswer:
        """Return the best answer that there is by the request's deadline.

        Args:
            caller: who asks, for ``admission.Admission``.

        Raises:
            Unavailable: not even the text could be ranked, or there was no place for the search.
            UserError: the text is blank, or an image to be dropped does not exist.
        """
        async with aclosing(self._admitted(request, request_id, caller, each=False)) as stages:
            answers = [data async for _, data in stages]
        assert isinstance(answers[-1], SearchAnswer)
        return answers[-1]

    def stages(self, request: SearchRequest, request_id: str, *, caller: str = "") -> AsyncGenerator[Event]:
        """Yield the stages of an answer as they come: ``text``; then ``imagined``, if anything was; then ``fused``, the
        last answer, whatever it was ranked by. A search by text alone is over after ``text``. The search has its
        place until the generator is closed.

        Args and errors are those of ``answer``.
        """
        return self._admitted(request, request_id, caller, each=True)

    async def by_picture(
        self,
        data: bytes,
        request_id: str,
        *,
        k: int,
        mode: Mode = "fused",
        weight: float | None = None,
        caller: str = "",
    ) -> SearchAnswer:
        """Rank by a picture: by the VLM's vector of it in the place of the text's, and by the vision encoder's.

        Raises:
            Unavailable: it could not be ranked, or there was no place for the search.
            ImageRejected: there is no picture in ``data`` that can be read.
        """
        asked = self._asked(
            SearchRequest.model_validate({"query": "picture", "k": k, "mode": mode, "weight": weight}), request_id
        )

        async def encode(part: str, encoder: DeploymentHandle) -> np.ndarray:
            method = sized_for(encoder, "encode_file", len(data))
            return await call(part, method, data, seconds=asked.deadline.left, refusals=(ImageRejected,))

        async with self.admission.place(caller, asked.deadline):
            with asked.timed("text"), metrics.waiting.one(part="pictures"):
                vlm_D1, vision_D2 = await asyncio.gather(
                    encode("the image encoder", self._parts.vlm), encode("the vision encoder", self._parts.vision)
                )
            found = answer(asked, await self._rank(asked, "rank", vlm_D1, vision_D2))
        return found.model_copy(update={"query": "", "kind": None})

    async def _admitted(
        self, request: SearchRequest, request_id: str, caller: str, *, each: bool
    ) -> AsyncGenerator[Event]:
        asked = self._asked(request, request_id)
        async with self.admission.place(caller, asked.deadline), aclosing(self._stages(asked, each=each)) as stages:
            async for stage in stages:
                yield stage

    async def _stages(self, asked: Asked, *, each: bool) -> AsyncGenerator[Event]:
        request = asked.request
        if asked.weight == 0:
            yield "text", answer(asked, await self._rank(asked, "rank", await self._encode(asked)))
            return
        key, trouble = self._imaginer.key(asked)
        known = await self._imaginer.recalled(asked, key) if key else None
        asked.memory = "hit" if known else "miss" if key else "off"
        vlm_D1 = known.vlm_D1 if known else await self._encode(asked)
        making = asyncio.create_task(self._imaginer.obtain(asked, key, vlm_D1)) if key and not known else None
        by_text: Ranking | None = None
        try:
            if each or not known:
                by_text = await self._rank(asked, "text_rank", vlm_D1)
                yield "text", answer(asked, by_text, last=False)
            if making:
                with asked.timed("imagine"):
                    known, trouble = await making
        finally:
            # If the client has gone, and nobody else waits for these images, their making ends.
            if making:
                making.cancel()
        if key and known:
            images = imagined_images(key, known, set(request.drop))
            if images:
                yield "imagined", ImaginedEvent(imagined=images, memory=asked.memory)
            yield "fused", await self._by_images(asked, known, images, by_text)
        else:
            by_text = by_text or await self._rank(asked, "rank", vlm_D1)
            yield "fused", answer(asked, by_text, degraded=trouble)

    async def _by_images(
        self, asked: Asked, known: Remembered, images: list[ImaginedImage], by_text: Ranking | None
    ) -> SearchAnswer:
        """The answer by the images that are kept; by the text, if none is or they cannot be ranked by."""
        kept = [place for place, image in enumerate(images) if not image.dropped]
        trouble = Shortfall("dropped", "every imagined image was left out")
        if not images:
            reasons = ", ".join(sorted(set(known.rejected)))
            trouble = Shortfall("rejected", f"no image could be imagined ({reasons})")
        if kept:
            counted = asyncio.create_task(self._count_tokens(asked))
            try:
                ranking = await self._rank(asked, "rank", known.vlm_D1, known.vision_KD2[kept])
                await counted
            except Unavailable as error:
                if not by_text:
                    raise
                trouble = Shortfall.of(error)
            else:
                shares = dict(zip(kept, ranking.attention, strict=True))
                images = [image.model_copy(update={"attention": shares.get(i)}) for i, image in enumerate(images)]
                return answer(asked, ranking, images)
            finally:
                counted.cancel()
        by_text = by_text or await self._rank(asked, "rank", known.vlm_D1)
        return answer(asked, by_text, images, degraded=trouble)

    def _asked(self, request: SearchRequest, request_id: str) -> Asked:
        weight: float | None = {"text": 0.0, "visual": 1.0}.get(request.mode, request.weight)
        weight = self._weight if weight is None else float(weight)
        if weight is None:
            raise Unavailable("the service", "starting")
        seconds = self.seconds if request.deadline_ms is None else request.deadline_ms / 1000
        return Asked(
            request=request,
            request_id=request_id,
            text=normalised(request.query or ""),
            weight=weight,
            images=request.images or self.defaults.images,
            deadline=Deadline(min(seconds, self.seconds)),
        )

    async def _encode(self, asked: Asked) -> np.ndarray:
        """t of the text, float32 (D1,)."""
        with asked.timed("text"), metrics.waiting.one(part="text"):
            encoded = await self._texts.ask(asked.text, seconds=asked.deadline.left)
        asked.warn_of(encoded.tokens)
        return encoded.vlm_D1

    async def _encode_each(self, texts: list[str], seconds: float) -> list[EncodedText]:
        return await call("the text encoder", self._parts.vlm.encode_texts, texts, seconds=seconds)

    async def _count_tokens(self, asked: Asked) -> None:
        """Warn of a text whose vector was remembered, as encoding it would have. Most are too short to be counted."""
        model = self._imaginer.models.get("vlm")
        if asked.memory != "hit" or not model:
            return
        longest = max(len(template.encode()) for template in model.templates)
        if len(asked.text.encode()) + longest + SPECIAL_TOKENS > model.context:
            with suppress(Unavailable):  # an answer without the warning is better than none
                tokens = self._parts.vlm.tokens
                asked.warn_of(await call("the text encoder", tokens, asked.text, seconds=asked.deadline.left))

    async def _rank(self, asked: Asked, stage: str, vlm_D1: np.ndarray, vision: np.ndarray | None = None) -> Ranking:
        """Rank by text, or with ``vision`` (``Ranker.rank``) as asked; by one index version throughout a search."""
        weight = 0.0 if vision is None else asked.weight
        asking = Asking(asked.deadline, vlm_D1, vision, weight, asked.request.k, asked.version)
        with asked.timed(stage), metrics.waiting.one(part="ranker"):
            if SHARE_OF_SHARDS * asked.deadline.left < self._shard_seconds:
                ranking = await self._rank_alone(asking)  # beside others it would wait for a hung shard as they may
            else:
                ranking = await self._rankings.ask(asking, seconds=asked.deadline.left)
        asked.version = ranking.version
        self.places.keep(ranking.rows, ranking.version)
        return ranking

    async def _rank_alone(self, asking: Asking) -> Ranking:
        [ranking] = await self._rank_each([asking], asking.deadline.left)
        if isinstance(ranking, Exception):
            raise ranking
        return ranking

    async def _rank_each(self, asking: list[Asking], seconds: float) -> list[Ranking | Exception]:
        questions = [Question(*one[1:], seconds=one.deadline.left) for one in asking]
        return await call("the ranker", self._parts.ranker.rank_each, questions, seconds=seconds)


async def _start(part: str, method: Any, *arguments: Any) -> Any:
    return await call(part, method, *arguments, seconds=START_SECONDS)
