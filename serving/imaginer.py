"""From a text to its imagined images: from the memory, or else by the generator, whose circuit breaker is here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from ray.serve.handle import DeploymentHandle

from retrieval.artifacts import Role
from serving import metrics
from serving.admission import Admission
from serving.asked import Asked, AskedText, Shortfall
from serving.breaker import Breaker
from serving.deployments.calls import Unavailable, call
from serving.deployments.messages import START_SECONDS, Imagination, Model
from serving.memory.entry import Remembered, memory_key
from serving.memory.memory import Memory

SHARE_OF_MEMORY = 0.25
"""Of the time that a request has, what probing the memory may take."""

log = logging.getLogger("ray.serve")

_STARTING = Shortfall.of(Unavailable("the generator", "starting"))
_LATE = Shortfall("deadline", "no image was imagined by the deadline")


class Imaginer:
    """Imagines queries, each once. For one event loop.

    Args:
        generator: without one, only remembered queries have images.
        admission: whose free places are for further texts of one search.
        fingerprint: of the generator whose images are remembered, if none runs, and until the one that runs is known.
        seconds: how long one call of the generator may take.

    Attributes:
        models: by role, those that a key depends on; ``learn`` fills it while the service warms up.
    """

    def __init__(
        self,
        memory: Memory,
        generator: DeploymentHandle | None,
        admission: Admission,
        *,
        fingerprint: str | None,
        seconds: float,
    ) -> None:
        self.models: dict[Role, Model] = {}
        self._memory = memory
        self._generator = generator
        self._admission = admission
        self._fingerprint = fingerprint
        self._seconds = seconds
        self._breaker = Breaker("the generator", self._model_of_generator)

    def learn(self, role: Role, model: Model) -> None:
        """Take note of the model that runs in a role; warn of a generator that made none of what was warmed."""
        first, self.models[role] = role not in self.models, model
        made_by, runs = self._fingerprint, model.record.fingerprint
        if first and role == "generator" and made_by not in (None, runs):
            log.warning(
                "the warmed queries were imagined by another generator (%s) than this service runs (%s, %s):"
                " they are imagined again",
                *(made_by, model.record.uri, runs),
            )

    def set_key(self, asked: Asked, text: AskedText) -> None:
        """Set the key that a text is remembered by, or why it has none.

        Until the generator is known, it is the key of the images that were warmed: good for recalling, not for storing.
        """
        generator = self.models["generator"].record.fingerprint if "generator" in self.models else self._fingerprint
        if not self._generator and not generator:
            text.shortfall = Shortfall("down", "this service has no generator")
        elif not generator or not {"vlm", "vision"} <= self.models.keys():
            text.shortfall = _STARTING
        else:
            text.key = self._key(asked, text, generator)

    async def recall(self, asked: Asked, text: AskedText) -> None:
        """Take what is remembered, if the store answers in time: one that hangs costs the images, not the text.

        An unfinished entry is imagined again where that is possible.
        """
        if text.key:
            await self._recall(asked, text, unfinished="generator" not in self.models)
            text.memory = "hit" if text.known else "miss"

    async def obtain_each(self, asked: Asked, texts: Sequence[AskedText]) -> None:
        """Have texts imagined, one after another by the place that their search has; several at once, as far as
        others leave places free. So a search of many texts takes no more of the generator than as many searches.
        """
        with self._admission.more(asked.caller, len(texts) - 1) as further:
            turns = asyncio.Semaphore(1 + further)

            async def obtain(text: AskedText) -> None:
                async with turns:
                    await self.obtain(asked, text)

            tasks = [asyncio.create_task(obtain(text)) for text in texts]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()

    async def obtain(self, asked: Asked, text: AskedText) -> None:
        """Have a text imagined, or say why it is not. All who ask for the same one wait for one generation."""
        text.shortfall = await self._obtain(asked, text) or text.shortfall

    async def _obtain(self, asked: Asked, text: AskedText) -> Shortfall | None:
        if not self._generator:
            return Shortfall("down", "this service has no generator, and does not remember this query")
        generator = self.models.get("generator")
        if not generator or text.key != self._key(asked, text, generator.record.fingerprint):  # not known yet, then
            return _STARTING
        if not asked.deadline.left:  # before its turn came: nothing is begun that nobody waits for
            return _LATE
        try:
            known, remembered = await self._memory.obtain(
                text.key, lambda: self._imagine(asked, text), seconds=asked.deadline.left
            )
        except TimeoutError:
            return _LATE
        except Unavailable as error:
            await self._recall(asked, text, unfinished=True)
            text.memory = "hit" if text.known else text.memory
            return None if text.known else Shortfall.of(error)
        text.memory = "hit" if remembered else "miss"
        text.learn(known)
        return None

    async def _recall(self, asked: Asked, text: AskedText, *, unfinished: bool) -> None:
        assert text.key
        recalling = self._memory.recall(text.key, unfinished=unfinished)
        with suppress(TimeoutError):
            if known := await asyncio.wait_for(recalling, SHARE_OF_MEMORY * asked.deadline.left):
                text.learn(known)

    def _key(self, asked: Asked, text: AskedText, generator_fingerprint: str) -> str:
        models = self.models
        return memory_key(
            text.text,
            asked.images,
            asked.request.seed,
            generator_fingerprint=generator_fingerprint,
            vision_fingerprint=models["vision"].record.fingerprint,
            vlm_fingerprint=models["vlm"].record.fingerprint,
            templates=models["vlm"].templates,
        )

    async def _imagine(self, asked: Asked, text: AskedText) -> Remembered:
        assert self._generator
        assert text.vlm_D1 is not None
        self._breaker.check()
        request = asked.request
        method = self._generator.imagine
        try:
            with metrics.waiting.one(part="generator"):
                made: Imagination = await call(
                    "the generator", method, text.text, asked.images, request.seed, seconds=self._seconds, retry=False
                )
        except Unavailable as error:
            self._breaker.record(error)
            raise
        indices = np.arange(len(made.seeds))
        return Remembered(
            text.text,
            request.kind,
            text.vlm_D1,
            made.vision_KD2,
            made.seeds,
            indices,
            made.thumbnails,
            made.rejected,
            self.models["vision"].record.fingerprint,
        )

    async def _model_of_generator(self) -> None:
        assert self._generator
        await call("the generator", self._generator.model, seconds=START_SECONDS)
