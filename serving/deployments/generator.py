"""The diffusion model as a deployment: each replica runs one generation at a time, for as many requests as wait."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.profile import Profile
from retrieval.artifacts import TrainedAggregator
from retrieval.images import thumbnail
from serving import metrics
from serving.deployments.calls import call
from serving.deployments.messages import PROBE, Imagination, Model
from serving.ray_names import sized_for

if TYPE_CHECKING:
    from retrieval.models.generator import Imagined
    from retrieval.models.preprocess import Preprocess

FRESH_SECONDS = 60
"""A health check trusts a generation that is no older, and runs one otherwise."""
STUCK_SECONDS = 300
"""A generation that takes longer will not end: the replica is replaced."""


@dataclass(frozen=True, eq=False)
class _Request:
    """A request that waits for its images; its future is cancelled when the client has gone."""

    text: str
    images: int
    seed: int
    done: asyncio.Future[Imagined]

    @property
    def unwanted(self) -> bool:
        return self.done.done()

    def settle(self, result: Imagined | Exception) -> None:
        if self.unwanted:
            return
        if isinstance(result, Exception):
            self.done.set_exception(result)
        else:
            self.done.set_result(result)


@serve.deployment
class ImaginingGenerator:
    """Imagines texts, and has the images encoded by the vision encoder: what goes back to the caller is small.

    A pipeline makes one batch at a time. Requests that come meanwhile make up the next one, if they want equally
    many images of the same seed. A generation stops at the next denoising step once nobody waits for it.
    """

    def __init__(self, profile: Profile, vision: DeploymentHandle, aggregator: str | None = None) -> None:
        from cluster.loading import generator_settings, load_generator, record_of  # by replicas alone: see encoders.py

        self._generator = load_generator(profile)
        if aggregator:
            TrainedAggregator.open(aggregator).check_generator(self._generator.uri, self._generator.fingerprint)
        self._model = Model(record_of(self._generator))
        self._vision = vision
        self._preprocess: Preprocess | None = None
        self._images_at_once = generator_settings(profile).batch
        self._requests_at_once = profile.serve.generator.batch
        self._call_seconds = profile.serve.deadline_ms / 1000
        self._waiting: deque[_Request] = deque()
        self._runner: asyncio.Task[None] | None = None
        self._running_since: float | None = None
        self._generator.imagine([PROBE], 1, batch=self._images_at_once)  # the first run is slow
        self._succeeded = time.monotonic()

    async def model(self) -> Model:
        return self._model

    async def imagine(self, text: str, images: int, seed: int) -> Imagination:
        """Imagine a text as up to ``images`` images.

        Raises:
            UserError: the text is blank or too long.
            Unavailable: the vision encoder does not answer.
        """
        imagined = await self._imagined(text, images, seed)
        if self._preprocess is None:
            self._preprocess = await self._ask_vision(self._vision.preprocess)
        pixels_KHWC, thumbnails = await asyncio.to_thread(_prepared, imagined, self._preprocess)
        encode = sized_for(self._vision, "encode_pictures", pixels_KHWC.nbytes)
        return Imagination(await self._ask_vision(encode, pixels_KHWC), imagined.seeds, thumbnails, imagined.rejected)

    async def check_health(self) -> None:
        """Generate an image, unless one was generated lately or is being generated.

        Raises:
            RuntimeError: a generation has been under way for longer than STUCK_SECONDS.
        """
        now = time.monotonic()
        if self._running_since is not None:
            if now - self._running_since > STUCK_SECONDS:
                raise RuntimeError(f"a generation has not ended in {STUCK_SECONDS} seconds")
        elif now - self._succeeded > FRESH_SECONDS:
            await self._imagined(PROBE, 1, 0)

    async def _imagined(self, text: str, images: int, seed: int) -> Imagined:
        request = _Request(text, images, seed, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._runner is None:
            self._runner = asyncio.create_task(self._run_batches())
        return await request.done

    async def _run_batches(self) -> None:
        while batch := self._next_batch():
            self._running_since = time.monotonic()
            metrics.batch_size.observe(len(batch), part="generator")
            try:
                with metrics.generation_seconds.timed():
                    made: Sequence[Imagined | Exception] = await asyncio.to_thread(self._generate, batch)
            except Exception as error:
                made = [error] * len(batch)
            else:
                self._succeeded = time.monotonic()
            for request, result in zip(batch, made, strict=True):
                request.settle(result)
        self._runner = self._running_since = None

    def _next_batch(self) -> list[_Request]:
        """The oldest request that is still wanted, and others that can be generated with it."""
        wanted = [request for request in self._waiting if not request.unwanted]
        chosen = [request for request in wanted if (request.images, request.seed) == (wanted[0].images, wanted[0].seed)]
        chosen = chosen[: self._requests_at_once]
        self._waiting = deque(request for request in wanted if request not in chosen)
        return chosen

    def _generate(self, batch: Sequence[_Request]) -> list[Imagined]:
        return self._generator.imagine(
            [request.text for request in batch],
            batch[0].images,
            seed=batch[0].seed,
            batch=self._images_at_once,
            stop=lambda: all(request.unwanted for request in batch),
        )

    async def _ask_vision(self, method: Any, *arguments: Any) -> Any:
        return await call("the vision encoder", method, *arguments, seconds=self._call_seconds)


def _prepared(imagined: Imagined, preprocess: Preprocess) -> tuple[np.ndarray, list[bytes]]:
    """The images as the vision encoder wants them, uint8 (K, H, W, 3), and as small JPEGs."""
    pictures = [Image.fromarray(pixels) for pixels in imagined.pixels_KHWC]
    blank = preprocess.blank()
    pixels_KHWC = np.array([preprocess.pixels(picture) for picture in pictures], np.uint8).reshape(-1, *blank.shape)
    return pixels_KHWC, [thumbnail(picture) for picture in pictures]
