"""The whole method in one process: a text to ranked images. What the service answers must equal this."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from retrieval.artifacts import Index, TrainedAggregator
from retrieval.artifacts.compatibility import check_made_by
from retrieval.errors import UserError
from retrieval.fusion import DEFAULT_WEIGHT, check_weight, fused_query
from retrieval.index.hits import Hits, checked_k, merge_topk
from retrieval.query import QueryEncoder, pool

if TYPE_CHECKING:
    from retrieval.models.imagined import Imagined

Mode = Literal["text", "visual", "fused"]
_WEIGHTS: dict[Mode, float | None] = {"text": 0.0, "visual": 1.0, "fused": None}


@dataclass(frozen=True)
class Found:
    """One image that was found.

    Attributes:
        row: the columns of the index: id, path, label, width, height, batch, and those of the source.
        score: ``text_part`` + ``visual_part``.
        text_part: (1 - λ)·⟨t, c⟩.
        visual_part: λ·⟨v, d⟩.
    """

    row: dict[str, Any]
    score: float
    text_part: float
    visual_part: float

    @property
    def id(self) -> str:
        return self.row["id"]

    @property
    def path(self) -> str:
        """Relative to the source of its batch."""
        return self.row["path"]

    @property
    def label(self) -> str | None:
        return self.row["label"]


@dataclass(frozen=True)
class Answer:
    """What a search found; to go through it is to go through its results.

    Attributes:
        results: best first.
        weight: λ, with which they were ranked.
        imagined: the images that the text was imagined as; None if none were asked for.
        degraded: why the ranking is not the one asked for; None if it is.
    """

    results: list[Found]
    weight: float
    imagined: Imagined | None
    degraded: str | None

    def __iter__(self) -> Iterator[Found]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    @property
    def images(self) -> list[Image.Image]:
        """The imagined images that were accepted."""
        return [Image.fromarray(pixels) for pixels in self.imagined.pixels_KHWC] if self.imagined else []


class Finder:
    """An open index with the models that its queries need.

    Args:
        encoder: the three models.
        index: of the same VLM and vision encoder.
        aggregator: of the same models; without one, imagined images are averaged.

    Raises:
        UserError: the index or the aggregator was made by other models (code ``other-model``, field the role), or does
            not say by which (``unknown-model``).
        DamagedError: a shard or the aggregator cannot be read.
    """

    def __init__(self, encoder: QueryEncoder, index: Index, aggregator: TrainedAggregator | None = None) -> None:
        check_made_by(index, "vlm", encoder.vlm.uri, encoder.vlm.fingerprint)
        check_made_by(index, "vision", encoder.vision.uri, encoder.vision.fingerprint)
        if aggregator:
            aggregator.check_fits(index)
            aggregator.check_generator(encoder.generator.uri, encoder.generator.fingerprint)
        self.encoder = encoder
        self.index = index
        self.shards = index.shards()
        self.network = aggregator.network() if aggregator else None
        self.weight = aggregator.manifest.weight if aggregator else DEFAULT_WEIGHT

    def search(
        self,
        text: str,
        k: int = 10,
        *,
        mode: Mode = "fused",
        weight: float | None = None,
        images: int = 8,
        seed: int = 0,
    ) -> Answer:
        """Find the k best images for a text. If no image could be imagined, the answer is the text one and says so.

        Args:
            text: a name or a description of a category.
            k: number of results, from 1.
            mode: rank by the text alone (``text``), by its imagined images alone (``visual``), or by both (``fused``).
            weight: λ of the fused ranking, from 0 to 1; by default the aggregator's, else DEFAULT_WEIGHT.
            images: K, how many images are imagined.
            seed: of the images.

        Raises:
            UserError: k, λ or the number of images is out of range (code ``out-of-range``), the mode is unknown
                (``unknown``), or the text is ``blank`` or ``too-long``. The field is the argument.
        """
        if mode not in _WEIGHTS:
            message = f"the mode is {', '.join(_WEIGHTS)}, not {mode!r}"
            raise UserError(message, code="unknown", field="mode")
        given = self.weight if weight is None else weight
        of_mode = _WEIGHTS[mode]
        weight = float(check_weight(given if of_mode is None else of_mode))
        checked_k(k)  # before imagining, which takes its time
        vlm_1D = self.encoder.text_vectors([text])
        imagined, degraded = None, None
        vision_1D = np.zeros((1, self.encoder.vision.dim), np.float32)
        if weight > 0:
            [imagined] = self.encoder.generator.imagine([text], images, seed=seed, batch=self.encoder.batch)
            [features_KD] = self.encoder.image_vectors([imagined])
            if len(features_KD):
                vision_1D = pool(features_KD[None], np.ones((1, len(features_KD)), bool), self.network)
            else:
                weight, degraded = 0.0, f"no image could be imagined ({', '.join(sorted(set(imagined.rejected)))})"
        return Answer(self.rank(fused_query(vlm_1D, vision_1D, weight), k), weight, imagined, degraded)

    def rank(self, query_D: NDArray[np.float32], k: int = 10) -> list[Found]:
        """Find the k best images for one joint query [(1 - λ)t ; λv], (D,) or (1, D), of ``fusion.fused_query``.

        Raises:
            UserError: k is out of range, or the query is of other dimensions or not finite.
        """
        hits = merge_topk([shard.search(query_D, k) for shard in self.shards], k)
        return [self._found(hits, i) for i in range(hits.ids.shape[1])]

    def _found(self, hits: Hits, i: int) -> Found:
        rows: pa.Table = self.shards[hits.shards[0, i]].rows
        row = rows.slice(int(hits.rows[0, i]), 1).to_pylist()[0]
        return Found(row, *(float(part[0, i]) for part in (hits.scores, hits.text_part, hits.visual_part)))
