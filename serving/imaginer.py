"""From a text to its imagined images: from the memory, or else by the generator, whose circuit breaker is here."""

from __future__ import annotations

import asyncio

import numpy as np
from ray.serve.handle import DeploymentHandle

from serving import metrics
from serving.answers import Asked, Shortfall
from serving.breaker import Breaker
from serving.deployments.calls import Unavailable, call
from serving.deployments.messages import START_SECONDS, Imagination, Model
from serving.memory.entry import Remembered, memory_key
from serving.memory.memory import Memory

SHARE_OF_MEMORY = 0.25
"""Of the time that a request has, what probing the memory may take."""


class Imaginer:
    """Imagines queries, each once. For one event loop.

    Args:
        generator: without one, only remembered queries have images.
        fingerprint: of the generator whose images are remembered, if none runs.
        seconds: how long one call of the generator may take.

    Attributes:
        models: by role, those that a key depends on; filled in while the service warms up.
    """

    def __init__(
        self, memory: Memory, generator: DeploymentHandle | None, *, fingerprint: str | None, seconds: float
    ) -> None:
        self.models: dict[str, Model] = {}
        self._memory = memory
        self._generator = generator
        self._fingerprint = fingerprint
        self._seconds = seconds
        self._breaker = Breaker("the generator", self._model_of_generator)

    def key(self, asked: Asked) -> tuple[str | None, Shortfall | None]:
        """Return the key that the text is remembered by, or why it has none."""
        models = self.models
        generator = models["generator"].record.fingerprint if "generator" in models else None
        generator = generator or self._fingerprint
        if not generator or not {"vlm", "vision"} <= models.keys():
            return None, Shortfall.of(Unavailable("the generator", "starting"))
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

    async def recalled(self, asked: Asked, key: str) -> Remembered | None:
        """Return what is remembered, if the store answers in time: one that hangs costs the images, not the text."""
        try:
            return await asyncio.wait_for(self._memory.recall(key), SHARE_OF_MEMORY * asked.deadline.left)
        except TimeoutError:
            return None

    async def obtain(self, asked: Asked, key: str, vlm_D1: np.ndarray) -> tuple[Remembered | None, Shortfall | None]:
        """Return the imagined query, or why there is none. All who ask for the same one wait for one generation."""
        if not self._generator:
            return None, Shortfall("down", "this service has no generator, and does not remember this query")
        try:
            known, remembered = await self._memory.obtain(
                key, lambda: self._imagine(asked, vlm_D1), seconds=asked.deadline.left
            )
        except TimeoutError:
            return None, Shortfall("deadline", "no image was imagined by the deadline")
        except Unavailable as error:
            return None, Shortfall.of(error)
        asked.memory = "hit" if remembered else "miss"
        return known, None

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
