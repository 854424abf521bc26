"""From a text to what searches a gallery: its text vector, its imagined images and their vectors.

The one code for it: batch jobs, the command line and the service all call this.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from retrieval.aggregator import Aggregator, mean_pool
from retrieval.errors import UserError
from retrieval.fusion import unit
from retrieval.prompts import fill
from retrieval.timing import timed

if TYPE_CHECKING:  # each loads a library that takes seconds, and not every process has every model
    from retrieval.models.generator import Generator
    from retrieval.models.imagined import Imagined
    from retrieval.models.vision import VisionEncoder
    from retrieval.models.vlm import VLM


@dataclass(frozen=True)
class EncodedQuery:
    """A text, encoded. K counts the accepted images and may be 0.

    Attributes:
        text: as it was given.
        vlm_D1: t, float32, of unit norm.
        vision_KD2: g_1 … g_K, float32 unit rows.
        imagined: the images.
    """

    text: str
    vlm_D1: np.ndarray
    vision_KD2: np.ndarray
    imagined: Imagined


class QueryEncoder:
    """The three models that a query passes through, or two.

    Args:
        vlm: gives the text vector.
        vision: embeds the images.
        generator: imagines them; None if there is none, and texts are found without images of their own.
        templates: of the text vector, each with one ``{}``.
        batch: images that are imagined at once.
    """

    def __init__(
        self, vlm: VLM, vision: VisionEncoder, generator: Generator | None, *, templates: Sequence[str], batch: int
    ) -> None:
        self.vlm = vlm
        self.vision = vision
        self.generator = generator
        self.templates = templates
        self.batch = batch

    def encode(
        self, texts: Sequence[str], images: int, *, seed: int = 0, seconds: MutableMapping[str, float] | None = None
    ) -> list[EncodedQuery]:
        """Encode texts, each with ``images`` imagined images, of which K ≤ ``images`` are accepted.

        Args:
            texts: any number.
            images: of each text.
            seed: of the images.
            seconds: is added what each step took: ``text``, ``imagine``, ``embed``.

        Raises:
            UserError: a text is blank or too long, there are fewer than 1 images, or there is no generator (code
                ``missing``, field ``generator``).
        """
        seconds = {} if seconds is None else seconds
        with timed(seconds, "text"):
            vlm_BD1 = self.text_vectors(texts)
        with timed(seconds, "imagine"):
            imagined = self.imagine(texts, images, seed=seed)
        with timed(seconds, "embed"):
            vision = self.image_vectors(imagined)
        return [EncodedQuery(*parts) for parts in zip(texts, vlm_BD1, vision, imagined, strict=True)]

    def imagine(self, texts: Sequence[str], images: int, *, seed: int = 0) -> list[Imagined]:
        """Imagine each text as so many images; errors as of ``encode``."""
        if self.generator is None:
            message = "there is no generator to imagine with: name one in the profile, models.generator"
            raise UserError(message, code="missing", field="generator")
        return self.generator.imagine(texts, images, seed=seed, batch=self.batch)

    def text_vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Return t for each text, float32 (B, D1)."""
        return text_vectors(self.vlm, self.templates, texts)

    def image_vectors(self, imagined: Sequence[Imagined]) -> list[np.ndarray]:
        """Return g_1…g_K for each query, float32 (K, D2) unit rows."""
        counts = [len(one.pixels_KHWC) for one in imagined]
        pictures = [Image.fromarray(pixels) for one in imagined for pixels in one.pixels_KHWC]
        if not pictures:
            return [np.zeros((0, self.vision.dim), np.float32) for _ in imagined]
        pixels_BHWC = np.stack([self.vision.preprocess.pixels(picture) for picture in pictures])
        return np.split(self.vision.encode_images(pixels_BHWC), np.cumsum(counts)[:-1])

    def picture_vectors(self, pictures: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        """Return the vectors of RGB pictures as a gallery's images have them: float32 (B, D1) and (B, D2) unit rows."""
        vlm_BD1, vision_BD2 = (
            tower.encode_images(np.stack([tower.preprocess.pixels(picture) for picture in pictures]))
            for tower in (self.vlm, self.vision)
        )
        return vlm_BD1, vision_BD2


def text_vectors(vlm: VLM, templates: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Return t for each text, float32 (B, D1): the unit mean over the templates of the unit text embeddings.

    Prompt ensembling as in CLIP (Radford et al. 2021, §3.1.4).
    """
    filled = [sentence for text in texts for sentence in fill(templates, text)]
    embedded = vlm.encode_text(filled).reshape(len(texts), len(templates), vlm.dim)
    return unit(embedded.mean(axis=1))


def pool(features_QKD2: np.ndarray, mask_QK: np.ndarray, network: Aggregator | None = None) -> np.ndarray:
    """Pool the images of each query to one vector, by the aggregator or without one as their mean.

    Args:
        features_QKD2: float32 unit rows; absent ones may hold anything.
        mask_QK: bool, true where an image is present.
        network: in evaluation mode.

    Returns:
        v, float32 (Q, D2): unit vectors; zero for a query without an image, which is so ranked by its text alone.
    """
    pooled = np.zeros((len(features_QKD2), features_QKD2.shape[2]), np.float32)
    there = mask_QK.any(axis=1)
    if there.any():
        features, mask = torch.from_numpy(features_QKD2[there]), torch.from_numpy(mask_QK[there])
        with torch.inference_mode():
            pooled[there] = (network or mean_pool)(features, mask).numpy()
    return pooled
