"""The graph's answers against those of the plain pipeline in one process, to the bit; real deployments, tiny models."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from errors import refused
from PIL import Image
from serving_graph import local, local_service
from tiny_artifacts import Collection, write_index

from cluster.loading import record_of
from cluster.profile import Profile
from demo.world import split
from retrieval.aggregator import Aggregator
from retrieval.artifacts import Index, TrainedAggregator
from retrieval.errors import UserError
from retrieval.evidence import Evidence, Picture, Row, Text
from retrieval.finder import Answer, Finder
from retrieval.fusion import fused_query, unit
from retrieval.images import ImageRejected
from retrieval.index.hits import merge_topk
from retrieval.query import QueryEncoder
from serving.deployments.calls import Unavailable, call
from serving.deployments.encoders import VLMTowers
from serving.deployments.generator import ImaginingGenerator
from serving.deployments.local_shards import LocalShards
from serving.deployments.merging import row_vectors
from serving.deployments.messages import Piece, Question
from serving.deployments.pointer import Pointer
from serving.deployments.ranker import Ranker
from serving.deployments.remote_shards import RemoteShards
from serving.deployments.shards import IndexShard, Opened
from serving.ingress import Service
from serving.memory.local import MemoryStore
from serving.pictures import GalleryPictures
from serving.protocol import SearchAnswer, SearchRequest
from serving.search import Search

COLOURS = ("red", "blue", "green", "yellow", "pink", "purple", "teal", "orange")
THINGS = ("star", "house", "fish", "moon", "bolt")
WORDS = ("", "striped ", "dotted ", "small ", "checkered ")
QUERIES = [f"{colour} {word}{thing}" for colour, word, thing in itertools.product(COLOURS, WORDS, THINGS)]
SECONDS = 30.0


@pytest.fixture(scope="module", params=["shards in the ranker", "shards as deployments"])
def service(request: pytest.FixtureRequest, collection: Collection, profile: Profile) -> Service:
    """As that of all tests, with the two shards in either place; and texts are encoded one by one (``OneByOne``)."""
    place = {"local_index_bytes": 2**20 if "ranker" in request.param else 0}
    settings = profile.serve.model_copy(update={**place, "vlm": profile.serve.vlm.model_copy(update={"batch": 1})})
    both = profile.model_copy(update={"serve": settings})
    service = local_service(target=str(collection.folder), profile=both, store="memory:")
    assert service.shards == (0 if "ranker" in request.param else 2)
    return service


@pytest.fixture(scope="module")
def finder(query_encoder: QueryEncoder, collection: Collection) -> Finder:
    return Finder(query_encoder, collection.index)


@pytest.fixture(scope="module")
def with_shards(tmp_path_factory: pytest.TempPathFactory, collection: Collection) -> Callable[[int], Index]:
    """The collection's rows in an index of so many shards."""

    def index(shards: int) -> Index:
        folder = tmp_path_factory.mktemp("index")
        [table] = collection.gallery.tables(["id", "path", "label", "width", "height", "batch"])
        return write_index(folder, collection.gallery, table, collection.vlm_ND1, collection.vision_ND2, shards=shards)

    return index


def run(test: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(test)


async def warmed(service: Service) -> Search:
    search = service.search()
    await search.warm_up()
    return search


class OneByOne:
    """A ``QueryEncoder`` that batches nothing: batches of other sizes round differently in their last bits."""

    def __init__(self, encoder: QueryEncoder) -> None:
        self._encoder = encoder
        self.vlm, self.vision, self.batch = encoder.vlm, encoder.vision, encoder.batch
        self.generator = encoder.generator

    def text_vectors(self, texts: Sequence[str]) -> np.ndarray:
        return np.concatenate([self._encoder.text_vectors([text]) for text in texts])

    def imagine(self, texts: Sequence[str], images: int, *, seed: int) -> list[Any]:
        return [self._encoder.imagine([text], images, seed=seed)[0] for text in texts]

    def image_vectors(self, imagined: Sequence[Any]) -> list[np.ndarray]:
        return [self._encoder.image_vectors([one])[0] for one in imagined]

    def picture_vectors(self, pictures: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        vlm, vision = zip(*(self._encoder.picture_vectors([picture]) for picture in pictures), strict=True)
        return np.concatenate(vlm), np.concatenate(vision)


def one_piece(vlm_D1: np.ndarray, vision: np.ndarray | None = None) -> list[Piece]:
    return [Piece(1.0, vlm_D1, vision)]


def as_tuples(answer: SearchAnswer | Answer) -> list[tuple]:
    """Id and scores of each result, unrounded."""
    if isinstance(answer, SearchAnswer):
        return [(found.id, found.score, found.text_part, found.visual_part) for found in answer.results]
    return [(found.row["id"], found.score, found.text_part, found.visual_part) for found in answer.results]


def test_two_hundred_queries_by_text_equal_the_plain_pipeline(service: Service, finder: Finder) -> None:
    assert len(set(QUERIES)) == 200

    async def answers() -> list[SearchAnswer]:
        search = await warmed(service)
        return [await search.answer(SearchRequest(query=query, mode="text", k=7), "") for query in QUERIES]

    for query, answer in zip(QUERIES, run(answers()), strict=True):
        assert as_tuples(answer) == as_tuples(finder.search(query, 7, mode="text")), query
        assert (answer.stage, answer.weight, answer.degraded) == ("text", 0.0, None)


def test_shards_that_share_a_deployment_answer_as_shards_of_their_own(
    collection: Collection, profile: Profile, finder: Finder
) -> None:
    settings = profile.serve.model_copy(update={"local_index_bytes": 0, "shards_per_deployment": 3})
    together = profile.model_copy(update={"serve": settings})
    service = local_service(target=str(collection.folder), profile=together, store="memory:")
    assert service.shards == 1

    async def answers() -> list[SearchAnswer]:
        search = await warmed(service)
        return [await search.answer(SearchRequest(query=query, mode="text", k=24), "") for query in QUERIES[::20]]

    for query, answer in zip(QUERIES[::20], run(answers()), strict=True):
        assert as_tuples(answer) == as_tuples(finder.search(query, 24, mode="text")), query
        assert (answer.shards.answered, answer.shards.total) == (2, 2)


@pytest.mark.parametrize(
    ("mode", "weight"), [("fused", None), ("fused", 0.25), ("visual", None), ("fused", 1.0), ("fused", 0.0)]
)
def test_fused_answers_equal_the_plain_pipeline_made_and_remembered(
    service: Service, finder: Finder, mode: Any, weight: float | None
) -> None:
    async def check() -> None:
        search = await warmed(service)
        for seed, query in enumerate(QUERIES[:40:8]):
            plain = finder.search(query, 24, mode=mode, weight=weight, images=2, seed=seed)
            for memory in ("off", "off") if plain.weight == 0 else ("miss", "hit"):
                request = SearchRequest(query=query, mode=mode, weight=weight, k=24, images=2, seed=seed)
                answer = await search.answer(request, "")
                assert as_tuples(answer) == as_tuples(plain)
                assert (answer.memory, answer.weight, answer.degraded) == (memory, plain.weight, None)
                if plain.imagined:
                    assert [image.seed for image in answer.imagined] == plain.imagined[0].seeds.tolist()
                    assert sum(image.attention or 0 for image in answer.imagined) == pytest.approx(1)

    run(check())


WAYS: list[dict[str, Any]] = [
    {"fuse": "max"},
    {"fuse": "rrf", "depth": 9},
    {"rerank": "neighbours"},
    {"fuse": "rrf", "rerank": "neighbours", "depth": 5, "mode": "visual"},
    {"rerank": "neighbours", "depth": 20, "mode": "text"},
]


def test_all_ways_of_ranking_equal_the_plain_pipeline_with_images_and_without(
    service: Service, query_encoder: QueryEncoder, collection: Collection
) -> None:
    models = query_encoder
    finder = Finder(OneByOne(models), collection.index)  # type: ignore[arg-type]
    unable = QueryEncoder(models.vlm, models.vision, None, templates=models.templates, batch=1)
    bare = Finder(OneByOne(unable), collection.index)  # type: ignore[arg-type]
    without = replace(service, parts=replace(service.parts, generator=None))
    asked = (
        ({"query": QUERIES[3]}, [Text(QUERIES[3])]),
        (
            {"query": QUERIES[3], "evidence": [{"text": QUERIES[9], "weight": -0.4}, {"row": "id-007", "weight": 0.5}]},
            [Text(QUERIES[3]), Text(QUERIES[9], -0.4), Row("id-007", 0.5)],
        ),
    )

    async def check(search: Search, plainly: Finder, degraded: str | None, visual: str) -> None:
        for given, evidence in asked:
            for way in ({}, *WAYS):
                request = SearchRequest.model_validate({**given, **way, "k": 7, "images": 2})
                stages = [answer async for _, answer in search.stages(request, "")]
                answer, plain = stages[-1], plainly.find(evidence, 7, images=2, **way)
                by_rrf = [found.shares for found in answer.results] == [[]] * 7
                assert as_tuples(answer) == as_tuples(plain), (given, way)
                assert [found.rerank_score for found in answer.results] == [found.rerank_score for found in plain]
                assert len(evidence) == 1 or by_rrf or [found.shares for found in answer.results] == plain.shares
                assert (answer.reranked, answer.weight) == (plain.reranked, plain.weight)
                assert answer.visual == plain.visual == (None if way.get("mode") == "text" else visual)
                assert answer.degraded == (degraded if answer.visual else None)
                assert stages[0].reranked is None or len(stages) == 1

    async def both() -> None:
        await check(await warmed(service), finder, None, "imagined")
        await check(await warmed(without), bare, "this service has no generator", "nearest")

    run(both())


@pytest.mark.parametrize("deployments", [0, 1, 2, 5])
@pytest.mark.parametrize("shards", [1, 2, 5])
def test_any_number_of_shards_gives_the_same_ranking(
    shards: int,
    deployments: int,
    with_shards: Callable[[int], Index],
    profile: Profile,
    query_encoder: QueryEncoder,
    finder: Finder,
) -> None:
    """200 queries with λ all over [0, 1] and random images, in a graph of so many shards, all ties included."""
    index = with_shards(shards)
    pointer = Pointer.bind(index.uri)
    bound = [IndexShard.options(name=f"Shard{i}").bind(i, deployments, pointer) for i in range(deployments)]
    ranker = local(Ranker.bind(profile, pointer, None, {}, bound or None))
    vlm_QD1 = query_encoder.text_vectors(QUERIES)
    vision_QD2 = unit(np.random.default_rng(0).standard_normal((len(QUERIES), query_encoder.vision.dim)))

    async def check() -> None:
        for q, weight in enumerate(np.linspace(0, 1, 200)):
            k = 1 + q % 30
            ranking = await call(
                "", ranker.rank, one_piece(vlm_QD1[q], vision_QD2[q]), float(weight), k, None, SECONDS, seconds=SECONDS
            )
            query = fused_query(vlm_QD1[q], vision_QD2[q], weight)
            plain = merge_topk([shard.search(query, k) for shard in finder.shards], k)
            assert [row.id for row in ranking.rows] == plain.ids[0].tolist()
            assert [row.score for row in ranking.rows] == plain.scores[0].tolist()
            assert [row.text_part for row in ranking.rows] == plain.text_part[0].tolist()
            assert (ranking.answered, ranking.total) == (shards, shards)

    run(check())


def test_questions_that_are_asked_together_are_ranked_as_if_alone(
    service: Service, query_encoder: QueryEncoder, collection: Collection, serve_log: pytest.LogCaptureFixture
) -> None:
    ranker = service.parts.ranker
    texts_QD1 = query_encoder.text_vectors(QUERIES[:6])
    images_KD2 = collection.vision_ND2[:3].astype(np.float32)
    questions = [
        Question(
            one_piece(text_D1, images_KD2 if i % 2 else None), 0.5 * (i % 2), 5 + i // 4, None, SECONDS if i else 1.0
        )
        for i, text_D1 in enumerate(texts_QD1)
    ]
    wrong = [
        replace(questions[0], version="/nowhere/index/000001"),
        replace(questions[0], pieces=one_piece(texts_QD1[0] * np.nan)),
    ]

    async def check() -> None:
        together = await call("", ranker.rank_each, [*wrong, *questions], seconds=SECONDS)
        assert [(str(error), error.trouble) for error in together[:2]] == [("the ranker failed", "failed")] * 2
        for question, ranking in zip(questions, together[2:], strict=True):
            [alone] = await call("", ranker.rank_each, [question], seconds=SECONDS)
            assert ranking == alone

    run(check())
    assert "the ranker failed" in serve_log.text


def test_a_version_that_takes_long_to_open_keeps_nobody_else_waiting(
    service: Service, query_encoder: QueryEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker, opens = service.parts.ranker, threading.Event()
    monkeypatch.setattr(Index, "open", lambda _: opens.wait(60))
    question = Question(one_piece(query_encoder.text_vectors(QUERIES[:1])[0]), 0.0, 5, None, SECONDS)
    hangs = replace(question, version="/hangs/index/000001", seconds=0.5)

    async def check() -> None:
        late, ranking = await call("", ranker.rank_each, [hangs, question], seconds=10.0)
        assert (late.part, late.trouble) == ("the ranker", "late")
        assert len(ranking.rows) == 5

    try:
        run(check())
    finally:
        opens.set()


def test_what_fails_of_those_that_ask_alike_is_theirs_alone(
    service: Service, query_encoder: QueryEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    place: Any = RemoteShards if service.shards else LocalShards
    search_each = place.search_each

    def failing(shards: Any, version: str, query_QD: np.ndarray, k: int, *, seconds: float) -> Any:
        if k == 3:
            raise RuntimeError("a fault")
        return search_each(shards, version, query_QD, k, seconds=seconds)

    monkeypatch.setattr(place, "search_each", failing)
    question = Question(one_piece(query_encoder.text_vectors(QUERIES[:1])[0]), 0.0, 5, None, SECONDS)

    async def check() -> None:
        first, ranking = await call(
            "", service.parts.ranker.rank_each, [replace(question, k=3), question], seconds=SECONDS
        )
        assert (first.part, first.trouble) == ("the ranker", "failed")
        assert len(ranking.rows) == 5

    run(check())


def test_the_shard_that_an_answer_names_is_asked_alone_for_a_picture_and_the_others_if_it_is_wrong(
    with_shards: Callable[[int], Index], profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, deployments = 5, 3
    index = with_shards(shards)
    pointer = Pointer.bind(index.uri)
    bound = [IndexShard.options(name=f"Shard{i}").bind(i, deployments, pointer) for i in range(deployments)]
    ranker = local(Ranker.bind(profile, pointer, None, {}, bound))
    asked: list[str] = []
    sound = Opened.path

    def noting(opened: Opened, id: str) -> Any:
        asked.append(id)
        return sound(opened, id)

    monkeypatch.setattr(Opened, "path", noting)
    [vlm_D1] = np.eye(1, index.manifest.models["vlm"].dim, dtype=np.float32)

    async def path(id: str, shard: int | None) -> tuple[Any, int]:
        del asked[:]
        return await call("", ranker.path, id, None, shard, seconds=SECONDS), len(asked)

    async def check() -> None:
        ranking = await call("", ranker.rank, one_piece(vlm_D1), 0.0, 24, None, SECONDS, seconds=SECONDS)
        assert {row.shard for row in ranking.rows} == set(range(shards))
        for row in ranking.rows:
            assert row.id in index.live_rows(row.shard, ["id"])["id"].to_pylist()
            place = row.path, row.source
            assert await path(row.id, row.shard) == (place, 1)
            assert await path(row.id, None) == (place, deployments)
            assert await path(row.id, row.shard + 1) == (place, 1 + deployments)
        assert await path("nothing", 10**12) == (None, 1 + deployments)

    run(check())


def test_a_generator_that_the_aggregator_did_not_learn_from_is_refused(
    query_encoder: QueryEncoder, profile: Profile, tmp_path: Path
) -> None:
    other = record_of(query_encoder.generator).model_copy(update={"fingerprint": "sha256:other"})
    models = {"vision": record_of(query_encoder.vision), "generator": other}
    trained = TrainedAggregator.save(tmp_path / "a", Aggregator(query_encoder.vision.dim), models, {})
    with refused("other-model"):
        ImaginingGenerator.func_or_class(profile, None, trained.uri)


def test_the_aggregator_and_its_weight_are_used(
    service: Service, collection: Collection, query_encoder: QueryEncoder, profile_file: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    network = Aggregator(query_encoder.vision.dim)
    with torch.no_grad():
        network.lamda.fill_(-1.0)
        for parameter in network.layers.parameters():
            parameter.normal_(std=0.3)
    trained = TrainedAggregator.save(tmp_path, network.eval(), {"vision": record_of(query_encoder.vision)}, {})
    plain = Finder(query_encoder, collection.index, trained).search("a red star", 24, images=3)
    pointer = Pointer.bind(collection.index.uri)
    bound = [IndexShard.options(name=f"Shard{i}").bind(i, 2, pointer) for i in range(2)]
    ranker = local(Ranker.bind(service.profile, pointer, trained.uri, {}, bound))
    [query] = query_encoder.encode(["a red star"], 3)

    async def rank() -> Any:
        arguments = (one_piece(query.vlm_D1, query.vision_KD2), plain.weight, 24, None, SECONDS)
        return await call("", ranker.rank, *arguments, seconds=SECONDS)

    ranking = run(rank())
    assert [(row.id, row.score) for row in ranking.rows] == [row[:2] for row in as_tuples(plain)]
    assert plain.weight == trained.manifest.weight
    expected = network.attention(torch.from_numpy(query.vision_KD2[None]))[0].tolist()
    assert ranking.attention == pytest.approx(expected)
    assert len(set(np.round(ranking.attention, 4))) > 1


def test_a_picture_is_searched_for_by_both_its_vectors(
    service: Service, finder: Finder, collection: Collection, query_encoder: QueryEncoder
) -> None:
    image = Image.open(collection.folder / "images" / f"{split('unseen')[0].name}/1.png").convert("RGB")
    buffer = BytesIO()
    image.save(buffer, "PNG")
    vlm, vision = (
        encoder.encode_images(encoder.preprocess.pixels(image)[None])
        for encoder in (query_encoder.vlm, query_encoder.vision)
    )

    async def check() -> None:
        search = await warmed(service)
        for mode, weight in (("text", 0.0), ("visual", 1.0), ("fused", 0.5), ("fused", 0.2)):
            given = weight if weight == 0.2 else None
            answer = await search.by_picture(buffer.getvalue(), "", k=5, mode=mode, weight=given)
            plain = merge_topk([shard.search(fused_query(vlm, vision, weight), 5) for shard in finder.shards], 5)
            assert [row[:2] for row in as_tuples(answer)] == list(
                zip(plain.ids[0], plain.scores[0].tolist(), strict=True)
            )
            assert (answer.stage, answer.weight, answer.memory, answer.imagined) == (mode, weight, "off", [])
        assert answer.results[0].path == f"{split('unseen')[0].name}/1.png"
        with pytest.raises(ImageRejected) as rejected:
            await search.by_picture(b"<svg/>", "", k=5)
        assert rejected.value.reason == "format-not-allowed"

    run(check())


def test_evidence_is_answered_as_in_one_process_single_streamed_and_remembered(
    service: Service, collection: Collection, query_encoder: QueryEncoder
) -> None:
    plain = Finder(OneByOne(query_encoder), collection.index)  # type: ignore[arg-type]
    file = collection.folder / "images" / f"{split('unseen')[1].name}/2.png"
    image = Image.open(file).convert("RGB")
    row, other = collection.ids[5], collection.ids[17]
    of_row = collection.folder / "images" / f"{split('unseen')[1].name}/1.png"
    tenths = 0.1, 0.25, 0.9, 1.0
    pixels = 6, 16, 58, 64  # of 64 × 64

    async def check() -> None:
        search = await warmed(service)
        uploaded = await search.upload(file.read_bytes())
        assert (uploaded.upload, 64, 64) == tuple((await search.upload(file.read_bytes())).model_dump().values())
        kept = Image.open(BytesIO(await search.pictures.jpeg(uploaded.upload) or b"")).convert("RGB")
        for text in ("a star", "red", "a fish"):  # imagined one by one
            await search.answer(SearchRequest(query=text, images=2), "")
        star, red = Text("a star"), Text("red", -0.4)
        upload, boxed = {"upload": uploaded.upload}, {"upload": uploaded.upload, "box": tenths}
        cases: list[tuple[str | None, list[dict[str, Any]], list[Evidence]]] = [
            ("a star", [{"text": "red", "weight": -0.4}], [star, red]),
            (None, [{"text": "a star"}], [star]),
            (None, [upload], [Picture(image)]),
            (None, [{"row": row, "weight": 2.0}], [Row(row, 2.0)]),
            (None, [boxed], [Picture(kept, box=pixels)]),
            (None, [{"row": row, "box": tenths}], [Picture(Image.open(of_row).convert("RGB"), box=pixels)]),
            (
                "a star",
                [
                    {"row": row},
                    {"text": "red", "weight": -0.4},
                    {**upload, "weight": 0.7},
                    {"row": other, "weight": -1},
                ],
                [star, Row(row), red, Picture(image, 0.7), Row(other, -1)],
            ),
            ("a fish", [{**boxed, "weight": -0.3}], [Text("a fish"), Picture(kept, -0.3, pixels)]),
        ]
        for query, given, evidence in cases:
            texts = any(isinstance(piece, Text) for piece in evidence)
            for options in ({}, {"weight": 0.3}, {"mode": "visual"}, {"mode": "text"}):
                request = SearchRequest.model_validate(
                    {"query": query, "evidence": given, "k": 9, "images": 2, **options}
                )
                expected = plain.find(evidence, 9, images=2, **options)  # type: ignore[arg-type]
                answer = await search.answer(request, "")
                stages = [stage async for stage in search.stages(request, "")]
                for one in (answer, stages[-1][1]):
                    assert isinstance(one, SearchAnswer)
                    assert as_tuples(one) == as_tuples(expected), (given, options)
                    shares = expected.shares if len(evidence) > 1 else [[] for _ in expected.results]
                    assert [found.shares for found in one.results] == shares
                    assert (one.weight, one.degraded, one.query) == (expected.weight, None, query or "")
                told = ["text"] * texts + ["imagined"] * bool(query) + ["fused"]
                assert [name for name, _ in stages] == (["text"] if options.get("mode") == "text" else told)
                visual = None if answer.weight == 0 else "imagined" if texts else "given"
                assert (answer.visual, answer.memory) == (visual, "hit" if texts and answer.weight else "off")

    run(check())


def test_texts_of_evidence_are_imagined_at_once_and_remembered_as_they_were(service: Service) -> None:
    async def check() -> None:
        search = await warmed(service)
        evidence = [{"text": "pink"}, {"text": "a bolt", "weight": 0.5}, {"text": "small", "weight": -0.2}]
        request = SearchRequest.model_validate({"evidence": evidence, "images": 2, "seed": 9})
        fresh = [data async for _, data in search.stages(request, "")]
        again = await search.answer(request, "")
        assert [one.memory for one in fresh if isinstance(one, SearchAnswer)] == ["miss", "miss"]
        assert (again.memory, again.results) == ("hit", fresh[-1].results)  # type: ignore[union-attr]
        assert (again.imagined, again.visual, again.stage) == ([], "imagined", "fused")

    run(check())


def test_an_imagined_image_is_evidence_by_its_remembered_vector_and_by_its_picture(
    service: Service, finder: Finder, query_encoder: QueryEncoder
) -> None:
    async def check() -> None:
        search = await warmed(service)
        answer = await search.answer(SearchRequest(query="a teal star", images=2), "")
        name = answer.imagined[1].url.removeprefix("/v1/imagined/")
        key = name.split("/")[0]
        jpeg = await search.memory.remembered_image(key, 1)
        vlm_1D1, from_jpeg_1D2 = query_encoder.picture_vectors([Image.open(BytesIO(jpeg or b"")).convert("RGB")])
        known = await search.memory.recall(key)
        assert known
        request = SearchRequest.model_validate({"evidence": [{"imagined": name}], "k": 9})
        for vision_D2 in (known.vision_KD2[1], from_jpeg_1D2[0]):
            expected = finder.rank(fused_query(vlm_1D1, vision_D2, 0.5), 9)
            again = await search.answer(request, "")
            assert [(found.id, found.score) for found in again.results] == [(row.id, row.score) for row in expected]
            # As an earlier version wrote it, or another vision encoder: its vector is of no use, its picture is.
            search.memory._recent[key] = replace(known, vision_fingerprint="")
            search.pictures._memory._recent.clear()
            search.pictures._memory.store = MemoryStore()

    run(check())


def test_what_is_dropped_of_the_query_is_left_out_of_evidence_too(service: Service) -> None:
    async def check() -> None:
        search = await warmed(service)
        evidence = [{"text": "red", "weight": -0.4}]
        every, without, none = [
            await search.answer(
                SearchRequest.model_validate({"query": "a moon", "evidence": evidence, "images": 2, "drop": drop}), ""
            )
            for drop in ([], [0], [0, 1])
        ]
        assert [image.dropped for image in without.imagined] == [True, False]
        assert without.imagined[1].attention == 1
        assert every.results != without.results
        assert (none.stage, none.visual, none.degraded) == ("text", None, "every imagined image was left out")

    run(check())


def test_rows_have_vectors_by_id_and_those_that_are_not_there_are_marked(
    service: Service, collection: Collection, tmp_path: Path
) -> None:
    index = Index.open(collection.index.uri)
    shards: list[LocalShards | RemoteShards] = [LocalShards()]
    pointer = Pointer.bind(index.uri)
    bound = [IndexShard.options(name=f"Shard{i}").bind(i, 2, pointer) for i in range(2)]
    shards.append(RemoteShards(local(bound)))
    ids = ["id-020", "nothing", "id-003", "", "id-011"]

    async def check() -> None:
        for place in shards:
            for of in (None, [1, 0, 0, 1, 1], [5, 4, 2, 1, 1]):
                rows = await place.vectors(index.uri, ids, seconds=SECONDS, shards=of)
                where = {id: row for shard in index.shards() for row, id in enumerate(shard.rows["id"].to_pylist())}
                assert set(where) >= {"id-020", "id-003", "id-011"}
                assert not rows.troubles
                for id, row_D, found in zip(ids, rows.joint_ND, rows.found_N, strict=True):
                    if not found:
                        assert not row_D.any()
                        assert of is not None or id in ("nothing", "")
                        continue
                    at = collection.ids.index(id)
                    assert np.array_equal(row_D, np.concatenate([collection.vlm_ND1[at], collection.vision_ND2[at]]))

    run(check())


def test_a_row_whose_shard_is_gone_is_no_fault_of_the_client_and_shares_are_left_out_without_it(
    service: Service, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = [{"text": "a star"}, {"row": collection.ids[0]}]
    vectors = Opened.vectors

    def failing(opened: Opened, ids: Sequence[str]) -> Any:
        if len(ids) > fails_above:
            raise RuntimeError("a fault")
        return vectors(opened, ids)

    monkeypatch.setattr(Opened, "vectors", failing)

    async def answer() -> SearchAnswer:
        search = await warmed(service)
        request = SearchRequest.model_validate({"evidence": evidence, "mode": "text", "k": 20})
        return await search.answer(request, "")

    fails_above = 0
    with pytest.raises(Unavailable) as error:
        run(answer())
    assert error.value.trouble == "failed"
    fails_above = 1
    assert [found.shares for found in run(answer()).results] == [[]] * 20


def test_a_shard_that_hangs_costs_neither_what_others_found_nor_what_is_asked_after_them(
    service: Service, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, search_each, vectors = threading.Event(), Opened.search_each, Opened.vectors
    [row] = [id for id in collection.ids[:50] if collection.index.shard(0).row_of(id) is not None][:1]

    def hanging(plain: Any) -> Any:
        def method(opened: Opened, *arguments: Any) -> Any:
            return end.wait(60) if 1 in opened.shards else plain(opened, *arguments)

        return method

    async def answers() -> list[SearchAnswer]:
        search = await warmed(service)
        monkeypatch.setattr(Opened, "search_each", hanging(search_each))
        monkeypatch.setattr(Opened, "vectors", hanging(vectors))
        given = [{"evidence": [{"text": "a star"}, {"row": row}]}, {"query": "a star", "rerank": "neighbours"}]
        requests = [SearchRequest.model_validate({**one, "mode": "text", "deadline_ms": 6000}) for one in given]
        return [await search.answer(request, "") for request in requests]

    try:
        of_evidence, of_text = run(answers())
    finally:
        end.set()
    assert [found.shards.answered for found in (of_evidence, of_text)] == [1, 1]
    assert all(len(found.shares) == 2 for found in of_evidence.results)
    assert (of_text.reranked, len(of_text.results)) == ("neighbours", 10)


def test_a_holder_without_shards_knows_no_vectors() -> None:
    nothing = np.zeros(0, np.int64), np.zeros((0, 0), np.float16)
    rows = row_vectors(2, {0: [0, 1], 1: [0, 1]}, [(np.array([1]), np.ones((1, 4), np.float16)), nothing])
    assert (rows.joint_ND.shape, rows.found_N.tolist()) == ((2, 4), [False, True])


def without_the_first(collection: Collection, folder: Path) -> tuple[Index, list[str]]:
    """An index that lacks the gallery's first row; and the ids of all rows."""
    table = pa.concat_tables(collection.gallery.tables(["id", "path", "label", "width", "height", "batch"]))
    rest = [table.slice(1), collection.vlm_ND1[1:], collection.vision_ND2[1:]]
    return write_index(folder, collection.gallery, *rest), table["id"].to_pylist()


def test_a_row_of_another_version_is_told_to_the_client(
    service: Service, collection: Collection, tmp_path: Path
) -> None:
    other, ids = without_the_first(collection, tmp_path)
    gone = ids[0]

    async def check() -> None:
        search = await warmed(service)
        request = SearchRequest.model_validate({"query": "a star", "evidence": [{"row": gone}], "mode": "text"})
        assert (await search.answer(request, "")).results
        await search.switch(other.uri)
        try:
            for box in (None, (0, 0, 1, 0.5)):
                given = {"evidence": [{"text": "a fish"}, {"row": gone, "box": box}]}
                with refused("missing", "evidence.1.row"):
                    await search.answer(SearchRequest.model_validate(given), "")
        finally:
            await search.switch(str(collection.folder / "index"))

    run(check())


def test_texts_that_are_encoded_together_get_their_own_vectors(profile: Profile, query_encoder: QueryEncoder) -> None:
    vlm = local(VLMTowers.bind(profile))

    async def encode() -> list[Any]:
        return await asyncio.gather(*(call("", vlm.encode_text, text, seconds=SECONDS) for text in QUERIES[:50]))

    for text, encoded in zip(QUERIES, run(encode()), strict=False):
        np.testing.assert_allclose(encoded.vlm_D1, query_encoder.text_vectors([text])[0], atol=2e-6)
        assert encoded.tokens.given == query_encoder.vlm.token_count(f"a photo of a {text}")


def test_queries_that_wait_together_are_imagined_together_and_each_gets_its_own(
    service: Service, query_encoder: QueryEncoder
) -> None:
    asked = [(text, images, seed) for text in QUERIES[:3] for images, seed in ((1, 0), (2, 0), (2, 1))]

    async def imagine() -> list[Any]:
        generator = service.parts.generator
        assert generator
        return await asyncio.gather(*(call("", generator.imagine, *each, seconds=SECONDS) for each in asked))

    for (text, images, seed), imagination in zip(asked, run(imagine()), strict=True):
        [plain] = query_encoder.encode([text], images, seed=seed)
        assert imagination.seeds.tolist() == plain.imagined.seeds.tolist()
        np.testing.assert_allclose(imagination.vision_KD2, plain.vision_KD2, atol=0.02)  # pixels may differ by a level
        assert all(Image.open(BytesIO(data)).format == "JPEG" for data in imagination.thumbnails)


def test_every_deployment_can_tell_that_it_is_well(service: Service) -> None:
    async def check() -> None:
        parts = service.parts
        for handle in (parts.vlm, parts.vision, parts.generator, parts.ranker):
            await handle.check_health.remote()

    run(check())


def test_the_index_moves_on_and_an_answer_stays_with_its_version(
    service: Service, with_shards: Callable[[int], Index], collection: Collection, finder: Finder
) -> None:
    other = with_shards(5)  # more shards than there are deployments

    async def check() -> None:
        search = await warmed(service)
        stages = search.stages(SearchRequest(query="a teal moon", k=5), "")
        _, first = await anext(stages)
        served = await search.switch(other.folder.uri.removesuffix(f"/{other.version}"))
        assert (served.version, served.shards, served.rows) == (other.uri, 5, 24)
        rest = [data async for _, data in stages]
        assert first.shards.total == rest[-1].shards.total == 2
        answer = await search.answer(SearchRequest(query="a teal moon", k=5, mode="text"), "")
        assert answer.shards.answered == answer.shards.total == 5
        assert as_tuples(answer) == as_tuples(finder.search("a teal moon", 5, mode="text"))
        with refused("missing"):
            await search.switch("/nowhere")
        await search.switch(str(collection.folder / "index"))

    run(check())


def test_a_row_that_the_next_version_lacks_has_no_picture_any_more(
    service: Service, collection: Collection, tmp_path: Path
) -> None:
    other, ids = without_the_first(collection, tmp_path)
    removed, kept = ids[:2]

    async def check() -> None:
        search = await warmed(service)
        pictures = GalleryPictures(search.places)
        answer = await search.answer(SearchRequest(query="a star", k=24, mode="text"), "")
        assert removed in [found.id for found in answer.results]
        assert await pictures.picture(removed, small=True)
        await search.switch(other.uri)
        try:
            assert await pictures.picture(removed, small=True) is None
            assert await pictures.picture(kept, small=True)
        finally:
            await search.switch(str(collection.folder / "index"))
        assert await pictures.picture(removed, small=True)

    run(check())


def test_a_switch_reaches_every_ranker_and_outlives_the_pointer(
    with_shards: Callable[[int], Index], profile: Profile, collection: Collection
) -> None:
    other = with_shards(2)

    async def check() -> None:
        started = collection.index.uri
        pointer = InOnePlace(Pointer.func_or_class(started))
        shards = [InOnePlace(IndexShard.func_or_class.__new__(IndexShard.func_or_class)) for _ in range(2)]
        for number, shard in enumerate(shards):
            await shard.it.__init__(number, 2, pointer)
        rankers = [Ranker.func_or_class.__new__(Ranker.func_or_class) for _ in range(2)]
        for ranker in rankers:
            await ranker.__init__(profile, pointer, None, {}, shards)
        await rankers[0].switch(other.uri)
        pointer.it = Pointer.func_or_class(started)  # its replica was lost before the second ranker has asked
        for ranker in rankers:
            await ranker.follow()
            assert (await ranker.served()).version == other.uri
        late = asyncio.create_task(rankers[1].follow())
        await rankers[1].switch(started)  # while a follow is under way
        await late
        await rankers[0].follow()
        assert [(await ranker.served()).version for ranker in rankers] == [started, started]

    run(check())


def test_a_version_that_cannot_be_opened_is_tried_less_and_less_often(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt may read all its files."""
    ranker = Ranker.func_or_class.__new__(Ranker.func_or_class)
    ranker._settings = service.profile.serve.model_copy(update={"watch_seconds": 100.0})
    ranker._current = SimpleNamespace(uri="here")
    pauses, outcomes = [], iter([UserError("damaged"), UserError("damaged"), UserError("damaged"), None])

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def follow() -> None:
        outcome = next(outcomes, asyncio.CancelledError())
        if outcome:
            raise outcome

    ranker.follow = follow
    monkeypatch.setattr("serving.deployments.ranker.asyncio.sleep", sleep)

    async def check() -> None:
        with pytest.raises(asyncio.CancelledError):
            await ranker._follow_for_ever()

    run(check())
    assert pauses == [100, 200, 300, 300, 100]


class InOnePlace:
    """A handle to one replica that several others of this event loop share: ``it``."""

    def __init__(self, it: Any) -> None:
        self.it = it

    def __getattr__(self, name: str) -> Any:
        def remote(*args: Any) -> Any:
            return asyncio.ensure_future(getattr(self.it, name)(*args))

        return SimpleNamespace(remote=remote)

    def broadcast(self, method: str, *args: Any) -> Any:
        return SimpleNamespace(results_async=lambda: asyncio.gather(getattr(self.it, method)(*args)))


def test_an_index_whose_files_are_not_those_of_its_manifest_is_refused(
    service: Service, collection: Collection, tmp_path: Path
) -> None:
    """As large as recorded, and readable: without the checksums nothing tells them from the right ones."""
    version = shutil.copytree(collection.index.uri, tmp_path / "000001")
    file = version / "shard-00001" / "vectors.npy"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    async def switch() -> None:
        search = await warmed(service)
        with refused("damaged", "index") as error:
            await search.switch(str(tmp_path))
        assert str(tmp_path) not in str(error.value)
        assert (await search.served()).version == collection.index.uri

    run(switch())


def test_an_index_of_other_models_is_refused(
    service: Service, collection: Collection, tmp_path: Path, profile_file: Path
) -> None:
    version = shutil.copytree(collection.index.uri, tmp_path / "000001")
    manifest = collection.index.manifest.model_copy(deep=True)
    manifest.models["vision"].fingerprint = "sha256:other"
    (version / "manifest.json").write_text(manifest.model_dump_json())

    async def switch() -> None:
        search = await warmed(service)
        with refused("other-model", "index") as error:
            await search.switch(str(tmp_path))
        assert str(tmp_path) not in str(error.value)

    run(switch())
    with refused("other-model"):
        local_service(target=str(tmp_path), profile=str(profile_file), store="memory:")


def test_without_shards_nothing_is_ranked(service: Service, profile: Profile, collection: Collection) -> None:
    ranker = local(Ranker.bind(profile, Pointer.bind(collection.index.uri), None, {}, []))

    async def rank() -> None:
        with pytest.raises(Unavailable) as error:
            await call("", ranker.rank, one_piece(np.ones(24, np.float32)), 0.0, 1, None, SECONDS, seconds=SECONDS)
        assert (error.value.part, error.value.trouble) == ("every shard of the index", "down")

    run(rank())
