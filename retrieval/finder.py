"""The whole method in one process: a text to ranked images. What the service answers must equal this."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from retrieval.artifacts import Index, QuerySet, TrainedAggregator
from retrieval.artifacts.compatibility import check_made_by
from retrieval.bridge import Bridge, Reading, Said, bridges, merging, recomposed
from retrieval.errors import UserError
from retrieval.evidence import Encoded, Evidence, Picture, Row, Text, check_evidence, compiled, halves, shares
from retrieval.fusion import DEFAULT_WEIGHT, check_weight
from retrieval.index.hits import Hits, checked_k, merge_topk
from retrieval.lens import lens, through
from retrieval.means import Means
from retrieval.query import QueryEncoder, pool
from retrieval.words import NEIGHBOURS, Dictionary, Refinement

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
        imagined: the images that each text was imagined as; empty if none were asked for.
        degraded: why the ranking is not the one asked for; None if it is.
        shares: of each result, what each piece of evidence brought to its score; of a query that was read into words,
            by how many of the words came from it.
        words: what was read from pictures and rows, and the text that was searched for in their place; None where
            nothing was read.
        refinements: words of the dictionary that split the results best; none without a dictionary.
    """

    results: list[Found]
    weight: float
    imagined: list[Imagined]
    degraded: str | None
    shares: list[list[float]]
    words: Reading | None = None
    refinements: list[Refinement] = field(default_factory=list)

    def __iter__(self) -> Iterator[Found]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    @property
    def images(self) -> list[Image.Image]:
        """The imagined images that were accepted."""
        return [Image.fromarray(pixels) for imagined in self.imagined for pixels in imagined.pixels_KHWC]


class Finder:
    """An open index with the models that its queries need.

    Args:
        encoder: the three models.
        index: of the same VLM and vision encoder.
        aggregator: of the same models; without one, imagined images are averaged.
        words: a dictionary (``retrieval.words``), for lenses, for reading pictures, and for refinements.

    Raises:
        UserError: the index or the aggregator was made by other models (code ``other-model``, field the role), or does
            not say by which (``unknown-model``).
        DamagedError: a shard or the aggregator cannot be read.
    """

    def __init__(
        self,
        encoder: QueryEncoder,
        index: Index,
        aggregator: TrainedAggregator | None = None,
        words: QuerySet | None = None,
    ) -> None:
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
        if words:
            check_made_by(words, "vlm", encoder.vlm.uri, encoder.vlm.fingerprint)
            check_made_by(words, "vision", encoder.vision.uri, encoder.vision.fingerprint)
        self.dictionary = Dictionary.of(words, self.network) if words else None
        mean = index.mean()
        self.means = Means(*mean) if mean else None

    def search(
        self,
        text: str,
        k: int = 10,
        *,
        mode: Mode = "fused",
        weight: float | None = None,
        images: int = 8,
        seed: int = 0,
        focus: str | None = None,
        ignore: Sequence[str] = (),
    ) -> Answer:
        """Find the k best images for a text: what ``find`` does for one ``Text``."""
        return self.find(
            [Text(text)], k, mode=mode, weight=weight, images=images, seed=seed, focus=focus, ignore=ignore
        )

    def find(
        self,
        evidence: Sequence[Evidence],
        k: int = 10,
        *,
        mode: Mode = "fused",
        weight: float | None = None,
        images: int = 8,
        seed: int = 0,
        focus: str | None = None,
        ignore: Sequence[str] = (),
        bridge: Bridge = "auto",
    ) -> Answer:
        """Find the k best images for texts, pictures and rows of the gallery, for and against (``retrieval.evidence``).

        If nothing that is wanted has a visual half, since no image could be imagined, the answer is the text one and
        says so.

        Args:
            evidence: up to 16 pieces, one of which is for something.
            k: number of results, from 1.
            mode: rank by the VLM's vectors alone (``text``), by those of the vision encoder alone (``visual``), or by
                both (``fused``).
            weight: λ of the fused ranking, from 0 to 1; by default the aggregator's, else DEFAULT_WEIGHT.
            images: K, how many images each text is imagined as.
            seed: of the images.
            focus: an aspect of the dictionary, which then counts alone (``retrieval.lens``).
            ignore: aspects of the dictionary that then do not count.
            bridge: whether pictures and rows are read into words (``retrieval.bridge``): ``auto``, where they stand
                together with texts and there is a dictionary; ``words``, always; or ``none``.

        Raises:
            UserError: k, λ or the number of images is out of range (code ``out-of-range``), the mode is unknown
                (``unknown``), a text is ``blank`` or ``too-long``, a row is not in the index (``missing``), or as
                ``check_evidence``, ``summed``, ``lens`` and ``bridges``. The field is the argument.
        """
        if mode not in _WEIGHTS:
            message = f"the mode is {', '.join(_WEIGHTS)}, not {mode!r}"
            raise UserError(message, code="unknown", field="mode")
        given = self.weight if weight is None else weight
        of_mode = _WEIGHTS[mode]
        weight = float(check_weight(given if of_mode is None else of_mode))
        checked_k(k)  # before imagining, which takes its time
        check_evidence(evidence)
        glass = lens(self.dictionary, focus, ignore)
        evidence, reading, brings_EG = self._bridged(evidence, bridge, seed)
        encoded, imagined = self._encoded(evidence, images if weight > 0 else None, seed)
        texts_E = np.array([isinstance(piece, Text) for piece in evidence])
        encoded = through(encoded, texts_E, self.dictionary, self.means, glass)
        reasons = sorted({reason for one in imagined if not len(one.pixels_KHWC) for reason in one.rejected})
        degraded = f"no image could be imagined ({', '.join(reasons)})" if reasons else None
        query_1D, weight = compiled(encoded, weight)
        hits = self._hits(query_1D, k)
        vectors = self._vectors(hits)
        brought = (shares(encoded, weight, *vectors) @ brings_EG).tolist()
        refinements = self.dictionary.refinements(*vectors, self.means) if self.dictionary else []
        return Answer(self._results(hits), weight, imagined, degraded, brought, reading, refinements)

    def _bridged(
        self, given: Sequence[Evidence], bridge: Bridge, seed: int
    ) -> tuple[Sequence[Evidence], Reading | None, NDArray[np.float64]]:
        """Read pictures and rows that are wanted into words, if that is asked for.

        Returns:
            The evidence to search for; what was read; and the share that each given piece has in each piece of it.
        """
        as_given = given, None, np.eye(len(given))
        pictures = [n for n, piece in enumerate(given) if not isinstance(piece, Text) and piece.weight > 0]
        texts = [n for n, piece in enumerate(given) if isinstance(piece, Text)]
        if not bridges(bridge, self.dictionary, pictures=bool(pictures), texts=bool(texts)) or not self.dictionary:
            return as_given
        encoded, _ = self._encoded([given[n] for n in pictures], None, seed)
        near = self._hits(compiled(encoded, DEFAULT_WEIGHT)[0], NEIGHBOURS)
        words = self.dictionary.read(*self._vectors(near), self.means)
        phrases = [piece for piece in given if isinstance(piece, Text)]
        vlm_BD1 = self.encoder.text_vectors([piece.text for piece in phrases]) if phrases else ()
        said = [Said(piece.text, t_D1, piece.weight > 0) for piece, t_D1 in zip(phrases, vlm_BD1, strict=True)]
        reading = recomposed(self.dictionary, words, said)
        merged = merging(reading, [isinstance(piece, Text) for piece in given], [piece.weight for piece in given])
        if merged is None:
            return as_given
        kept, brings_EG = merged
        weight = max(piece.weight for piece in given)
        return [Text(reading.text, weight), *(given[n] for n in kept)], reading, brings_EG

    def rank(self, query_D: NDArray[np.float32], k: int = 10) -> list[Found]:
        """Find the k best images for one joint query [(1 - λ)t ; λv], (D,) or (1, D), of ``fusion.fused_query``.

        Raises:
            UserError: k is out of range, or the query is of other dimensions or not finite.
        """
        return self._results(self._hits(query_D, k))

    def _hits(self, query_D: NDArray[np.float32], k: int) -> Hits:
        return merge_topk([shard.search(query_D, k) for shard in self.shards], k)

    def _results(self, hits: Hits) -> list[Found]:
        return [self._found(hits, i) for i in range(hits.ids.shape[1])]

    def _found(self, hits: Hits, i: int) -> Found:
        rows: pa.Table = self.shards[hits.shards[0, i]].rows
        row = rows.slice(int(hits.rows[0, i]), 1).to_pylist()[0]
        return Found(row, *(float(part[0, i]) for part in (hits.scores, hits.text_part, hits.visual_part)))

    def _vectors(self, hits: Hits) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """c and d of what was found."""
        places = zip(hits.shards[0], hits.rows[0], strict=True)
        joint_kD = np.array([self.shards[shard].vectors[row] for shard, row in places], np.float16)
        split = self.encoder.vlm.dim
        joint_kD = joint_kD.reshape(-1, split + self.encoder.vision.dim)  # if nothing was found
        return joint_kD[:, :split], joint_kD[:, split:]

    def _encoded(self, evidence: Sequence[Evidence], images: int | None, seed: int) -> tuple[Encoded, list[Imagined]]:
        """Encode evidence; its texts are imagined as so many images each, or not at all."""
        texts = [piece.text for piece in evidence if isinstance(piece, Text)]
        pictures = [piece.cut() for piece in evidence if isinstance(piece, Picture)]
        rows = [self._row_vectors(piece.id, n) for n, piece in enumerate(evidence) if isinstance(piece, Row)]
        imagined: list[Imagined] = []
        of_kind: dict[type, Iterator[tuple[np.ndarray, np.ndarray]]] = {Row: iter(rows)}
        if texts:
            vlm_BD1 = self.encoder.text_vectors(texts)
            vision_BD2 = np.zeros((len(texts), self.encoder.vision.dim), np.float32)
            if images is not None:
                imagined = self.encoder.generator.imagine(texts, images, seed=seed, batch=self.encoder.batch)
                for b, features_KD2 in enumerate(self.encoder.image_vectors(imagined)):
                    mask = np.ones((1, len(features_KD2)), bool)
                    vision_BD2[b] = pool(features_KD2[None], mask, self.network)[0]
            of_kind[Text] = zip(vlm_BD1, vision_BD2, strict=True)
        if pictures:
            of_kind[Picture] = zip(*self.encoder.picture_vectors(pictures), strict=True)
        vlm, vision = zip(*(next(of_kind[type(piece)]) for piece in evidence), strict=True)
        weights = np.array([piece.weight for piece in evidence], np.float64)
        return Encoded(weights, np.stack(vlm), np.stack(vision)), imagined

    def _row_vectors(self, id: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        for shard in self.shards:
            if (row := shard.row_of(id)) is not None:
                return halves(shard.vectors[row], shard.vlm_dim)
        raise UserError(
            f"no row of {self.index.uri} has the id {id!r}, or it was removed: give an id that a search has returned",
            code="missing",
            field=f"evidence.{number}.id",
        )
