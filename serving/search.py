"""A search from request to answer: which deployments are asked for what, in which order. Runs inside the ingress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from ray.serve.handle import DeploymentHandle

from cluster.profile import ServeSettings
from retrieval.assistant.endpoint import Assistant, AssistantFault
from retrieval.assistant.material import Wanted
from retrieval.assistant.rerank import check_can_judge
from retrieval.bridge import Said, bridges, merging
from retrieval.errors import UserError
from retrieval.lens import check_lens
from serving import metrics
from serving.admission import Admission
from serving.answers import Asked, AskedPicture, AskedText, Shortfall, answer, imagined_images
from serving.assisting import Assisting
from serving.deployments.calls import Deadline, Unavailable, call, call_every_replica
from serving.deployments.gathering import Gathering
from serving.deployments.messages import (
    AS_EVER,
    PROBE,
    SHARE_OF_SHARDS,
    START_SECONDS,
    EncodedText,
    Piece,
    Question,
    Ranking,
    Row,
    RowPiece,
    Served,
    Way,
)
from serving.given import GivenPictures
from serving.imaginer import Imaginer
from serving.memory.entry import normalised
from serving.memory.memory import Memory, PictureMemory
from serving.pictures import GalleryPictures, Place, Places
from serving.protocol import (
    EvidencePiece,
    ImaginedEvent,
    ImaginedImage,
    Mode,
    SearchAnswer,
    SearchRequest,
    UploadedPicture,
)

Event = tuple[Literal["text", "imagined", "fused"], SearchAnswer | ImaginedEvent]

EXAMPLES, EXAMPLES_FROM = 6, 100
"""Labels to try, out of those of so many images."""
SHARE_OF_ASSISTED = 4
"""One in so many places may be taken by a search that waits for the assistant."""
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
    pieces: list[Piece | RowPiece]
    weight: float
    k: int
    version: str | None
    way: Way


class Search:
    """Answers requests by asking the other deployments. For one event loop.

    Attributes:
        memory: of imagined queries.
        places: of the pictures of the gallery.
        gallery: those pictures.
        pictures: that are given as evidence.
        defaults: for what a request leaves out.
        assistant: that judges what was found, if there is one.
        admission: whose search may run.
        ready: every deployment has answered once.
        examples: queries that the gallery has an answer to, if its images have labels.
    """

    def __init__(
        self,
        parts: Parts,
        memory: Memory,
        settings: ServeSettings,
        defaults: Defaults,
        assistant: Assistant | None = None,
    ) -> None:
        self.memory = memory
        self.defaults = defaults
        self.assistant = assistant
        self.ready = False
        self.examples: list[str] = []
        self._parts = parts
        self.seconds = settings.deadline_ms / 1000
        """The longest that an answer may take."""
        self._shard_seconds = settings.shard_timeout_ms / 1000
        self._weight: float | None = None
        self._aspects: list[str] | None = None
        self.admission = Admission(settings.ingress.ongoing, settings.ingress.queued)
        self._texts: Gathering[str, EncodedText] = Gathering.of("the text encoder", self._encode_each, settings.vlm)
        self._rankings: Gathering[Asking, Ranking] = Gathering.of("the ranker", self._rank_each, settings.ranker)
        self.places = Places(parts.ranker, seconds=self.seconds)
        self.gallery = GalleryPictures(self.places)
        self._imaginer = Imaginer(
            memory, parts.generator, fingerprint=defaults.generator_fingerprint, seconds=self.seconds
        )
        self.pictures = GivenPictures(
            PictureMemory(memory.store),
            memory,
            self.gallery,
            parts.vlm,
            parts.vision,
            self._imaginer.models,
            seconds=self.seconds,
        )

        at_once = max(1, settings.ingress.ongoing // SHARE_OF_ASSISTED)
        self._assisting = (
            Assisting(assistant, self._file_of, seconds=self.seconds, at_once=at_once) if assistant else None
        )

    async def warm_up(self) -> None:
        """Ask every deployment once, as requests will. Texts are answered before there is a generator.

        Raises:
            Unavailable: one of them does not work.
        """
        vlm, vision, generator, ranker = self._parts.vlm, self._parts.vision, self._parts.generator, self._parts.ranker
        learn = self._imaginer.learn
        served: Served = await _start("the ranker", ranker.served)
        self._weight, self._aspects = served.weight, served.aspects
        encoded: EncodedText = await _start("the text encoder", vlm.encode_text, PROBE)
        near: Ranking = await _start(
            "the ranker", ranker.rank, [Piece(1.0, encoded.vlm_D1, None)], 0.0, EXAMPLES_FROM, None, START_SECONDS
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
            UserError: a text is blank, an image to be dropped does not exist, a row, upload or imagined image is not
                known, or the evidence cancels out.
        """
        async with aclosing(self._admitted(request, request_id, caller, each=False)) as stages:
            answers = [data async for _, data in stages]
        assert isinstance(answers[-1], SearchAnswer)
        return answers[-1]

    def stages(self, request: SearchRequest, request_id: str, *, caller: str = "") -> AsyncGenerator[Event]:
        """Yield the stages of an answer as they come: ``text``, where texts are to be imagined; then ``imagined``, if
        the query was; then ``fused``, the last answer, whatever it was ranked by. A search by text alone is over after
        ``text``. The search has its place until the generator is closed.

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
        given = {"evidence": [{"upload": "0" * 64}], "k": k, "mode": mode, "weight": weight}
        asked = self._asked(SearchRequest.model_validate(given), request_id)
        [picture] = asked.pictures
        async with self.admission.place(caller, asked.deadline):
            with asked.timed("text"):
                picture.seen = await self.pictures.encoded(data, asked.deadline)
            stages = [stage async for stage in self._stages(asked, each=False)]
        [(_, found)] = stages
        assert isinstance(found, SearchAnswer)
        return found

    async def upload(self, data: bytes, *, caller: str = "") -> UploadedPicture:
        """Encode a picture and remember it, as evidence for later.

        Raises:
            Unavailable: it could not be encoded, or there was no place for it.
            ImageRejected: there is no picture in ``data`` that can be read.
        """
        deadline = Deadline(self.seconds)
        async with self.admission.place(caller, deadline):
            key, picture = await self.pictures.keep(data, deadline)
        return UploadedPicture(upload=key, width=picture.width, height=picture.height)

    async def _admitted(
        self, request: SearchRequest, request_id: str, caller: str, *, each: bool
    ) -> AsyncGenerator[Event]:
        asked = self._asked(request, request_id)
        async with self.admission.place(caller, asked.deadline), aclosing(self._stages(asked, each=each)) as stages:
            async for stage in stages:
                yield stage

    async def _stages(self, asked: Asked, *, each: bool) -> AsyncGenerator[Event]:
        if self._is_read(asked):
            await self._read(asked)
        texts = asked.texts
        if asked.weight == 0:
            await self._encode(asked)
            yield "text", await self._answer(asked, await self._rank(asked, "rank", visual=False, last=True))
            return
        for text in texts:
            self._imaginer.set_key(asked, text)
        await asyncio.gather(*(self._imaginer.recall(asked, text) for text in texts))
        await self._encode(asked)
        unknown = [text for text in texts if not text.known]
        making = [asyncio.create_task(self._imaginer.obtain(asked, text)) for text in unknown if text.key]
        by_text: Ranking | None = None
        standing_in: asyncio.Task[Ranking | None] | None = None
        without: Ranking | None = None
        try:
            if texts and (each or unknown):
                by_text = await self._rank(asked, "text_rank", visual=False)
                yield "text", answer(asked, by_text, last=False)
            if making:
                # Now, since there is no time left for it once the images have not come.
                standing_in = asyncio.create_task(self._stand_in(asked))
                with asked.timed("imagine"):
                    await asyncio.gather(*making)
                if all(text.lacks_images for text in unknown):
                    without = await standing_in
        finally:
            # If the client has gone, and nobody else waits for these images, their making ends.
            for task in making:
                task.cancel()
            if standing_in:
                standing_in.cancel()
        images = self._imagined(asked)
        if images:
            yield "imagined", ImaginedEvent(imagined=images, memory=asked.memory)
        yield "fused", await self._by_both(asked, images, by_text, without)

    def _is_read(self, asked: Asked) -> bool:
        pictures = any(one.weight > 0 for one in asked.evidence if not isinstance(one, AskedText))
        return bridges(asked.request.bridge, self._aspects, pictures=pictures, texts=bool(asked.texts))

    async def _read(self, asked: Asked) -> None:
        """Read pictures into words, with what texts change of them; from then on the search is for the text that this
        makes. If they cannot be read just now, it stays as it was given, with a warning.
        """
        given = asked.evidence
        await self._encode(asked)
        pictures = [one for one in given if not isinstance(one, AskedText) and one.weight > 0]
        pieces = [one if isinstance(one, RowPiece) else one.piece(visual=True) for one in pictures]
        said = [Said(one.text, one.vlm_D1, one.weight > 0) for one in asked.texts if one.vlm_D1 is not None]
        method, left = self._parts.ranker.read, asked.deadline.left
        try:
            with asked.timed("read"):
                reading, asked.version = await call(
                    "the ranker", method, pieces, said, asked.version, left, seconds=left, refusals=(UserError,)
                )
        except Unavailable as error:
            asked.warnings.append(f"pictures were not read into words: {error}")
            return
        if self._assisting and asked.request.bridge == "words":
            wanted = Wanted.of(((one.text, one.weight) for one in asked.texts), [word.value for word in reading.words])
            try:
                with asked.timed("reword"):
                    worded = await self._assisting.reword(wanted, seconds=asked.deadline.left)
                reading = replace(reading, text=worded)
            except (Unavailable, AssistantFault) as error:
                asked.warnings.append(f"the assistant did not word the query: {error}")
        merged = merging(reading, [isinstance(one, AskedText) for one in given], [one.weight for one in given])
        if merged:
            kept, brings_EG = merged
            text = AskedText(normalised(reading.text), max(one.weight for one in given), "what was read")
            asked.evidence = [text, *(given[n] for n in kept)]
            asked.read = reading, brings_EG

    async def _stand_in(self, asked: Asked) -> Ranking | None:
        """The ranking by the nearest real images of the texts that have no images yet, if there can be one."""
        with suppress(Unavailable, UserError):
            return await self._rank(asked, "nearest_rank", visual=True, last=True)
        return None

    def _imagined(self, asked: Asked) -> list[ImaginedImage]:
        """What is told of the query's images, after leaving out those that the request drops."""
        query = asked.query
        if not query or not query.key or not query.known:
            return []
        images = imagined_images(query.key, query.known, set(asked.request.drop))
        if images and all(image.dropped for image in images):
            query.shortfall = Shortfall("dropped", "every imagined image was left out")
        query.kept = [place for place, image in enumerate(images) if not image.dropped]
        return images

    async def _by_both(
        self, asked: Asked, images: list[ImaginedImage], by_text: Ranking | None, without: Ranking | None
    ) -> SearchAnswer:
        """The answer by texts and images, which is ``without`` if no image came; by the VLM's halves, if every image
        was dropped, or images cannot be ranked by.
        """
        shortfalls = [text.shortfall for text in asked.texts if text.shortfall]
        if asked.visual:
            counted = asyncio.create_task(self._count_tokens(asked))
            try:
                ranking = without or await self._rank(asked, "rank", visual=True, last=True)
                await counted
            except Unavailable as error:
                if not by_text:
                    raise
                shortfalls.append(Shortfall.of(error))
            else:
                if asked.query:
                    shares = dict(zip(asked.query.kept, ranking.attention, strict=True))
                    images = [image.model_copy(update={"attention": shares.get(i)}) for i, image in enumerate(images)]
                return await self._answer(asked, ranking, images, shortfalls)
            finally:
                counted.cancel()
        if not by_text or (asked.request.rerank != "none" and not asked.visual):
            by_text = await self._rank(asked, "rank", visual=False, last=True)
            return await self._answer(asked, by_text, images, shortfalls)
        return answer(asked, by_text, images, degraded=shortfalls)

    async def _answer(
        self,
        asked: Asked,
        ranking: Ranking,
        images: Sequence[ImaginedImage] = (),
        shortfalls: Sequence[Shortfall] = (),
    ) -> SearchAnswer:
        """The last answer, put in order by the assistant if that is asked for."""
        way = asked.request.rerank
        if self._assisting and (way == "judge" or way == "list"):
            with asked.timed("assistant"):
                found = await self._assisting.reorder(
                    way,
                    asked.in_words,
                    ranking.rows[: asked.request.depth],
                    ranking.version,
                    seconds=asked.deadline.left,
                )
            rows = [
                replace(ranking.rows[place], rerank_score=share) for place, share in found.places(len(ranking.rows))
            ]
            ranking = replace(ranking, rows=rows[: asked.request.k], reranked=way if found.order else None)
            shortfalls = [*shortfalls, *([found.shortfall] if found.shortfall else [])]
        return answer(asked, ranking, images, degraded=shortfalls)

    async def _file_of(self, row: Row) -> bytes | None:
        return await self.gallery.file(Place(row.path, row.source))

    def _asked(self, request: SearchRequest, request_id: str) -> Asked:
        weight: float | None = {"text": 0.0, "visual": 1.0}.get(request.mode, request.weight)
        weight = self._weight if weight is None else float(weight)
        if weight is None:
            raise Unavailable("the service", "starting")
        seconds = self.seconds if request.deadline_ms is None else request.deadline_ms / 1000
        query = [] if request.query is None else [AskedText(_normalised(request.query, "query"), 1.0, "the query")]
        check_lens(self._aspects, request.focus, request.ignore)
        asked = Asked(
            request=request,
            request_id=request_id,
            evidence=[*query, *(_asked_piece(piece, f"evidence.{n}") for n, piece in enumerate(request.evidence))],
            weight=weight,
            images=request.images or self.defaults.images,
            deadline=Deadline(min(seconds, self.seconds)),
        )
        is_read = self._is_read(asked)  # so that what cannot be is refused at once
        if request.rerank in ("judge", "list"):
            check_can_judge(self.assistant, None if is_read else asked.in_words)
        return asked

    async def _encode(self, asked: Asked) -> None:
        """Encode what is not known yet: texts by the text tower, pictures by both image towers."""
        texts = [text for text in asked.texts if text.vlm_D1 is None]
        pictures = [picture for picture in asked.pictures if not picture.seen]
        if texts or pictures:
            with asked.timed("text"):
                await asyncio.gather(
                    *(self._encode_text(asked, text) for text in texts),
                    *(self._see(asked, picture) for picture in pictures),
                )

    async def _encode_text(self, asked: Asked, text: AskedText) -> None:
        with metrics.waiting.one(part="text"):
            encoded = await self._texts.ask(text.text, seconds=asked.deadline.left)
        text.vlm_D1 = encoded.vlm_D1
        asked.warn_of(text, encoded.tokens)

    async def _see(self, asked: Asked, picture: AskedPicture) -> None:
        picture.seen = await self.pictures.of(picture.given, picture.field, asked.deadline)

    async def _encode_each(self, texts: list[str], seconds: float) -> list[EncodedText]:
        return await call("the text encoder", self._parts.vlm.encode_texts, texts, seconds=seconds)

    async def _count_tokens(self, asked: Asked) -> None:
        """Warn of texts whose vectors were remembered, as encoding would have. Most are too short to be counted."""
        model = self._imaginer.models.get("vlm")
        if not model:
            return
        longest = max(len(template.encode()) for template in model.templates) if model.templates else 0
        for text in asked.texts:
            if text.memory == "hit" and len(text.text.encode()) + longest + SPECIAL_TOKENS > model.context:
                with suppress(Unavailable):  # an answer without the warning is better than none
                    tokens = self._parts.vlm.tokens
                    counted = await call("the text encoder", tokens, text.text, seconds=asked.deadline.left)
                    asked.warn_of(text, counted)

    async def _rank(self, asked: Asked, stage: str, *, visual: bool, last: bool = False) -> Ranking:
        """Rank as asked, or by the VLM's halves alone; by one index version throughout a search. What is shown until
        the ``last`` ranking comes has no second stage, which takes its time.
        """
        weight, request = asked.weight if visual else 0.0, asked.request
        second = (request.fuse, request.rerank, request.depth) if last else AS_EVER[:3]
        way, k = Way(*second, request.focus, tuple(request.ignore), refine=last), request.k
        if self.assistant and way.rerank in ("judge", "list"):  # by who asks the ranker, once the answer is known
            way, k = way._replace(rerank="none"), max(k, min(request.depth, self.assistant.depth))
        asking = Asking(asked.deadline, asked.pieces(visual=visual), weight, k, asked.version, way)
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
        questions = [Question(*one[1:-1], one.deadline.left, one.way) for one in asking]
        return await call("the ranker", self._parts.ranker.rank_each, questions, seconds=seconds)


async def _start(part: str, method: Any, *arguments: Any) -> Any:
    return await call(part, method, *arguments, seconds=START_SECONDS)


def _asked_piece(piece: EvidencePiece, field: str) -> AskedText | AskedPicture | RowPiece:
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
