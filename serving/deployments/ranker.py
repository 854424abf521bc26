"""The ranker: compiles evidence to a joint query, asks every shard; and switches versions.

An index version never changes. A call names the version it wants, or takes the current one and is told which it was, so
that one answer is ranked wholly by one version, even while the current one changes.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cachetools import LRUCache
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.profile import Profile
from retrieval.artifacts import Index, QuerySet, Role, TrainedAggregator, TrainedComposer
from retrieval.artifacts.compatibility import check_made_by, check_same_models
from retrieval.bridge import Reading, Said, read, refinements
from retrieval.errors import DamagedError, UserError
from retrieval.evidence import Encoded, compiled, halves
from retrieval.fusion import DEFAULT_WEIGHT, fused_query
from retrieval.lens import lens, through
from retrieval.means import Means
from retrieval.nearest import NEAREST, visual_half
from retrieval.rankings import Scored, image_by_image, joint_queries, one_ranking, ranking_shares
from retrieval.second_stage import neighbours, put_in_order
from serving.deployments.calls import Deadline, Unavailable, bounded, call
from serving.deployments.local_shards import LocalShards
from serving.deployments.merging import Found, ranked
from serving.deployments.messages import (
    AS_EVER,
    SHARE_OF_SHARDS,
    START_SECONDS,
    Model,
    Piece,
    Question,
    Ranking,
    Row,
    RowPiece,
    Served,
    Way,
)
from serving.deployments.pointer import Pointed
from serving.deployments.remote_shards import RemoteShards
from serving.deployments.shards import KEPT_VERSIONS

ASK_SECONDS = 30
"""How long the pointer to the index may take to answer; it does nothing else."""
LONGEST_PAUSE = 300
"""Seconds between attempts to open a version that cannot be opened: each may read all its files for their checksums."""
BEFORE = 0.5
"""Of the time that is left for shards, what one call before the search may take: one that hangs costs no more."""
AFTER = 0.1
"""Of all that time, what a call after the search has at least: it asks only shards that have answered."""
log = logging.getLogger("ray.serve")


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A question as the shards are asked, by one joint query or several (``rankings.joint_queries``).

    Attributes:
        encoded: its evidence, with pooled images.
        alone: the evidence image by image, if the images are not pooled.
        pooled_D: the joint query of ``encoded``.
        weight: λ.
        attention: the share of each image of the first piece.
    """

    index: Index
    encoded: Encoded
    alone: list[Encoded]
    pooled_D: np.ndarray
    queries_VD: np.ndarray
    weight: float
    way: Way
    attention: list[float | None]


@serve.deployment
class Ranker:
    """Ranks by shards and aggregator. A background task of each replica follows the pointer to the index."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        profile: Profile,
        pointer: DeploymentHandle,
        aggregator: str | None,
        encoders: dict[Role, DeploymentHandle],
        shards: Sequence[DeploymentHandle] | None,
        words: str | None = None,
        composer: str | None = None,
    ) -> None:
        """Without deployments of ``shards``, each replica opens them itself; ``words`` is a dictionary's query set."""
        from retrieval.query import pool  # by replicas alone: see encoders.py
        from retrieval.words import NEIGHBOURS, Dictionary

        self._pool = pool
        self._weight = DEFAULT_WEIGHT
        self._settings = profile.serve
        self._pointer = pointer
        self._shards = LocalShards() if shards is None else RemoteShards(shards)
        self._network = None
        self._versions: LRUCache[str, Index] = LRUCache(KEPT_VERSIONS)
        self._pointed: Pointed = await call("the pointer to the index", pointer.read, seconds=START_SECONDS)
        self._current = await asyncio.to_thread(Index.open, self._pointed.index)
        if aggregator:
            trained = TrainedAggregator.open(aggregator)
            trained.check_fits(self._current)
            self._network, self._weight = trained.network(), trained.manifest.weight
        self._dictionary, self._neighbours = None, NEIGHBOURS
        if words:
            queries = QuerySet.open(words)
            check_same_models(queries, self._current, ["vlm", "vision"])
            self._dictionary = Dictionary.of(queries, self._network)
        self._composer, self._composer_uri = None, composer
        if composer:
            composing = TrainedComposer.open(composer)
            check_same_models(self._current, composing, ("vlm", "vision"))
            self._composer = composing.network()
        for role, encoder in encoders.items():
            model: Model = await call(f"the {role} model", encoder.model, seconds=START_SECONDS)
            check_made_by(self._current, role, model.record.uri, model.record.fingerprint)
        await self._shards.start(self._current.uri)
        self._switching = asyncio.Lock()
        self._watch = asyncio.create_task(self._follow_for_ever())

    async def rank(
        self,
        pieces: Sequence[Piece | RowPiece],
        weight: float,
        k: int,
        version: str | None,
        seconds: float,
        way: Way = AS_EVER,
    ) -> Ranking:
        """Rank the gallery for one query; arguments are those of a ``Question``.

        Raises:
            Unavailable: no shard answered, or none that has a row of the evidence.
            UserError: the evidence is at fault.
        """
        [ranking] = await self.rank_each([Question(pieces, weight, k, version, seconds, way)])
        if isinstance(ranking, Exception):
            raise ranking
        return ranking

    async def rank_each(self, questions: Sequence[Question]) -> list[Ranking | Unavailable | UserError]:
        """Rank the gallery for each question. Those that ask alike are searched for together: scores are exact, so that
        company changes none. One that has less time than a shard may take is searched for alone.

        The answer to evidence that cancels out, or names a row that the index lacks, is a ``UserError``.
        """
        alike: dict[tuple[str, int, float], list[int]] = {}
        for place, question in enumerate(questions):
            bound = min(self._settings.shard_timeout_ms / 1000, SHARE_OF_SHARDS * question.seconds)
            alike.setdefault((question.version or self._current.uri, question.deep, bound), []).append(place)
        rankings: list[Ranking | Unavailable | UserError] = [Unavailable("the ranker", "failed") for _ in questions]

        async def rank(places: list[int], version: str, k: int, seconds: float) -> None:
            deadline = Deadline(seconds)
            try:
                index = await bounded("the ranker", self._version(version), seconds=seconds)
                asked = [questions[place] for place in places]
                given = await self._rows(asked, index, deadline)
                asked = await self._with_nearest(asked, index, deadline)
                prepared = {}
                for place, question, rows in zip(places, asked, given, strict=True):
                    one = rows if isinstance(rows, Exception) else self._prepared(question, rows, index)
                    if isinstance(one, _Prepared):
                        prepared[place] = one
                    else:
                        rankings[place] = one
                if prepared:
                    queries = np.concatenate([one.queries_VD for one in prepared.values()])
                    found = iter(await self._shards.search_each(index.uri, queries, k, seconds=deadline.left))
                    after = Deadline(max(deadline.left, AFTER * seconds))
                    made = [
                        self._ranking(one, [next(found) for _ in one.queries_VD], questions[place].k, k, after)
                        for place, one in prepared.items()
                    ]
                    rankings_of = await asyncio.gather(*made)
                    for place, ranking in zip(prepared, rankings_of, strict=True):
                        rankings[place] = ranking
            except Unavailable as error:
                for place in places:
                    rankings[place] = error
            except Exception:  # of these questions alone
                log.exception("the ranker failed")

        await asyncio.gather(*(rank(places, *asked) for asked, places in alike.items()))
        return rankings

    async def _rows(
        self, questions: Sequence[Question], index: Index, deadline: Deadline
    ) -> list[dict[str, np.ndarray] | UserError | Unavailable]:
        """For each question the joint rows [c ; d], float16 (D,), that its evidence names; or why one is not there."""
        named = [[piece for piece in question.pieces if isinstance(piece, RowPiece)] for question in questions]
        ids = list({piece.id for pieces in named for piece in pieces})
        if not ids:
            return [{} for _ in questions]
        rows = await self._shards.vectors(index.uri, ids, seconds=BEFORE * deadline.left)
        there = {id: row_D for id, row_D, found in zip(ids, rows.joint_ND, rows.found_N, strict=True) if found}
        answers: list[dict[str, np.ndarray] | UserError | Unavailable] = []
        for pieces in named:
            missing = next((piece for piece in pieces if piece.id not in there), None)
            if missing is None:
                answers.append({piece.id: there[piece.id] for piece in pieces})
            elif rows.troubles:
                answers.append(rows.troubles[0])
            else:
                answers.append(_no_row(missing))
        return answers

    def _prepared(
        self, question: Question, rows: Mapping[str, np.ndarray], index: Index
    ) -> _Prepared | UserError | Unavailable:
        """A question that can be asked; or what fails of it alone, which is logged unless its client is to blame."""
        try:
            encoded, attention = self._encoded(question, rows, index)
            assert all(np.isfinite(part).all() for part in encoded)
            try:
                images = {n: one.vision for n, one in enumerate(question.pieces) if isinstance(one, Piece)}
                several = {n: vision for n, vision in images.items() if vision is not None and vision.ndim > 1}
                each = image_by_image(encoded, several) if question.way.fuse != "mean" and question.weight else []
                glass = lens(self._dictionary, question.way.focus, question.way.ignore)
                pieces = [piece if isinstance(piece, Piece) else None for piece in question.pieces]
                texts_E, nearest_E = (
                    np.array([bool(piece and getattr(piece, what)) for piece in pieces]) for what in ("text", "nearest")
                )
                encoded, *alone = (
                    through(one, texts_E, nearest_E, self._dictionary, _means(index), glass) for one in (encoded, *each)
                )
                [pooled_D], weight = compiled(encoded, question.weight)
                queries_VD = joint_queries(encoded, alone, question.way.fuse, weight)
            except UserError as error:
                if error.field not in ("evidence", "focus", "ignore"):
                    raise
                return error
            return _Prepared(index, encoded, alone, pooled_D, queries_VD, weight, question.way, attention)
        except Exception:
            log.exception("the ranker failed")
            return Unavailable("the ranker", "failed")

    def _encoded(
        self, question: Question, rows: Mapping[str, np.ndarray], index: Index
    ) -> tuple[Encoded, list[float | None]]:
        """The vectors of all pieces, and the share of each image of the first one in its ν."""
        vlm_dim = index.manifest.models["vlm"].dim or 0
        vlm, vision = [], []
        for piece in question.pieces:
            if isinstance(piece, RowPiece):
                c_D1, d_D2 = halves(rows[piece.id], vlm_dim)
            else:
                c_D1, d_D2 = piece.vlm_D1, self._pooled(piece.vision, index)
            vlm.append(c_D1)
            vision.append(d_D2)
        weights_E = np.array([piece.weight for piece in question.pieces], np.float64)
        first = question.pieces[0]
        attention = self._attention(first.vision) if isinstance(first, Piece) and question.weight else []
        return Encoded(weights_E, np.stack(vlm), np.stack(vision)), attention

    async def _with_nearest(self, questions: Sequence[Question], index: Index, deadline: Deadline) -> list[Question]:
        """The questions with real images for the texts that are to have them in place of imagined ones."""
        texts = [
            piece
            for question in questions
            for piece in (question.pieces if question.weight else ())
            if isinstance(piece, Piece) and piece.nearest
        ]
        if not texts:
            return list(questions)
        nothing_D2 = np.zeros(index.manifest.models["vision"].dim or 0, np.float32)
        queries = np.concatenate([fused_query(text.vlm_D1, nothing_D2, 0.0) for text in texts])
        found = await self._shards.search_each(index.uri, queries, NEAREST, seconds=BEFORE * deadline.left)
        best = [ranked(one.parts, NEAREST, index.manifest.sources) if one.parts else [] for one in found]
        nearest = [row for rows in best for row in rows]
        vectors = await self._vectors(nearest, index, BEFORE * deadline.left)
        vlm_dim = len(texts[0].vlm_D1)
        seen = {}
        for text, rows in zip(texts, best, strict=True):
            there = [vectors[row.id][vlm_dim:] for row in rows if row.id in vectors]
            seen[id(text)] = visual_half(np.stack(there)) if there else nothing_D2

        def with_images(piece: Piece | RowPiece) -> Piece | RowPiece:
            return replace(piece, vision=seen[id(piece)]) if isinstance(piece, Piece) and id(piece) in seen else piece

        return [replace(question, pieces=[with_images(piece) for piece in question.pieces]) for question in questions]

    async def _vectors(self, rows: Sequence[Row], index: Index, seconds: float) -> dict[str, np.ndarray]:
        """Joint rows [c ; d], float16 (D,), by id; without those whose shard does not answer a second time."""
        if not rows:
            return {}
        known = {row.id: row.shard for row in rows}
        got = await self._shards.vectors(index.uri, list(known), seconds=seconds, shards=list(known.values()))
        return {id: joint_D for id, joint_D, there in zip(known, got.joint_ND, got.found_N, strict=True) if there}

    async def _ranking(
        self, prepared: _Prepared, found: Sequence[Found], k: int, deep: int, deadline: Deadline
    ) -> Ranking | Unavailable:
        """What the shards found as an answer; with the share of each piece of evidence in it, if there are several."""
        index, way = prepared.index, prepared.way
        if not all(one.parts for one in found):
            troubles = [trouble for one in found for trouble in one.troubles]
            return Unavailable("every shard of the index", troubles[0].trouble if troubles else "down")
        lists = [ranked(one.parts, deep, index.manifest.sources) for one in found]
        rows, reranked = lists[0], None
        if len(lists) > 1 or way.rerank == "neighbours":
            by_id = {row.id: row for of_query in lists for row in of_query}
            scored = [[_scored(row) for row in of_query] for of_query in lists]
            ranking = one_ranking(scored, way.fuse, prepared.weight, deep)
            if way.rerank == "neighbours":
                first = [by_id[one.id] for one in ranking[: way.depth]]
                # Half of the time is left for the shares.
                if vectors := await self._vectors(first, index, BEFORE * deadline.left):
                    ranking = await self._by_neighbours(ranking, vectors, prepared)
                    reranked = way.rerank
            rows = [replace(by_id[one.id], **one._asdict()) for one in ranking]
        rows, several, words = rows[:k], len(prepared.encoded.weights_E) > 1, list[str]()
        if several or (way.refine and self._dictionary):
            vectors = await self._vectors(rows, index, deadline.left)
            words = self._refinements(vectors, index) if way.refine else []
            rows = self._with_shares(rows, vectors, prepared) if several else rows
        return Ranking(
            rows,
            prepared.weight,
            index.uri,
            index.version,
            answered=min(one.answered for one in found),
            total=len(index.manifest.shards),
            attention=prepared.attention,
            reranked=reranked,
            refinements=words,
        )

    async def read(
        self, pictures: Sequence[Piece | RowPiece], texts: Sequence[Said], version: str | None, seconds: float
    ) -> tuple[Reading, str]:
        """Return what pictures and rows that are wanted are in words, with the changes that texts make; and by which
        version of the index.

        Raises:
            Unavailable: no shard answered, or none that has a row.
            UserError: a row is not in the index, or pictures cancel out.
        """
        assert self._dictionary
        near_ND, index = await self._near(pictures, version, Deadline(seconds))
        return read(self._dictionary, near_ND, _means(index), texts), index.uri

    async def compose(
        self,
        pictures: Sequence[Piece | RowPiece],
        texts: Sequence[np.ndarray],
        weight: float,
        version: str | None,
        seconds: float,
    ) -> tuple[Piece, str]:
        """Return what pictures and rows that are wanted become by texts, as a piece of this weight; and by which
        version of the index.

        Args:
            texts: their vectors t, float32 (D1,).

        Raises:
            Unavailable, UserError: as of ``read``.
        """
        assert self._composer
        deadline = Deadline(seconds)
        near_ND, index = await self._near(pictures, version, deadline)
        question = Question(pictures, DEFAULT_WEIGHT, 1, index.uri, deadline.left)
        [rows] = await self._rows([question], index, deadline)
        if isinstance(rows, Exception):
            raise rows
        encoded, _ = self._encoded(question, rows, index)
        made = await asyncio.to_thread(self._composer.compose_encoded, encoded, near_ND, texts)
        return Piece(weight, *made), index.uri

    async def _near(
        self, pictures: Sequence[Piece | RowPiece], version: str | None, deadline: Deadline
    ) -> tuple[np.ndarray, Index]:
        """Rows [c ; d] of the gallery that are nearest to pictures, float16; and of which version."""
        near = await self.rank(pictures, DEFAULT_WEIGHT, self._neighbours, version, deadline.left)
        index = await bounded("the ranker", self._version(near.version), seconds=deadline.left)
        vectors = await self._vectors(near.rows, index, deadline.left)
        if not vectors:
            raise Unavailable("every shard of the index", "down")
        return np.stack(list(vectors.values())), index

    async def refinements(self, rows: Sequence[Row], version: str, seconds: float) -> list[str]:
        """Return the words that split rows best (``retrieval.bridge.refinements``), as far as shards answer; none
        without a dictionary.
        """
        deadline = Deadline(seconds)
        index = await bounded("the ranker", self._version(version), seconds=seconds)
        vectors = await self._vectors(rows, index, deadline.left)
        return self._refinements(vectors, index)

    def _refinements(self, vectors: Mapping[str, np.ndarray], index: Index) -> list[str]:
        joint_ND = np.stack(list(vectors.values())) if vectors else np.empty((0, 0), np.float16)
        return [word.text for word in refinements(self._dictionary, joint_ND, _means(index))]

    async def _by_neighbours(
        self, ranking: Sequence[Scored], vectors: Mapping[str, np.ndarray], prepared: _Prepared
    ) -> list[Scored]:
        """The ranking after the second stage. Candidates whose shard did not answer a second time come after those
        that were ranked again.
        """
        depth, vlm_dim = prepared.way.depth, prepared.index.manifest.models["vlm"].dim or 0
        there = [one for one in ranking[:depth] if one.id in vectors]
        rest = [one for one in ranking[:depth] if one.id not in vectors]
        joint_MD = np.stack([vectors[one.id] for one in there])
        scores_M = await asyncio.to_thread(neighbours, prepared.pooled_D, prepared.weight, joint_MD, vlm_dim)
        return put_in_order([*there, *rest, *ranking[depth:]], scores_M)

    def _with_shares(self, rows: list[Row], vectors: Mapping[str, np.ndarray], prepared: _Prepared) -> list[Row]:
        """Rows with their shares. Of one whose shard does not answer a second time they stay empty."""
        if not vectors:
            return rows
        joint_ND = np.stack([vectors[row.id] for row in rows if row.id in vectors])
        vlm_dim = prepared.index.manifest.models["vlm"].dim or 0
        way, weight = prepared.way, prepared.weight
        of_rows = iter(ranking_shares(prepared.encoded, prepared.alone, way.fuse, weight, joint_ND, vlm_dim))
        return [replace(row, shares=next(of_rows)) if row.id in vectors else row for row in rows]

    async def path(self, id: str, version: str | None = None, shard: int | None = None) -> tuple[str, str] | None:
        """Return the path of the row of that id, and what it is relative to; None if there is none.

        Args:
            version: URI of the index version; by default the current one.
            shard: where the row lies, if that is known; the others are asked if it is not there.

        Raises:
            Unavailable: a shard that may have the row did not answer.
        """
        index = await self._version(version)
        seconds = self._settings.shard_timeout_ms / 1000
        found = await self._shards.path(index.uri, id, seconds=seconds, shard=shard)
        if found is None:
            return None
        path, batch = found
        return path, index.manifest.sources[batch]

    async def served(self) -> Served:
        manifest = self._current.manifest
        models: dict[str, str] = {role: record.uri for role, record in manifest.models.items()}
        return Served(
            self._current.uri,
            self._current.version,
            manifest.gallery,
            rows=manifest.rows,
            shards=len(manifest.shards),
            models=models,
            weight=self._weight,
            aspects=self._dictionary.aspects if self._dictionary else None,
            composer=self._composer_uri,
        )

    async def switch(self, index: str) -> Served:
        """Serve another index, or one version of it, from now on, and point the other replicas to it.

        Raises:
            UserError: there is none at that URI, a file of it is damaged, or other models made it.
        """
        wanted = await asyncio.to_thread(_open, index)
        async with self._switching:
            await self._open_everywhere(wanted)
            self._pointed = await self._ask_pointer("switch", index, self._pointed.revision)
            self._serve(wanted)
        return await self.served()

    async def follow(self) -> None:
        """Read the pointer now, and switch to the version that it names."""
        async with self._switching:  # until the end, or a switch meanwhile would be taken back
            pointed: Pointed = await self._ask_pointer("remind", self._pointed)
            index = await asyncio.to_thread(Index.open, pointed.index)
            if index.uri != self._current.uri:
                await self._open_everywhere(index)
                self._serve(index)
            self._pointed = pointed

    async def check_health(self) -> None:
        """Pool and fuse as requests do, and search the shards that are in this process."""
        dims = [self._current.manifest.models[role].dim or 1 for role in ("vlm", "vision")]
        vlm_D1, vision_D2 = (np.full(dim, dim**-0.5, np.float32) for dim in dims)
        visual_D2 = self._pooled(vision_D2[None], self._current)
        if not np.isfinite(fused_query(vlm_D1, visual_D2, 0.5)).all():
            raise RuntimeError("the aggregator makes vectors that are not finite")
        if self._watch.done():
            raise RuntimeError("the task that follows the pointer to the index has ended")
        await self._shards.check_health()

    async def _follow_for_ever(self) -> None:
        shortest = pause = self._settings.watch_seconds
        while True:
            await asyncio.sleep(pause)
            before, pause = pause, shortest
            try:
                await self.follow()
            except (UserError, OSError, Unavailable) as error:  # a pointer or a file system may be away for a while
                log.warning("cannot switch to another index version, still serving %s: %s", self._current.uri, error)
                pause = max(shortest, min(2 * before, LONGEST_PAUSE))
            except Exception:
                log.exception("cannot switch to another index version, still serving %s", self._current.uri)

    async def _ask_pointer(self, method: str, *arguments: Any) -> Pointed:
        return await call("the pointer to the index", getattr(self._pointer, method), *arguments, seconds=ASK_SECONDS)

    def _serve(self, index: Index) -> None:
        self._versions[self._current.uri] = self._current
        log.info("serving index version %s, after %s", index.uri, self._current.uri)
        self._current = index

    def _check_models(self, index: Index) -> None:
        try:
            check_same_models(index, self._current, ["vlm", "vision"])
        except UserError as error:  # it names places of this machine
            log.warning("%s", error)
            raise UserError(
                "that index was made by other models than this service runs: index the gallery with this service's"
                " profile, or start a service with the index's profile",
                code="other-model",
                field="index",
            ) from error

    async def _open_everywhere(self, index: Index) -> None:
        """Have the shards, and every replica of them, open a version that fits what is served."""
        self._check_models(index)
        try:
            await self._shards.open(index.uri)
        except UserError as error:  # it may name a local copy of the file
            log.warning("%s", error)
            raise DamagedError(
                f"a file of index version {index.version} is damaged or missing; the service's log names it",
                field="index",
            ) from error

    async def _version(self, uri: str | None) -> Index:
        if uri is None or uri == self._current.uri:
            return self._current
        if uri not in self._versions:  # another replica of the ranker is ahead of this one, or behind
            self._versions[uri] = await asyncio.to_thread(Index.open, uri)
        return self._versions[uri]

    def _pooled(self, vision: np.ndarray | None, index: Index) -> np.ndarray:
        """ν of a piece of evidence, float32 (D2,); zero if it has none."""
        if vision is None:
            return np.zeros(index.manifest.models["vision"].dim or 0, np.float32)
        if vision.ndim == 1:
            return vision
        [visual_D2] = self._pool(vision[None], np.ones((1, len(vision)), bool), self._network)
        return visual_D2

    def _attention(self, vision: np.ndarray | None) -> list[float | None]:
        """The share of each imagined image in ν, None where the class row takes all the attention."""
        if vision is None or vision.ndim == 1:
            return []
        if self._network is None:
            return [1 / len(vision)] * len(vision)
        import torch  # by replicas alone

        with torch.inference_mode():
            [attention_K] = self._network.attention(torch.from_numpy(vision[None]))
        return [share if math.isfinite(share) else None for share in attention_K.tolist()]


def _means(index: Index) -> Means | None:
    mean = index.mean()
    return Means(*mean) if mean else None


def _scored(row: Row) -> Scored:
    return Scored(row.id, row.score, row.text_part, row.visual_part)


def _no_row(piece: RowPiece) -> UserError:
    return UserError(
        f"the index has no row {piece.id!r}, or it was removed: give an id that a search has returned",
        code="missing",
        field=piece.field,
    )


def _open(index: str) -> Index:
    """Open the index that a client named."""
    try:
        return Index.open(index)
    except UserError:
        raise
    except ValueError as error:  # of the library that reads such a URI
        log.warning("%s: %s", index, error)
        raise UserError(
            "the index cannot be opened: give a local path, or a URI such as s3://bucket/index",
            code="bad-uri",
            field="index",
        ) from error
