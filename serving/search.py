"""Searches as the API has them answered: what each may ask for, its place, its stages. Runs inside the ingress."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from ray.serve.handle import DeploymentHandle

from cluster.profile import ServeSettings
from retrieval.assistant.endpoint import Assistant
from retrieval.assistant.material import Wanted
from retrieval.assistant.rerank import check_can_judge
from retrieval.errors import UserError
from retrieval.lens import check_lens
from serving.admission import Admission
from serving.asked import Asked, asked_evidence, no_images_to_drop
from serving.assisting import Assisting
from serving.deployments.calls import Deadline, Unavailable, call, call_every_replica
from serving.deployments.messages import PROBE, START_SECONDS, EncodedText, Piece, Ranking, Row, Served
from serving.encoding import Encoding
from serving.given import GivenPictures
from serving.imaginer import Imaginer
from serving.memory.memory import Memory, PictureMemory
from serving.pictures import GalleryPictures, Place, Places
from serving.protocol import Mode, QuestionAnswer, SearchAnswer, SearchRequest, UploadedPicture
from serving.ranking import Rankings
from serving.reading import PictureReading
from serving.stages import Event, Stages

EXAMPLES, EXAMPLES_FROM = 6, 100
"""Labels to try, out of those of so many images."""
SHARE_OF_ASSISTED = 4
"""One in so many places may be taken by a search that waits for the assistant."""


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
        self.seconds = settings.deadline_ms / 1000
        """The longest that an answer may take."""
        self.admission = Admission(settings.ingress.ongoing, settings.ingress.queued)
        self.places = Places(parts.ranker, seconds=self.seconds)
        self.gallery = GalleryPictures(self.places)
        self._parts = parts
        self._weight: float | None = None
        self._imaginer = Imaginer(
            memory, parts.generator, self.admission, fingerprint=defaults.generator_fingerprint, seconds=self.seconds
        )
        models = self._imaginer.models
        self.pictures = GivenPictures(
            PictureMemory(memory.store), memory, self.gallery, parts.vlm, parts.vision, models, seconds=self.seconds
        )
        at_once = max(1, settings.ingress.ongoing // SHARE_OF_ASSISTED)
        self._assisting = (
            Assisting(assistant, self._file_of, seconds=self.seconds, at_once=at_once) if assistant else None
        )
        encoding = Encoding(parts.vlm, settings.vlm, self.pictures, models)
        self._reading = PictureReading(parts.ranker, encoding, self._assisting)
        rankings = Rankings(parts.ranker, settings, self.places, assistant)
        self._stages = Stages(encoding, self._reading, self._imaginer, rankings, self._assisting)

    async def warm_up(self) -> None:
        """Ask every deployment once, as requests will. Texts are answered before there is a generator.

        Raises:
            Unavailable: one of them does not work.
        """
        vlm, vision, generator, ranker = self._parts.vlm, self._parts.vision, self._parts.generator, self._parts.ranker
        learn = self._imaginer.learn
        served: Served = await _start("the ranker", ranker.served)
        self._weight, self._reading.aspects = served.weight, served.aspects
        self._reading.has_composer = served.composer is not None
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

    async def question(self, request: SearchRequest, request_id: str, *, caller: str = "") -> QuestionAnswer:
        """Search, and have the assistant ask what would narrow that most.

        Args:
            caller: as of ``answer``.

        Raises:
            Unavailable: as of ``answer``; an assistant that does not answer is told in the question's place.
            UserError: as of ``answer``; there is no assistant, or there are no words to ask by.
        """
        asked = self._asked(request, request_id, caller, asks_back=True)
        async with self.admission.place(caller, asked.deadline), aclosing(self._stages.of(asked, each=False)) as stages:
            found = [data async for _, data in stages][-1]
            assert isinstance(found, SearchAnswer)
            assert self._assisting
            return await self._assisting.question(asked.in_words, found, seconds=asked.deadline.left)

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
        asked = self._asked(SearchRequest.model_validate(given), request_id, caller)
        [picture] = asked.pictures
        async with self.admission.place(caller, asked.deadline):
            with asked.timed("text"):
                picture.seen = await self.pictures.encoded(data, asked.deadline)
            stages = [stage async for stage in self._stages.of(asked, each=False)]
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
        asked = self._asked(request, request_id, caller)
        async with self.admission.place(caller, asked.deadline), aclosing(self._stages.of(asked, each=each)) as stages:
            async for stage in stages:
                yield stage

    async def _file_of(self, row: Row) -> bytes | None:
        return await self.gallery.file(Place(row.path, row.source))

    def _asked(self, request: SearchRequest, request_id: str, caller: str = "", *, asks_back: bool = False) -> Asked:
        weight: float | None = {"text": 0.0, "visual": 1.0}.get(request.mode, request.weight)
        weight = self._weight if weight is None else float(weight)
        if weight is None:
            raise Unavailable("the service", "starting")
        seconds = self.seconds if request.deadline_ms is None else request.deadline_ms / 1000
        evidence = asked_evidence(request)
        check_lens(self._reading.aspects, request.focus, request.ignore)
        asked = Asked(
            request=request,
            request_id=request_id,
            evidence=evidence,
            weight=weight,
            images=request.images or self.defaults.images,
            deadline=Deadline(min(seconds, self.seconds)),
            caller=caller,
        )
        is_read = self._reading.due(asked)  # so that what cannot be is refused at once
        is_composed = self._reading.composes(asked)
        if request.drop and (is_composed or (request.query is None and not is_read)):
            raise no_images_to_drop()
        if asks_back or request.rerank in ("judge", "list"):
            check_can_judge(self.assistant, None if is_read else Wanted() if is_composed else asked.in_words)
        return asked


async def _start(part: str, method: Any, *arguments: Any) -> Any:
    return await call(part, method, *arguments, seconds=START_SECONDS)
