"""The order of a search, what it waits for, and what it says when something is missing: with parts that are fakes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from errors import refused
from fastapi import FastAPI
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError
from remembering import entry
from waiting import until

import serving.ingress
from cluster.profile import ServeSettings
from retrieval.artifacts import ModelRecord
from retrieval.errors import UserError
from serving.admission import Admission
from serving.deployments.calls import Deadline, Unavailable, call
from serving.deployments.messages import (
    AS_EVER,
    EncodedText,
    Imagination,
    Model,
    Question,
    Ranking,
    Row,
    Served,
    Tokens,
    Way,
)
from serving.ingress import Ingress
from serving.memory.local import MemoryStore
from serving.memory.memory import Memory
from serving.protocol import ImaginedEvent, SearchAnswer, SearchRequest
from serving.search import Defaults, Parts, Search

NEAREST = -1.0


class Handle:
    """What a deployment handle is to its callers."""

    def __init__(self, replica: Any) -> None:
        self._replica = replica

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._replica, name)
        # A call has begun when `remote` returns, and can be cancelled.
        return type("Method", (), {"remote": staticmethod(lambda *given: asyncio.ensure_future(method(*given)))})


def record(role: str) -> ModelRecord:
    return ModelRecord(uri=role, fingerprint=f"sha256:{role}", dim=2)


class VLM:
    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.length = 5

    async def model(self) -> Model:
        return Model(record("vlm"), ["{}"], context=32)

    async def encode_text(self, text: str) -> EncodedText:
        self.encoded.append(text)
        return EncodedText(np.array([1, 0], np.float32), Tokens(self.length, 32))

    async def encode_texts(self, texts: list[str]) -> list[EncodedText]:
        return [await self.encode_text(text) for text in texts]

    async def tokens(self, text: str) -> Tokens:
        return Tokens(self.length, 32)


class Vision:
    async def model(self) -> Model:
        return Model(record("vision"))


class Generator:
    """Imagines ``images`` images once it ``may``; or fails with ``error``."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.stopped: list[str] = []
        self.may = asyncio.Event()
        self.may.set()
        self.runs = asyncio.Event()
        self.runs.set()
        self.error: Exception | None = None
        self.rejected = 0
        self.reason = "safety"

    async def model(self) -> Model:
        await self.runs.wait()
        return Model(record("generator"))

    async def imagine(self, text: str, images: int, seed: int) -> Imagination:
        self.asked.append(text)
        try:
            await self.may.wait()
        except asyncio.CancelledError:
            self.stopped.append(text)
            raise
        if self.error:
            raise self.error
        accepted = images - self.rejected
        vectors = np.eye(max(accepted, 2), 2, dtype=np.float32)[:accepted]
        return Imagination(vectors, np.arange(accepted) + 10, [b"jpeg"] * accepted, [self.reason] * self.rejected)


class Ranker:
    """Ranks one row, whose score is the number of images that it was ranked by; or NEAREST, if by real ones."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, int, str | None]] = []
        self.current = "v1"
        self.answered = 5
        self.error: Exception | None = None

    async def served(self) -> Served:
        return Served("v1", "v1", "gallery", rows=1, shards=5, models={}, weight=0.5)

    async def rank(
        self, pieces: list[Any], weight: float, k: int, version: str | None, seconds: float, way: Way = AS_EVER
    ) -> Ranking:
        if self.error:
            raise self.error
        vision = pieces[0].vision
        count = 0 if vision is None else len(vision)
        self.asked.append((weight, count, version))
        score = NEAREST if pieces[0].nearest and weight else float(count)
        row = Row("a b/c", 3, "a/0.png", "images", "a", {"width": 64}, score, 0.0, 0.0)
        used = version or self.current
        return Ranking([row], weight, used, used, self.answered, 5, [1 / count] * count if count else [])

    async def rank_each(self, questions: list[Question]) -> list[Ranking]:
        return [await self.rank(*(getattr(one, field.name) for field in fields(one))) for one in questions]


class World:
    """A search among fakes."""

    def __init__(self, *, generator: bool = True, warmed_by: str | None = None, **settings: Any) -> None:
        self.vlm, self.vision, self.generator, self.ranker = VLM(), Vision(), Generator(), Ranker()
        parts = Parts(
            Handle(self.vlm),  # type: ignore[arg-type]
            Handle(self.vision),  # type: ignore[arg-type]
            Handle(self.generator) if generator else None,  # type: ignore[arg-type]
            Handle(self.ranker),  # type: ignore[arg-type]
        )
        self.memory = Memory(MemoryStore())
        defaults = Defaults(images=3, generator_fingerprint=warmed_by if generator else "sha256:generator")
        self.search = Search(parts, self.memory, ServeSettings(**settings), defaults)

    async def warmed(self) -> World:
        await self.search.warm_up()
        self.generator.asked.clear()
        self.ranker.asked.clear()
        return self

    async def circuit_closed(self) -> None:
        """Wait until the generator is asked again."""
        probing = self.search._imaginer._breaker._probing
        assert probing
        await probing

    async def answer(self, query: str = "a star", **options: Any) -> SearchAnswer:
        return await self.search.answer(SearchRequest(query=query, **options), "id")

    async def stages(self, **options: Any) -> list[tuple[str, Any]]:
        request = SearchRequest(query="a star", **options)
        return [stage async for stage in self.search.stages(request, "id")]


def by_nearest(answer: SearchAnswer) -> str | None:
    """Why an answer is by the nearest real images."""
    assert (answer.stage, answer.visual, answer.imagined) == ("fused", "nearest", [])
    assert answer.results[0].score == NEAREST
    return answer.degraded


async def trouble(asking: Awaitable[Any]) -> tuple[str, str]:
    """The part that did not answer, and why."""
    with pytest.raises(Unavailable) as error:
        await asking
    return error.value.part, error.value.trouble


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


class Joining:
    """What an ingress is made of (``serving.ingress.Service``), in front of fakes."""

    def __init__(self, world: World) -> None:
        self.world = world

    def search(self) -> Search:
        return self.world.search

    def api(self, search: Search, *, behind_serve: bool) -> FastAPI:
        return FastAPI()


def test_an_ingress_that_joins_a_running_service_knows_its_parts_when_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def begun(world: World) -> Any:
        replica = Ingress.func_or_class.__new__(Ingress.func_or_class)
        await Ingress.func_or_class.__init__(replica, Joining(world))
        return replica

    async def check() -> None:
        assert (await begun(World())).search.ready
        monkeypatch.setattr(serving.ingress, "WARM_SECONDS", 0.1)
        world = World()
        world.generator.runs.clear()
        replica = await begun(world)  # texts do not wait for the generator
        assert not replica.search.ready
        await replica.check_health()
        world.generator.runs.set()
        await replica._warming
        assert replica.search.ready

    run(check())


def test_a_new_query_is_answered_in_stages_and_a_remembered_one_without_model() -> None:
    async def check() -> None:
        world = await World().warmed()
        stages = await world.stages(k=2)
        assert [name for name, _ in stages] == ["text", "imagined", "fused"]
        text, imagined, fused = (data for _, data in stages)
        assert (text.stage, text.weight, text.memory, text.imagined) == ("text", 0.0, "miss", [])
        assert isinstance(imagined, ImaginedEvent)
        assert [image.seed for image in imagined.imagined] == [10, 11, 12]
        assert (fused.stage, fused.weight, fused.results[0].score) == ("fused", 0.5, 3.0)
        assert [image.attention for image in fused.imagined] == [1 / 3] * 3
        assert fused.results[0].url == "/v1/images/a%20b%2Fc?shard=3"
        assert fused.results[0].thumbnail == "/v1/images/a%20b%2Fc?shard=3&size=thumbnail"
        assert {"text", "text_rank", "imagine", "rank", "total"} <= set(fused.timings_ms)
        assert await world.memory.remembered_image(imagined.imagined[1].url.split("/")[3], 1) == b"jpeg"
        texts = list(world.vlm.encoded)
        again = await world.answer("  a \n star")
        assert (again.memory, again.query, again.results) == ("hit", "a star", fused.results)
        assert (world.generator.asked, world.vlm.encoded) == (["a star"], texts)

    run(check())


def test_searches_that_wait_ask_together_and_each_gets_its_own_answer() -> None:
    async def check() -> None:
        world = await World().warmed()
        texts, rankings = world.vlm.encode_texts, world.ranker.rank_each
        together: list[int] = []

        async def encode_texts(given: list[str]) -> list[EncodedText]:
            together.append(len(given))
            return await texts(given)

        async def rank_each(questions: list[Question]) -> list[Ranking]:
            together.append(len(questions))
            return await rankings(questions)

        world.vlm.encode_texts, world.ranker.rank_each = encode_texts, rank_each  # type: ignore[method-assign]
        queries = [f"star {i}" for i in range(8)]
        answers = await asyncio.gather(*(world.answer(query, mode="text", k=8) for query in queries))
        assert together == [8, 8]
        assert [answer.query for answer in answers] == queries

    run(check())


def test_a_search_in_a_hurry_waits_for_no_shard_as_long_as_others_may() -> None:
    async def check() -> None:
        world = await World(shard_timeout_ms=60_000, deadline_ms=100_000).warmed()
        rankings, hangs = world.ranker.rank_each, asyncio.Event()

        async def rank_each(questions: list[Question]) -> list[Ranking]:
            if max(question.seconds for question in questions) > 50:
                await hangs.wait()  # for a shard
            return await rankings(questions)

        world.ranker.rank_each = rank_each  # type: ignore[method-assign]
        patient = asyncio.create_task(world.answer("a moon", mode="text"))
        hurried = asyncio.create_task(world.answer("a star", mode="text", deadline_ms=20_000))
        assert (await hurried).query == "a star"
        assert not patient.done()
        hangs.set()
        assert (await patient).query == "a moon"

    run(check())


@pytest.mark.parametrize("options", [{"mode": "text"}, {"mode": "text", "weight": 0.7}, {"weight": 0.0}])
def test_a_search_by_text_imagines_nothing(options: dict[str, Any]) -> None:
    async def check() -> None:
        world = await World().warmed()
        [(name, answer)] = await world.stages(**options)
        assert (name, answer.stage, answer.weight, answer.memory) == ("text", "text", 0.0, "off")
        assert world.generator.asked == []

    run(check())


@pytest.mark.parametrize(
    ("options", "weight", "stage"),
    [({"mode": "visual", "weight": 0.2}, 1.0, "visual"), ({"weight": 1.0}, 1.0, "fused")],
)
def test_weight_and_stage_follow_the_mode(options: dict[str, Any], weight: float, stage: str) -> None:
    async def check() -> None:
        answer = await (await World().warmed()).answer(**options)
        assert (answer.weight, answer.stage) == (weight, stage)

    run(check())


def test_images_and_seed_are_other_queries_and_kind_weight_and_k_are_not() -> None:
    async def check() -> None:
        world = await World().warmed()
        for options in ({}, {"seed": 1}, {"images": 2}):
            assert (await world.answer(**options)).memory == "miss"
        assert (await world.answer(weight=0.9, k=50)).memory == "hit"
        described = await world.answer(kind="description")
        assert (described.memory, described.kind) == ("hit", "description")

    run(check())


def test_many_who_ask_the_same_wait_for_one_generation() -> None:
    async def check() -> None:
        world = await World().warmed()
        answers = await asyncio.gather(*(world.answer() for _ in range(100)))
        assert world.generator.asked == ["a star"]
        assert {answer.stage for answer in answers} == {"fused"}

    run(check())


def test_both_stages_are_of_one_version() -> None:
    async def check() -> None:
        world = await World().warmed()
        stages = world.search.stages(SearchRequest(query="a star"), "id")
        _, text = await anext(stages)
        world.ranker.current = "v2"
        rest = [data async for _, data in stages]
        assert isinstance(text, SearchAnswer)
        assert (text.index_version, rest[-1].index_version) == ("v1", "v1")
        assert (await world.answer()).index_version == "v2"

    run(check())


def died() -> Exception:
    return ActorDiedError()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), "as many requests waiting as it may"),
        (died(), "the generator is not running"),
        (RuntimeError("a trace"), "the generator failed"),
    ],
)
def test_when_the_generator_does_not_answer_the_nearest_real_images_stand_in(error: Exception, reason: str) -> None:
    async def check() -> None:
        world = await World().warmed()
        world.generator.error = error
        stages = await world.stages()
        assert [name for name, _ in stages] == ["text", "fused"]
        answer = stages[-1][1]
        assert answer.weight == 0.5
        assert reason in (by_nearest(answer) or "")
        world.generator.error = None
        assert (await world.answer()).stage == "fused"

    run(check())


def test_nobody_waits_for_a_generator_that_is_gone() -> None:
    async def check() -> None:
        world = await World().warmed()
        world.generator.error = died()
        world.generator.runs.clear()
        await world.answer()
        for _ in range(3):
            assert by_nearest(await world.answer()) == "the generator is not running"
        assert len(world.generator.asked) == 1
        world.generator.error = None
        world.generator.runs.set()
        await world.circuit_closed()
        assert (await world.answer()).stage == "fused"

    run(check())


def test_at_the_deadline_the_nearest_answer_and_the_images_are_remembered() -> None:
    async def check() -> None:
        world = await World().warmed()
        world.generator.may.clear()
        assert by_nearest(await world.answer(deadline_ms=1000)) == "no image was imagined by the deadline"
        world.generator.may.set()
        await until(lambda: not world.search.memory._flights)
        assert (await world.answer()).memory == "hit"
        assert world.generator.asked == ["a star"]

    run(check())


def test_a_generator_that_is_late_is_asked_for_no_image_until_it_answers_again() -> None:
    async def check() -> None:
        world = await World(deadline_ms=1000).warmed()
        world.generator.may.clear()
        world.generator.runs.clear()
        assert (await world.answer()).degraded == "no image was imagined by the deadline"
        await until(lambda: not world.search.memory._flights)
        # With a deadline of its own, which this one must not wait for.
        assert (await world.answer("a moon")).degraded == "the generator did not answer in time"
        assert world.generator.asked == ["a star"]
        world.generator.may.set()
        world.generator.runs.set()
        await world.circuit_closed()
        assert (await world.answer("a moon")).stage == "fused"

    run(check())


def test_a_memory_that_hangs_costs_the_images_and_not_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(key: str, **_: Any) -> None:
        await asyncio.sleep(60)

    async def check() -> None:
        world = await World(deadline_ms=1000).warmed()
        monkeypatch.setattr(world.memory, "recall", hangs)
        assert by_nearest(await world.answer()) == "no image was imagined by the deadline"

    run(check())


def test_no_request_may_wait_longer_than_the_service_allows() -> None:
    async def check() -> None:
        world = await World(deadline_ms=1000).warmed()
        world.generator.may.clear()
        assert (await world.answer(deadline_ms=60_000)).visual == "nearest"

    run(check())


def test_where_not_even_the_nearest_can_be_ranked_the_text_answers() -> None:
    async def check() -> None:
        world = await World().warmed()
        world.generator.rejected = 3
        rank = world.ranker.rank

        async def by_text_alone(pieces: list[Any], weight: float, *given: Any) -> Ranking:
            if weight:
                raise ActorDiedError
            return await rank(pieces, weight, *given)

        world.ranker.rank = by_text_alone  # type: ignore[method-assign]
        answer = await world.answer()
        assert (answer.stage, answer.visual) == ("text", None)
        assert answer.degraded == "no image could be imagined (safety); the ranker is not running"

    run(check())


def test_a_second_stage_waits_for_the_last_ranking_and_a_way_is_passed_on() -> None:
    async def check() -> None:
        world = await World().warmed()
        ways: list[Way] = []
        rankings = world.ranker.rank_each

        async def rank_each(questions: list[Question]) -> list[Ranking]:
            ways.extend(question.way for question in questions)
            return await rankings(questions)

        world.ranker.rank_each = rank_each  # type: ignore[method-assign]
        given: dict[str, Any] = {"fuse": "max", "rerank": "neighbours", "depth": 50}
        way = Way(**given, refine=True)
        await world.stages(**given)
        assert ways == [AS_EVER, way, way]  # by text; by the nearest, while images are awaited; and by those
        await world.answer(**given, drop=[0, 1, 2])
        assert ways[3:] == [way]

    run(check())


def test_when_the_last_client_goes_the_generation_ends() -> None:
    async def check() -> None:
        world = await World().warmed()
        world.generator.may.clear()
        one, other = (asyncio.create_task(world.answer()) for _ in range(2))
        await until(lambda: [flight._waiting for flight in world.memory._flights.values()] == [2])
        await until(lambda: world.generator.asked)
        one.cancel()
        await asyncio.wait([one])
        assert world.generator.stopped == []
        other.cancel()
        await until(lambda: world.generator.stopped == ["a star"])
        stages = world.search.stages(SearchRequest(query="a moon"), "id")
        await anext(stages)
        await until(lambda: world.generator.asked[-1] == "a moon")
        await stages.aclose()
        await until(lambda: world.generator.stopped == ["a star", "a moon"])

    run(check())


def test_dropped_images_are_left_out_without_imagining_again() -> None:
    async def check() -> None:
        world = await World().warmed()
        await world.answer()
        answer = await world.answer(drop=[1])
        assert (answer.memory, answer.results[0].score) == ("hit", 2.0)
        assert [(image.dropped, image.attention) for image in answer.imagined] == [
            (False, 0.5),
            (True, None),
            (False, 0.5),
        ]
        every = await world.answer(drop=[0, 1, 2])
        assert (every.stage, every.degraded) == ("text", "every imagined image was left out")
        assert every.visual is None
        assert [image.dropped for image in every.imagined] == [True] * 3
        with refused("no-such-image", "drop"):
            await world.answer(drop=[7])
        assert world.generator.asked == ["a star"]

    run(check())


def test_without_an_accepted_image_the_nearest_answer_and_it_says_why() -> None:
    async def check() -> None:
        world = await World().warmed()
        world.generator.rejected = 3
        stages = await world.stages()
        assert [name for name, _ in stages] == ["text", "fused"]
        assert by_nearest(stages[-1][1]) == "no image could be imagined (safety)"

    run(check())


def test_images_that_failed_for_the_moment_are_imagined_again_after_a_while() -> None:
    async def check() -> None:
        world = await World().warmed()
        world.generator.rejected, world.generator.reason = 1, "nan"
        for memory in ("miss", "hit"):  # within the while
            answer = await world.answer()
            assert (answer.memory, len(answer.imagined)) == (memory, 2)
        url = answer.imagined[1].url
        world.memory._unfinished.clear()
        assert await world.memory.remembered_image(url.split("/")[3], 1) == b"jpeg"
        world.generator.error = died()  # better two images than none
        answer = await world.answer()
        assert (answer.memory, answer.stage, len(answer.imagined)) == ("hit", "fused", 2)
        world.generator.error, world.generator.rejected = None, 0
        await world.circuit_closed()
        for memory in ("miss", "hit"):
            answer = await world.answer()
            assert (answer.memory, len(answer.imagined)) == (memory, 3)
        world.memory._recent.clear()
        assert len((await world.answer()).imagined) == 3
        assert world.generator.asked == ["a star"] * 3

    run(check())


def test_without_a_generator_unfinished_images_are_answered_for_good() -> None:
    async def check() -> None:
        world, other = await World(generator=False).warmed(), await World().warmed()
        other.generator.rejected, other.generator.reason = 1, "nan"
        await other.answer()
        world.memory.store = other.memory.store
        assert len((await world.answer()).imagined) == 2

    run(check())


def test_missing_shards_are_said() -> None:
    async def check() -> None:
        world = await World().warmed()
        world.ranker.answered = 4
        answer = await world.answer()
        assert (answer.shards.answered, answer.shards.total) == (4, 5)
        assert answer.degraded == "1 of 5 shards of the index did not answer"

    run(check())


def test_a_text_that_is_cut_is_told_on_a_miss_and_on_a_hit() -> None:
    async def check() -> None:
        world = await World().warmed()
        world.vlm.length = 40
        long = "a star " * 9
        for _ in range(2):
            answer = await world.answer(long)
            assert answer.warnings == ["the query has 40 tokens, and the text model reads the first 32"]
        world.vlm.length = 5
        assert (await world.answer("short")).warnings == []

    run(check())


def test_when_nothing_can_be_ranked_the_search_fails_in_words() -> None:
    async def check() -> None:
        world = await World().warmed()
        world.ranker.error = Unavailable("every shard", "down")
        assert await trouble(world.answer()) == ("every shard", "down")
        world.ranker.error = BackPressureError(num_queued_requests=1, max_queued_requests=1)
        assert await trouble(world.answer(mode="text")) == ("the ranker", "busy")
        with pytest.raises(UserError):
            await world.answer(" \t ")

    run(check())


def test_without_a_generator_only_remembered_queries_are_fused() -> None:
    async def check() -> None:
        world, other = await World(generator=False).warmed(), await World().warmed()
        assert by_nearest(await world.answer()) == "this service has no generator, and does not remember this query"
        await other.answer()
        world.memory._recent.update(other.memory._recent)
        assert (await world.answer()).stage == "fused"

    run(check())


def test_nothing_is_stored_as_made_by_the_generator_of_the_warmed_queries(serve_log: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        world = World(warmed_by="sha256:other")
        world.generator.runs.clear()
        starting = asyncio.create_task(world.search.warm_up())
        await until(lambda: "vlm" in world.search._imaginer.models)
        asked = world.search._asked(SearchRequest(query="a moon"), "id")
        world.search._imaginer.set_key(asked, asked.texts[0])
        key = asked.texts[0].key
        assert key
        world.memory._recent[key] = entry("a moon", images=2)
        assert (await world.answer("a moon")).memory == "hit"  # of what was warmed
        assert by_nearest(await world.answer()) == "the generator is still starting"
        assert (world.generator.asked, list(world.memory._recent)) == ([], [key])
        world.generator.runs.set()
        await starting
        [said] = serve_log.messages
        assert "sha256:other" in said
        assert "sha256:generator" in said
        for query in ("a star", "a moon"):
            assert (await world.answer(query)).memory == "miss"

    run(check())


def test_a_generator_that_becomes_known_during_a_search_stores_nothing_under_the_key_of_another() -> None:
    async def check() -> None:
        world = World(warmed_by="sha256:other")
        world.generator.runs.clear()
        starting = asyncio.create_task(world.search.warm_up())
        await until(lambda: "vlm" in world.search._imaginer.models)
        asked = world.search._asked(SearchRequest(query="a star"), "id")
        [text] = asked.texts
        world.search._imaginer.set_key(asked, text)
        world.generator.runs.set()
        await starting
        assert text.key
        text.vlm_D1 = np.array([1, 0], np.float32)
        await world.search._imaginer.obtain(asked, text)
        assert (text.known, text.shortfall and text.shortfall.reason) == (None, "starting")
        assert not world.memory._recent

    run(check())


def test_a_generator_that_made_what_was_warmed_is_not_told(serve_log: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        world = await World(warmed_by="sha256:generator").warmed()
        assert (await world.answer()).memory == "miss"
        assert serve_log.messages == []

    run(check())


def test_before_the_models_are_known_texts_are_answered() -> None:
    async def check() -> None:
        world = World()
        assert (await world.answer(mode="text")).stage == "text"
        assert by_nearest(await world.answer(weight=0.5)) == "the generator is still starting"
        assert await trouble(world.answer()) == ("the service", "starting")
        assert not world.search.ready

    run(check())


def test_a_call_is_bounded_and_repeated_once_when_the_replica_dies() -> None:
    class Replica:
        deaths = 1
        times = 0

        async def work(self) -> str:
            self.times += 1
            if self.times <= self.deaths:
                raise died()
            return "done"

        async def sleep(self) -> None:
            await asyncio.sleep(10)

        async def refuse(self) -> None:
            raise UserError("that is wrong", code="wrong")

        async def break_down(self) -> None:
            raise ValueError("/srv/index/000001 is damaged")

    async def check() -> None:
        replica = Replica()
        handle = Handle(replica)
        assert await call("it", handle.work, seconds=1) == "done"
        replica.deaths = 9
        assert await trouble(call("it", handle.work, seconds=1)) == ("it", "down")
        assert replica.times == 4
        assert await trouble(call("it", handle.work, seconds=1, retry=False)) == ("it", "down")
        assert replica.times == 5
        assert await trouble(call("it", handle.sleep, seconds=0.01)) == ("it", "late")
        assert await trouble(call("it", handle.break_down, seconds=1)) == ("it", "failed")
        assert await trouble(call("it", handle.refuse, seconds=1)) == ("it", "failed")
        with refused("wrong"):
            await call("it", handle.refuse, seconds=1, refusals=(UserError,))

    run(check())


def test_a_deadline_passes_and_stays_at_zero() -> None:
    deadline = Deadline(0)
    assert deadline.left == 0
    assert deadline.spent_ms >= 0
    assert 9 < Deadline(10).left <= 10


async def cramped() -> World:
    """A search with three places, and one to wait in; the generator does not answer yet."""
    world = await World().warmed()
    world.search.admission = Admission(running=3, waiting=1)
    world.generator.may.clear()
    return world


def test_every_kind_of_search_has_a_place_until_its_answer_is_complete() -> None:
    async def check() -> None:
        world = await cramped()
        stream = world.search.stages(SearchRequest(query="a stream"), "id")
        assert (await anext(stream))[0] == "text"
        answers = [asyncio.create_task(world.answer(text)) for text in ("one", "two")]
        await until(lambda: {"one", "two"} <= set(world.generator.asked))
        waiting = asyncio.create_task(world.answer("three", mode="text"))
        await until(lambda: world.search.admission._waiting)
        for asking in (
            world.answer("four", mode="text"),
            world.search.by_picture(b"picture", "id", k=1),
            anext(world.search.stages(SearchRequest(query="five"), "id")),
        ):
            assert await trouble(asking) == ("the service", "busy")
        assert not {"four", "five"} & set(world.vlm.encoded)  # no model was asked
        await stream.aclose()  # its client has gone
        assert (await waiting).stage == "text"
        assert (await world.answer("six", mode="text")).stage == "text"
        world.generator.may.set()
        assert {answer.stage for answer in await asyncio.gather(*answers)} == {"fused"}

    run(check())


class Counting(Generator):
    """Counts the texts that are imagined at a time."""

    now = most = 0

    async def imagine(self, text: str, images: int, seed: int) -> Imagination:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.01)
            return await super().imagine(text, images, seed)
        finally:
            self.now -= 1


@pytest.mark.parametrize(("others", "at_once"), [(0, 4), (5, 2), (6, 1)])
def test_a_search_of_many_texts_imagines_as_many_at_once_as_it_has_places(others: int, at_once: int) -> None:
    async def check() -> None:
        world = World()
        world.generator = Counting()
        world.search._imaginer._generator = Handle(world.generator)  # type: ignore[assignment]
        await world.warmed()
        admission = world.search._imaginer._admission = world.search.admission = Admission(running=8, waiting=1)
        world.generator.most = 0
        request = {"evidence": [{"text": f"star {i}"} for i in range(8)]}
        async with AsyncExitStack() as stack:
            for _ in range(others):
                await stack.enter_async_context(admission.place("others", Deadline(60)))
            answer = await world.search.answer(SearchRequest.model_validate(request), "id", caller="ann")
        assert (answer.stage, answer.degraded, len(world.generator.asked)) == ("fused", None, 8)
        assert world.generator.most == at_once
        assert admission._free == 8

    run(check())


def test_what_has_had_no_turn_by_the_deadline_is_not_begun_after_it() -> None:
    async def check() -> None:
        world = await World().warmed()
        world.search._imaginer._admission = Admission(running=1, waiting=0)
        world.generator.may.clear()
        request = {"evidence": [{"text": "a star"}, {"text": "a moon"}], "deadline_ms": 300}
        answer = await world.search.answer(SearchRequest.model_validate(request), "id")
        assert answer.degraded == "no image was imagined by the deadline"
        world.generator.may.set()
        await until(lambda: not world.memory._flights)
        assert world.generator.asked == ["a star"]  # which continues, for who asks next

    run(check())


def test_the_time_that_a_search_waits_for_its_place_is_part_of_its_time() -> None:
    async def check() -> None:
        world = await cramped()
        answers = [asyncio.create_task(world.answer(text)) for text in ("one", "two", "three")]
        await until(lambda: {"one", "two", "three"} <= set(world.generator.asked))
        assert await trouble(world.answer("four", mode="text", deadline_ms=20)) == ("the service", "late")
        world.generator.may.set()
        await asyncio.gather(*answers)

    run(check())
