"""The whole method in one process: a text to ranked images. What the service answers must equal this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from retrieval.artifacts import Index, TrainedAggregator, check_made_by
from retrieval.fusion import DEFAULT_WEIGHT, check_weight, fused_query
from retrieval.index.hits import Hits, checked_k, merge_topk
from retrieval.query import QueryEncoder, pool

if TYPE_CHECKING:
    from retrieval.models.generator import Imagined

Mode = Literal["text", "visual", "fused"]


@dataclass(frozen=True)
class Found:
    """One result. ``score`` is ``text_part`` + ``visual_part``; ``row`` has the columns of the index: id, path, label,
    …
    """

    row: dict[str, Any]
    score: float
    text_part: float
    visual_part: float


@dataclass(frozen=True)
class Answer:
    """Results, best first; the λ they were ranked with; what was imagined; and why the ranking is not the one asked
    for, if so.
    """

    results: list[Found]
    weight: float
    imagined: Imagined | None
    degraded: str | None


class Finder:
    """An open index with the models that its queries need.

    Raises:
        ValueError: the index or the aggregator was made by other models.
    """

    def __init__(self, encoder: QueryEncoder, index: Index, aggregator: TrainedAggregator | None = None) -> None:
        check_made_by(index, "vlm", encoder.vlm.uri, encoder.vlm.fingerprint)
        check_made_by(index, "vision", encoder.vision.uri, encoder.vision.fingerprint)
        if aggregator:
            aggregator.check_fits(index)
            aggregator.check_generator(encoder.generator.uri, encoder.generator.fingerprint)
        self.encoder = encoder
        self.shards = index.shards()
        self.network = aggregator.network() if aggregator else None
        self.weight = aggregator.manifest.weight if aggregator else DEFAULT_WEIGHT

    def search(
        self, text: str, k: int, *, mode: Mode = "fused", weight: float | None = None, images: int = 8, seed: int = 0
    ) -> Answer:
        """Find the k best images for a text. If no image could be imagined, the answer is the text one and says so.

        Raises:
            ValueError: k below 1, λ outside 0 to 1, or a text that is blank or too long.
        """
        weight = float(check_weight({"text": 0.0, "visual": 1.0}.get(mode, self.weight if weight is None else weight)))
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
        hits = merge_topk([shard.search(fused_query(vlm_1D, vision_1D, weight), k) for shard in self.shards], k)
        return Answer([self._found(hits, i) for i in range(hits.ids.shape[1])], weight, imagined, degraded)

    def _found(self, hits: Hits, i: int) -> Found:
        rows: pa.Table = self.shards[hits.shards[0, i]].rows
        row = rows.slice(int(hits.rows[0, i]), 1).to_pylist()[0]
        return Found(row, *(float(part[0, i]) for part in (hits.scores, hits.text_part, hits.visual_part)))
