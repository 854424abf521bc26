"""The two encoders as deployments. Requests that arrive while a batch is under way make up the next one; where that is
of many texts, the cores that idle take parts of it.

Each row of a batch is encoded by itself, but kernels for other batch sizes round differently: under load a vector may
differ in its last bits from the one that the same request gets alone.

Libraries of models are imported by the replicas alone: the process that builds the graph need not wait for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from ray import serve

from cluster.cores import usable_cores
from cluster.profile import Profile, Replicas
from retrieval.prompts import fill
from serving import metrics
from serving.deployments.messages import PROBE, EncodedText, Model, Tokens

if TYPE_CHECKING:
    from retrieval.models.image_encoder import ImageEncoder
    from retrieval.models.preprocess import Preprocess

LEAST_PART = 4
"""Texts that a core is given of a batch, at least: fewer cost more each, as the weights are read for them alone."""


def batched(part: str, function: Callable[[Sequence[Any]], Sequence[Any]], settings: Replicas) -> Callable[[Any], Any]:
    """Gather single calls into lists, at most ``settings.batch`` long, for ``function``, which runs in a thread. Their
    lengths are measured as those of ``part``.

    Made for each replica, since Serve's decorator on a method has one queue for all objects of the class.
    """

    @serve.batch(max_batch_size=settings.batch, batch_wait_timeout_s=settings.batch_wait_ms / 1000)
    async def run(items: list[Any]) -> list[Any]:
        metrics.batch_size.observe(len(items), part=part)
        return list(await asyncio.to_thread(function, items))

    return run


def idle_cores(device: str) -> int:
    """Return how many threads of their own may compute at once on a device.

    Ray gives PyTorch as many threads as a replica reserves CPUs, one for a share of a CPU. PyTorch could be given all,
    but its threads wait for one another in every layer, and beside the other processes of a service that costs more
    than it gains: on two cores, both in use, 8 texts took 62 ms in two threads and 36 in one.
    """
    import torch  # by replicas alone

    return max(1, usable_cores() // torch.get_num_threads()) if device == "cpu" else 1


def parts_of(texts: Sequence[str], cores: int) -> list[Sequence[str]]:
    """Cut a batch into as many parts of like length as there are cores, none of them shorter than LEAST_PART."""
    count = max(1, min(cores, len(texts) // LEAST_PART))
    bounds = [len(texts) * part // count for part in range(count + 1)]
    return [texts[start:end] for start, end in pairwise(bounds)]


class PictureEncoder:
    """What both deployments do with pictures."""

    def __init__(
        self, encoder: ImageEncoder, settings: Replicas, templates: Sequence[str] = (), context: int = 0
    ) -> None:
        from cluster.loading import record_of

        self._encoder = encoder
        self._model = Model(record_of(encoder), templates, context)
        self._encode_pictures = batched("pictures", self._many_pictures, settings)
        self._many_pictures([encoder.preprocess.blank()[None]])  # the first run is slow, and should not be a request

    async def model(self) -> Model:
        return self._model

    async def preprocess(self) -> Preprocess:
        return self._encoder.preprocess

    async def encode_pictures(self, pixels_KHWC: np.ndarray) -> np.ndarray:
        """Return unit vectors, float32 (K, D), of pictures as ``Preprocess.pixels`` makes them, uint8."""
        return await self._encode_pictures(pixels_KHWC)

    def _many_pictures(self, sets: Sequence[np.ndarray]) -> list[np.ndarray]:
        vectors = self._encoder.encode_images(np.concatenate(sets))
        return np.split(vectors, np.cumsum([len(pixels) for pixels in sets])[:-1])


@serve.deployment
class VisionTower(PictureEncoder):
    """The vision encoder."""

    def __init__(self, profile: Profile) -> None:
        from cluster.loading import load_vision

        super().__init__(load_vision(profile), profile.serve.vision)

    async def check_health(self) -> None:
        """Encode a picture, as requests do."""
        await self.encode_pictures(self._encoder.preprocess.blank()[None])


@serve.deployment
class VLMTowers(PictureEncoder):
    """The vision-and-language model: its text tower for queries in words, its image tower for queries by picture."""

    def __init__(self, profile: Profile) -> None:
        from cluster.loading import load_vlm, prompt_templates

        self._vlm = load_vlm(profile)
        self._templates = prompt_templates(profile)
        super().__init__(self._vlm, profile.serve.vlm, self._templates, self._vlm.context_length)
        self._cores = idle_cores(self._vlm.device.type)
        self._pool = ThreadPoolExecutor(self._cores, "texts")
        self._encode_texts = batched("text", self._many_texts, profile.serve.vlm)
        self._many_texts([PROBE])

    async def encode_text(self, text: str) -> EncodedText:
        """Encode a query.

        Raises:
            UserError: the text is blank or too long.
        """
        return await self._encode_texts(text)

    async def encode_texts(self, texts: Sequence[str]) -> list[EncodedText]:
        """Encode queries, and with them those that others send meanwhile. Errors are those of ``encode_text``."""
        return await asyncio.gather(*map(self._encode_texts, texts))

    async def tokens(self, text: str) -> Tokens:
        """Count the tokens of a query whose vector is known."""
        return self._tokens(text)

    async def check_health(self) -> None:
        """Encode a text, as requests do."""
        await self.encode_text(PROBE)

    def _many_texts(self, texts: Sequence[str]) -> list[EncodedText]:
        from retrieval.query import text_vectors

        encode = partial(text_vectors, self._vlm, self._templates)
        parts = parts_of(texts, self._cores)
        vectors = np.concatenate(list(self._pool.map(encode, parts)) if len(parts) > 1 else [encode(texts)])
        return [EncodedText(vector, self._tokens(text)) for vector, text in zip(vectors, texts, strict=True)]

    def _tokens(self, text: str) -> Tokens:
        longest = max(fill(self._templates, text), key=len)
        return Tokens(self._vlm.token_count(longest), self._vlm.context_length)
