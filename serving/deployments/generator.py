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
"""A health check trusts a success that is no older, and paints a picture otherwise."""
STUCK_SECONDS = 300
"""A generation that takes longer will not end: the replica is replaced."""


@dataclass(frozen=True, eq=False)
class _Order:
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
        from cluster.loading import load_generator, record_of  # by replicas alone: see encoders.py

        self._generator = load_generator(profile)
        if aggregator:
            TrainedAggregator.open(aggregator).check_generator(self._generator.uri, self._generator.fingerprint)
        self._model = Model(record_of(self._generator))
        self._vision = vision
        self._preprocess: Preprocess | None = None
        self._images_at_once = profile.models.generator.batch
        self._orders_at_once = profile.serve.generator.batch
        self._call_seconds = profile.serve.deadline_ms / 1000
        self._orders: deque[_Order] = deque()
        self._painter: asyncio.Task[None] | None = None
        self._painting_since: float | None = None
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
        """Paint a picture, unless one was painted lately or is being painted.

        Raises:
            RuntimeError: a generation has been under way for longer than STUCK_SECONDS.
        """
        now = time.monotonic()
        if self._painting_since is not None:
            if now - self._painting_since > STUCK_SECONDS:
                raise RuntimeError(f"a generation has not ended in {STUCK_SECONDS} seconds")
        elif now - self._succeeded > FRESH_SECONDS:
            await self._imagined(PROBE, 1, 0)

    async def _imagined(self, text: str, images: int, seed: int) -> Imagined:
        order = _Order(text, images, seed, asyncio.get_running_loop().create_future())
        self._orders.append(order)
        if self._painter is None:
            self._painter = asyncio.create_task(self._paint_all())
        return await order.done

    async def _paint_all(self) -> None:
        while orders := self._next_orders():
            self._painting_since = time.monotonic()
            metrics.batch_size.observe(len(orders), part="generator")
            try:
                with metrics.generation_seconds.timed():
                    made: Sequence[Imagined | Exception] = await asyncio.to_thread(self._paint, orders)
            except Exception as error:
                made = [error] * len(orders)
            else:
                self._succeeded = time.monotonic()
            for order, result in zip(orders, made, strict=True):
                order.settle(result)
        self._painter = self._painting_since = None

    def _next_orders(self) -> list[_Order]:
        """The oldest order that is still wanted, and others that can be painted with it."""
        wanted = [order for order in self._orders if not order.unwanted]
        chosen = [order for order in wanted if (order.images, order.seed) == (wanted[0].images, wanted[0].seed)]
        chosen = chosen[: self._orders_at_once]
        self._orders = deque(order for order in wanted if order not in chosen)
        return chosen

    def _paint(self, orders: Sequence[_Order]) -> list[Imagined]:
        return self._generator.imagine(
            [order.text for order in orders],
            orders[0].images,
            seed=orders[0].seed,
            batch=self._images_at_once,
            stop=lambda: all(order.unwanted for order in orders),
        )

    async def _ask_vision(self, method: Any, *arguments: Any) -> Any:
        return await call("the vision encoder", method, *arguments, seconds=self._call_seconds)


def _prepared(imagined: Imagined, preprocess: Preprocess) -> tuple[np.ndarray, list[bytes]]:
    """The images as the vision encoder wants them, uint8 (K, H, W, 3), and as small JPEGs."""
    pictures = [Image.fromarray(pixels) for pixels in imagined.pixels_KHWC]
    blank = preprocess.blank()
    pixels_KHWC = np.array([preprocess.pixels(picture) for picture in pictures], np.uint8).reshape(-1, *blank.shape)
    return pixels_KHWC, [thumbnail(picture) for picture in pictures]
