"""From the evidence of a search to its vectors: texts by the text tower, pictures by both image towers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from ray.serve.handle import DeploymentHandle

from cluster.profile import Replicas
from retrieval.artifacts import Role
from serving import metrics
from serving.asked import Asked, AskedPicture, AskedText
from serving.deployments.calls import Unavailable, call
from serving.deployments.gathering import Gathering
from serving.deployments.messages import EncodedText, Model
from serving.given import GivenPictures

SPECIAL_TOKENS = 3
"""A tokenizer adds its start and end, and some a space; each other token stands for a byte at least."""


class Encoding:
    """Encodes evidence; texts that wait at the same time, together. For one event loop.

    Args:
        vlm: whose text tower encodes.
        settings: its replicas.
        pictures: that are given as evidence.
        models: by role, as ``Imaginer.models``.
    """

    def __init__(
        self, vlm: DeploymentHandle, settings: Replicas, pictures: GivenPictures, models: Mapping[Role, Model]
    ) -> None:
        self._vlm = vlm
        self._texts: Gathering[str, EncodedText] = Gathering.of("the text encoder", self._encode_each, settings)
        self._pictures = pictures
        self._models = models

    async def encode(self, asked: Asked) -> None:
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
        picture.seen = await self._pictures.of(picture.given, picture.field, asked.deadline)

    async def _encode_each(self, texts: list[str], seconds: float) -> list[EncodedText]:
        return await call("the text encoder", self._vlm.encode_texts, texts, seconds=seconds)

    async def count_tokens(self, asked: Asked) -> None:
        """Warn of texts whose vectors were remembered, as encoding would have. Most are too short to be counted."""
        model = self._models.get("vlm")
        if not model:
            return
        longest = max(len(template.encode()) for template in model.templates) if model.templates else 0
        for text in asked.texts:
            if text.memory == "hit" and len(text.text.encode()) + longest + SPECIAL_TOKENS > model.context:
                with suppress(Unavailable):  # an answer without the warning is better than none
                    tokens = self._vlm.tokens
                    counted = await call("the text encoder", tokens, text.text, seconds=asked.deadline.left)
                    asked.warn_of(text, counted)
