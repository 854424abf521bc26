"""From a text to its imagined images: from the memory, or else by the generator, whose circuit breaker is here."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
from ray.serve.handle import DeploymentHandle

from retrieval.artifacts import Role
from serving import metrics
from serving.answers import Asked, Shortfall
from serving.breaker import Breaker
from serving.deployments.calls import Unavailable, call
from serving.deployments.messages import START_SECONDS, Imagination, Model
from serving.memory.entry import Remembered, memory_key
from serving.memory.memory import Memory

SHARE_OF_MEMORY = 0.25
"""Of the time that a request has, what probing the memory may take."""

log = logging.getLogger("ray.serve")

_STARTING = Shortfall.of(Unavailable("the generator", "starting"))


class Imaginer:
    """Imagines queries, each once. For one event loop.

    Args:
        generator: without one, only remembered queries have images.
        fingerprint: of the generator whose images are remembered, if none runs, and until the one that runs is known.
        seconds: how long one call of the generator may take.

    Attributes:
        models: by role, those that a key depends on; ``learn`` fills it while the service warms up.
    """

    def __init__(
        self, memory: Memory, generator: DeploymentHandle | None, *, fingerprint: str | None, seconds: float
    ) -> None:
        self.models: dict[Role, Model] = {}
        self._memory = memory
        self._generator = generator
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

    def key(self, asked: Asked) -> tuple[str | None, Shortfall | None]:
        """Return the key that the text is remembered by, or why it has none.

        Until the generator is known, it is the key of the images that were warmed: good for recalling, not for storing.
        """
        generator = self.models["generator"].record.fingerprint if "generator" in self.models else self._fingerprint
        if not generator or not {"vlm", "vision"} <= self.models.keys():
            return None, _STARTING
        return self._key(asked, generator), None

    async def recalled(self, asked: Asked, key: str) -> Remembered | None:
        """Return what is remembered, if the store answers in time: one that hangs costs the images, not the text.

        An unfinished entry is imagined again where that is possible.
        """
        return await self._recalled(asked, key, unfinished="generator" not in self.models)

    async def obtain(self, asked: Asked, key: str, vlm_D1: np.ndarray) -> tuple[Remembered | None, Shortfall | None]:
        """Return the imagined query, or why there is none. All who ask for the same one wait for one generation."""
        if not self._generator:
            return None, Shortfall("down", "this service has no generator, and does not remember this query")
        generator = self.models.get("generator")
        if not generator or key != self._key(asked, generator.record.fingerprint):  # it was not known yet, then
            return None, _STARTING
        try:
            known, remembered = await self._memory.obtain(
                key, lambda: self._imagine(asked, vlm_D1), seconds=asked.deadline.left
            )
        except TimeoutError:
            return None, Shortfall("deadline", "no image was imagined by the deadline")
        except Unavailable as error:
            unfinished = await self._recalled(asked, key, unfinished=True)
            asked.memory = "hit" if unfinished else asked.memory
            return unfinished, Shortfall.of(error)
        asked.memory = "hit" if remembered else "miss"
        return known, None

    async def _recalled(self, asked: Asked, key: str, *, unfinished: bool) -> Remembered | None:
        recalling = self._memory.recall(key, unfinished=unfinished)
        try:
            return await asyncio.wait_for(recalling, SHARE_OF_MEMORY * asked.deadline.left)
        except TimeoutError:
            return None

    def _key(self, asked: Asked, generator_fingerprint: str) -> str:
        models = self.models
        return memory_key(
            asked.text,
            asked.images,
            asked.request.seed,
            generator_fingerprint=generator_fingerprint,
            vision_fingerprint=models["vision"].record.fingerprint,
            vlm_fingerprint=models["vlm"].record.fingerprint,
            templates=models["vlm"].templates,
        )

    async def _imagine(self, asked: Asked, vlm_D1: np.ndarray) -> Remembered:
        assert self._generator
        self._breaker.check()
        text, request = asked.text, asked.request
        method = self._generator.imagine
        try:
            with metrics.waiting.one(part="generator"):
                made: Imagination = await call(
                    "the generator", method, text, asked.images, request.seed, seconds=self._seconds, retry=False
                )
        except Unavailable as error:
            self._breaker.record(error)
            raise
        indices = np.arange(len(made.seeds))
        return Remembered(
            text, request.kind, vlm_D1, made.vision_KD2, made.seeds, indices, made.thumbnails, made.rejected
        )

    async def _model_of_generator(self) -> None:
        assert self._generator
        await call("the generator", self._generator.model, seconds=START_SECONDS)
