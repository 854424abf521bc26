"""The whole method in one process: a text to ranked images. What the service answers must equal this."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from retrieval.artifacts import Index, QuerySet, TrainedAggregator, TrainedComposer
from retrieval.artifacts.compatibility import check_made_by, check_same_models
from retrieval.bridge import (
    Bridge,
    Reading,
    Said,
    bridges,
    composes,
    composing,
    given_shares,
    merging,
    read,
    refinements,
)
from retrieval.errors import UserError
from retrieval.evidence import Composed, Encoded, Evidence, Picture, Row, Text, check_evidence, compiled, halves
from retrieval.fusion import DEFAULT_WEIGHT, check_weight, fused_query
from retrieval.index.hits import Hits, checked_k, merge_topk
from retrieval.lens import lens, through
from retrieval.means import Means
from retrieval.nearest import NEAREST, visual_half
from retrieval.query import QueryEncoder, pool
from retrieval.rankings import Fuse, Scored, image_by_image, joint_queries, one_ranking, ranking_shares
from retrieval.second_stage import DEPTH, Rerank, checked_depth, neighbours, put_in_order
from retrieval.words import NEIGHBOURS, Dictionary, Refinement

if TYPE_CHECKING:
    from retrieval.assistant.endpoint import Assistant, Spent
    from retrieval.models.imagined import Imagined

Mode = Literal["text", "visual", "fused"]
Visual = Literal["imagined", "nearest", "given"]
_WEIGHTS: dict[Mode, float | None] = {"text": 0.0, "visual": 1.0, "fused": None}


@dataclass(frozen=True)
class Found:
    """One image that was found.

    Attributes:
        row: the columns of the index: id, path, label, width, height, batch, and those of the source.
        score: ``text_part`` + ``visual_part``, of the search itself.
        text_part: (1 - λ)·⟨t, c⟩; with ``fuse="rrf"`` the term of its rank by text.
        visual_part: λ·⟨v, d⟩, with ``fuse="max"`` of the image that it is most like; with ``rrf`` the terms of its
            ranks by images.
        rerank_score: of the second stage, by which it was put in its place; None without one, or beyond its depth.
    """

    row: dict[str, Any]
    score: float
    text_part: float
    visual_part: float
    rerank_score: float | None = None

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
        shares: of each result, what each piece of evidence brought to its score; empty with ``fuse="rrf"``, as ranks
            have no shares.
        visual: where the visual half came from: images that were imagined; the nearest real images of the gallery, for
            one text at least that has no imagined ones; pictures or rows that were given; None if there is none.
        reranked: by which second stage; None without one, or if an assistant gave no order.
        spent: what an assistant was asked for it, to word it and to put it in order; None if none was.
        words: what was read from pictures and rows, and the text that was searched for in their place; None where
            nothing was read. The shares of that text are given to pieces by how many of its words they have told.
        refinements: words of the dictionary that split the results best; none without a dictionary.
    """

    results: list[Found]
    weight: float
    imagined: list[Imagined]
    degraded: str | None
    shares: list[list[float]]
    visual: Visual | None
    reranked: str | None
    spent: Spent | None = None
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


class _Known(NamedTuple):
    """What is known of the evidence before anything is searched for by it: the vectors; the images, and the vectors of
    those, by the piece that was imagined; the pieces that have nearest real images instead; and why.
    """

    encoded: Encoded
    imagined: list[Imagined]
    images: dict[int, NDArray[np.float32]]
    nearest: list[int]
    degraded: str | None

    @property
    def visual(self) -> Visual:
        wanted = [n for n in self.images if self.encoded.weights_E[n] > 0]
        return "nearest" if self.nearest else "imagined" if wanted else "given"


class Finder:
    """An open index with the models that its queries need.

    Args:
        encoder: the three models, or two: without a generator, the nearest real images of the index stand in for
            imagined ones.
        index: of the same VLM and vision encoder.
        aggregator: of the same models; without one, imagined images are averaged.
        words: a dictionary (``retrieval.words``), for lenses, for reading pictures, and for refinements.
        assistant: that judges what was found, where a search asks for it (``retrieval.assistant``).
        composer: of the same models, for searches with ``bridge="composer"``.

    Raises:
        UserError: the index, the aggregator or the composer was made by other models (code ``other-model``, field the
            role), or does not say by which (``unknown-model``).
        DamagedError: a shard or the aggregator cannot be read.
    """

    def __init__(
        self,
        encoder: QueryEncoder,
        index: Index,
        aggregator: TrainedAggregator | None = None,
        words: QuerySet | None = None,
        *,
        assistant: Assistant | None = None,
        composer: TrainedComposer | None = None,
    ) -> None:
        check_made_by(index, "vlm", encoder.vlm.uri, encoder.vlm.fingerprint)
        check_made_by(index, "vision", encoder.vision.uri, encoder.vision.fingerprint)
        if aggregator:
            aggregator.check_fits(index)
            if encoder.generator:
                aggregator.check_generator(encoder.generator.uri, encoder.generator.fingerprint)
        if composer:
            check_same_models(index, composer, ("vlm", "vision"))
        self.encoder = encoder
        self.index = index
        self.composer = composer.network() if composer else None
        self.assistant = assistant
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
        fuse: Fuse = "mean",
        rerank: Rerank = "none",
        depth: int = DEPTH,
        focus: str | None = None,
        ignore: Sequence[str] = (),
    ) -> Answer:
        """Find the k best images for a text: what ``find`` does for one ``Text``."""
        return self.find(
            [Text(text)],
            k,
            mode=mode,
            weight=weight,
            images=images,
            seed=seed,
            fuse=fuse,
            rerank=rerank,
            depth=depth,
            focus=focus,
            ignore=ignore,
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
        fuse: Fuse = "mean",
        rerank: Rerank = "none",
        depth: int = DEPTH,
        focus: str | None = None,
        ignore: Sequence[str] = (),
        bridge: Bridge = "auto",
    ) -> Answer:
        """Find the k best images for texts, pictures and rows of the gallery, for and against (``retrieval.evidence``).

        A text of which no image could be imagined has the nearest real images of the index in their place
        (``retrieval.nearest``), and the answer says so.

        Args:
            evidence: up to 16 pieces, one of which is for something.
            k: number of results, from 1.
            mode: rank by the VLM's vectors alone (``text``), by those of the vision encoder alone (``visual``), or by
                both (``fused``).
            weight: λ of the fused ranking, from 0 to 1; by default the aggregator's, else DEFAULT_WEIGHT.
            images: K, how many images each text is imagined as.
            seed: of the images.
            fuse: how several imagined images become one ranking (``retrieval.rankings``).
            rerank: the second stage: none, the candidates' ``neighbours`` (``retrieval.second_stage``), or an assistant
                that is shown the candidates one by one (``judge``) or on one picture (``list``): pictures of the
                gallery are sent to it.
            depth: how many candidates the second stage ranks, an assistant no more than its own depth; and, with
                ``rrf``, how many rows of each list count.
            focus: an aspect of the dictionary, which then counts alone (``retrieval.lens``).
            ignore: aspects of the dictionary that then do not count.
            bridge: whether pictures and rows are read into words (``retrieval.bridge``): ``auto``, where they stand
                together with texts and there is a dictionary; ``words``, always, and worded by the assistant, if there
                is one; ``composer``, where they stand together with texts, the composer makes one joint vector of all
                that is wanted, and nothing is imagined for it; or ``none``.

        Raises:
            UserError: k, λ, the depth or the number of images is out of range (code ``out-of-range``); the mode, fuse
                or rerank is unknown (``unknown``); a text is ``blank`` or ``too-long``, a row is not in the index
                (``missing``), there is no assistant to rerank by (``no-assistant``) or no text to judge by
                (``no-words``), or as ``check_evidence``, ``summed``, ``lens`` and ``bridges``. The field is the
                argument.
        """
        _check_one_of("mode", mode, tuple(_WEIGHTS))
        _check_one_of("fuse", fuse, get_args(Fuse))
        _check_one_of("rerank", rerank, get_args(Rerank))
        given = self.weight if weight is None else weight
        of_mode = _WEIGHTS[mode]
        weight = float(check_weight(given if of_mode is None else of_mode))
        checked_k(k)  # before imagining, which takes its time
        checked_depth(depth)
        check_evidence(evidence)
        glass = lens(self.dictionary, focus, ignore)
        evidence, reading, brings_EG, spent = self._bridged(evidence, bridge, seed)
        judging = None
        if rerank == "judge" or rerank == "list":
            from retrieval.assistant.found import Judging  # its HTTP client is for those alone who ask an assistant

            judging = Judging.of(self.assistant, rerank, evidence)
        known = self._known(evidence, images if weight > 0 else None, seed)
        texts_E = np.array([isinstance(piece, Text) for piece in evidence])
        nearest_E = np.isin(np.arange(len(evidence)), known.nearest)
        encoded, *alone = (
            through(one, texts_E, nearest_E, self.dictionary, self.means, glass)
            for one in (known.encoded, *(image_by_image(known.encoded, known.images) if fuse != "mean" else ()))
        )
        pooled_1D, weight = compiled(encoded, weight)
        further = rerank != "none" or (fuse == "rrf" and alone)
        hits = self._hits(joint_queries(encoded, alone, fuse, weight), max(k, depth) if further else k)
        places = _places(hits)
        ranking = one_ranking(_lists(hits), fuse, weight, max(k, depth))
        if rerank == "neighbours":
            joint_MD = self._joint(places, ranking[:depth])
            ranking = put_in_order(ranking, neighbours(pooled_1D[0], weight, joint_MD, self.encoder.vlm.dim))
        reranked: str | None = None if rerank == "none" else rerank
        shortfalls = [known.degraded, reading.shortfall if reading else None]
        if judging:
            rows = [self._row(*places[one.id]) for one in ranking[: min(depth, judging.assistant.depth)]]
            found = judging.reranked(rows, self.index.manifest.sources)
            reranked, spent = rerank if found.order else None, spent + found.spent if spent else found.spent
            shortfalls.append(found.shortfall)
            ranking = [ranking[place]._replace(rerank_score=share) for place, share in found.places(len(ranking))]
        ranking = ranking[:k]
        joint_kD = self._joint(places, ranking)
        brought = ranking_shares(encoded, alone, fuse, weight, joint_kD, self.encoder.vlm.dim)
        return Answer(
            [Found(self._row(*places[one.id]), *one[1:]) for one in ranking],
            weight,
            known.imagined,
            "; ".join(filter(None, shortfalls)) or None,
            brought if brings_EG is None else given_shares(brought, brings_EG),
            known.visual if weight else None,
            reranked,
            spent,
            reading,
            refinements(self.dictionary, joint_kD, self.means),
        )

    def _bridged(
        self, given: Sequence[Evidence], bridge: Bridge, seed: int
    ) -> tuple[Sequence[Evidence], Reading | None, NDArray[np.float64] | None, Spent | None]:
        """Read pictures and rows that are wanted into words, or compose them with texts, if that is asked for.

        Returns:
            The evidence to search for; what was read; the share that each given piece has in each piece of it, None if
            it is as given; and what an assistant was asked to word it.
        """
        spent: Spent | None = None
        texts = [piece for piece in given if isinstance(piece, Text)]
        pictures = [piece for piece in given if not isinstance(piece, Text) and piece.weight > 0]
        aspects = self.dictionary.aspects if self.dictionary else None
        wanted = any(text.weight > 0 for text in texts)
        if composes(bridge, composer=self.composer is not None, pictures=bool(pictures), texts=wanted):
            kept_and_made, brings_EG = self._composed(given, pictures, seed)
            return kept_and_made, None, brings_EG, None
        if not bridges(bridge, aspects, pictures=bool(pictures), texts=bool(texts)) or not self.dictionary:
            return given, None, None, None
        _, near_ND = self._nearest_to(pictures, seed)
        vlm_BD1 = self.encoder.text_vectors([text.text for text in texts]) if texts else ()
        said = [Said(text.text, t_D1, text.weight > 0) for text, t_D1 in zip(texts, vlm_BD1, strict=True)]
        reading = read(self.dictionary, near_ND, self.means, said)
        if bridge == "words" and self.assistant:
            from retrieval.assistant.found import reworded

            asked = reworded(self.assistant, texts, [word.value for word in reading.words])
            reading, spent = replace(reading, text=asked.answer or reading.text, shortfall=asked.shortfall), asked.spent
        merged = merging(reading, [isinstance(piece, Text) for piece in given], [piece.weight for piece in given])
        if merged is None:
            return given, None, None, spent
        kept, brings_EG = merged
        text = Text(reading.text, max(piece.weight for piece in given))
        return [text, *(given[n] for n in kept)], reading, brings_EG, spent

    def _composed(
        self, given: Sequence[Evidence], pictures: Sequence[Evidence], seed: int
    ) -> tuple[list[Evidence], NDArray[np.float64]]:
        """Make one piece of all that is wanted; the others remain."""
        assert self.composer
        texts = [piece.text for piece in given if isinstance(piece, Text) and piece.weight > 0]
        encoded, near_ND = self._nearest_to(pictures, seed)
        made = self.composer.compose_encoded(encoded, near_ND, list(self.encoder.text_vectors(texts)))
        weights = [piece.weight for piece in given]
        kept, brings_EG = composing(weights)
        return [Composed(*made, weight=max(weights)), *(given[n] for n in kept)], brings_EG

    def _nearest_to(self, pictures: Sequence[Evidence], seed: int) -> tuple[Encoded, NDArray[np.float16]]:
        """The vectors of pictures and rows, and the rows [c ; d] of the index that are nearest to all of them."""
        encoded = self._known(pictures, None, seed).encoded
        hits = self._hits(compiled(encoded, DEFAULT_WEIGHT)[0], NEIGHBOURS)
        return encoded, self._joint(_places(hits), _lists(hits)[0])

    def rank(self, query_D: NDArray[np.float32], k: int = 10) -> list[Found]:
        """Find the k best images for one joint query [(1 - λ)t ; λv], (D,) or (1, D), of ``fusion.fused_query``.

        Raises:
            UserError: k is out of range, or the query is of other dimensions or not finite.
        """
        hits = self._hits(query_D, k)
        places = _places(hits)
        [ranking] = _lists(hits)
        return [Found(self._row(*places[one.id]), *one[1:]) for one in ranking]

    def _hits(self, query_VD: NDArray[np.float32], k: int) -> Hits:
        return merge_topk([shard.search(query_VD, k) for shard in self.shards], k)

    def _row(self, shard: int, row: int) -> dict[str, Any]:
        rows: pa.Table = self.shards[shard].rows
        return rows.slice(row, 1).to_pylist()[0]

    def _joint(self, places: Mapping[str, tuple[int, int]], ranking: Sequence[Scored]) -> NDArray[np.float16]:
        """[c ; d] of what was found, (N, D)."""
        found = (places[one.id] for one in ranking)
        joint_ND = np.array([self.shards[shard].vectors[row] for shard, row in found], np.float16)
        return joint_ND.reshape(-1, self.encoder.vlm.dim + self.encoder.vision.dim)  # if nothing was found

    def _known(self, evidence: Sequence[Evidence], images: int | None, seed: int) -> _Known:
        """Encode evidence; its texts are imagined as so many images each, or need no visual half."""
        texts = {n: piece.text for n, piece in enumerate(evidence) if isinstance(piece, Text)}
        pictures = {n: piece.cut() for n, piece in enumerate(evidence) if isinstance(piece, Picture)}
        vectors = {n: self._row_vectors(piece.id, n) for n, piece in enumerate(evidence) if isinstance(piece, Row)}
        vectors |= {
            n: (piece.vlm_D1, piece.vision_D2) for n, piece in enumerate(evidence) if isinstance(piece, Composed)
        }
        vlm_BD1 = self.encoder.text_vectors(list(texts.values())) if texts else ()
        imagined: list[Imagined] = []
        if images is not None and texts and self.encoder.generator:
            imagined = self.encoder.imagine(list(texts.values()), images, seed=seed)
        features = dict(zip(texts, self.encoder.image_vectors(imagined), strict=False))
        known = {n: features_KD2 for n, features_KD2 in features.items() if len(features_KD2)}
        nearest = [n for n in texts if n not in known] if images is not None else []
        for n, vlm_D1 in zip(texts, vlm_BD1, strict=True):
            if n in known:
                [vision_D2] = pool(known[n][None], np.ones((1, len(known[n])), bool), self.network)
            elif n in nearest:
                vision_D2 = self._nearest(vlm_D1)
            else:
                vision_D2 = np.zeros(self.encoder.vision.dim, np.float32)
            vectors[n] = vlm_D1, vision_D2
        if pictures:
            vectors |= zip(
                pictures, zip(*self.encoder.picture_vectors(list(pictures.values())), strict=True), strict=True
            )
        reasons = sorted({reason for one in imagined if not len(one.pixels_KHWC) for reason in one.rejected})
        if nearest and not self.encoder.generator:
            reasons = ["there is no generator"]
        degraded = f"no image could be imagined ({', '.join(reasons)})" if nearest else None
        weights_E = np.array([piece.weight for piece in evidence], np.float64)
        vlm, vision = zip(*(vectors[n] for n in range(len(evidence))), strict=True)
        return _Known(Encoded(weights_E, np.stack(vlm), np.stack(vision)), imagined, known, nearest, degraded)

    def _nearest(self, vlm_D1: NDArray[np.float32]) -> NDArray[np.float32]:
        """v of a text without images: of the real images that are nearest to it, float32 (D2,)."""
        nothing_D2 = np.zeros(self.encoder.vision.dim, np.float32)
        hits = self._hits(fused_query(vlm_D1, nothing_D2, 0.0), NEAREST)
        return visual_half(self._joint(_places(hits), _lists(hits)[0])[:, self.encoder.vlm.dim :])

    def _row_vectors(self, id: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        for shard in self.shards:
            if (row := shard.row_of(id)) is not None:
                return halves(shard.vectors[row], shard.vlm_dim)
        raise UserError(
            f"no row of {self.index.uri} has the id {id!r}, or it was removed: give an id that a search has returned",
            code="missing",
            field=f"evidence.{number}.id",
        )


def _check_one_of(field: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{field} is {', '.join(known)}, not {value!r}", code="unknown", field=field)


def _places(hits: Hits) -> dict[str, tuple[int, int]]:
    """The shard and the row in it of each id that was found."""
    found = zip(hits.shards.ravel().tolist(), hits.rows.ravel().tolist(), strict=True)
    return dict(zip(hits.ids.ravel().tolist(), found, strict=True))


def _lists(hits: Hits) -> list[list[Scored]]:
    """The rows of each query, best first."""
    of_queries = zip(*(c.tolist() for c in (hits.ids, hits.scores, hits.text_part, hits.visual_part)), strict=True)
    return [[Scored(*row) for row in zip(*columns, strict=True)] for columns in of_queries]
