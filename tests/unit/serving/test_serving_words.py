"""Words, lenses and refinements as the service answers them: what one process answers, to the bit."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from assistant_server import Body, completion, given, serving
from errors import refused
from serving_graph import local_service
from tiny_artifacts import Collection, write_words

from cluster.loading import find_words, open_finder, open_index
from cluster.profile import AssistantSettings, Profile
from retrieval.artifacts import TrainedComposer
from retrieval.assistant.endpoint import Assistant
from retrieval.assistant.found import asked_of
from retrieval.composer import Composer
from retrieval.evidence import Evidence, Row, Text
from retrieval.finder import Finder
from retrieval.folder import Folder
from retrieval.index.files import vector_text
from retrieval.query import QueryEncoder
from serving.deployments.calls import Unavailable
from serving.ingress import Service
from serving.protocol import QuestionAnswer, SearchAnswer, SearchRequest
from serving.search import Search


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, collection: Collection, query_encoder: QueryEncoder) -> Path:
    """An index that knows its mean, beside a dictionary."""
    folder = tmp_path_factory.mktemp("target")
    shutil.copytree(collection.folder / "index", folder / "index")
    joint_ND = np.hstack([collection.vlm_ND1, collection.vision_ND2]).astype(np.float32)
    version = Folder(folder / "index" / collection.index.version)
    version.write_json(
        "manifest.json", version.read_json("manifest.json") | {"mean": vector_text(joint_ND.mean(axis=0))}
    )
    write_words(folder / "words", query_encoder)
    return folder


@pytest.fixture(scope="module")
def whole(target: Path, profile: Profile) -> Service:
    """A service that holds its shards itself."""
    return local_service(target=str(target), profile=profile, store="memory:")


def in_deployments(target: Path, profile: Profile) -> Service:
    settings = profile.serve.model_copy(update={"local_index_bytes": 0})
    return local_service(target=str(target), profile=profile.model_copy(update={"serve": settings}), store="memory:")


@pytest.mark.parametrize("local", [True, False])
def test_what_is_read_and_seen_through_lenses_equals_one_process(
    target: Path, profile: Profile, whole: Service, query_encoder: QueryEncoder, local: bool
) -> None:
    service = whole if local else in_deployments(target, profile)
    finder = Finder(query_encoder, open_index(target), words=find_words(target))
    assert finder.means is not None
    row, against = {"row": "id-007"}, {"text": "striped", "weight": -0.4}
    asked: list[tuple[dict[str, Any], list[Evidence], dict[str, Any]]] = [
        ({"query": "red"}, [Text("red")], {}),
        ({"query": "red star"}, [Text("red star")], {"focus": "colour"}),
        ({"evidence": [row]}, [Row("id-007")], {"focus": "shape"}),
        ({"evidence": [row]}, [Row("id-007")], {"bridge": "words"}),
        ({"query": "blue", "evidence": [row]}, [Text("blue"), Row("id-007")], {}),
        ({"query": "blue", "evidence": [row]}, [Text("blue"), Row("id-007")], {"bridge": "none", "ignore": ["shape"]}),
        ({"query": "blue", "evidence": [row]}, [Text("blue"), Row("id-007")], {"bridge": "none", "fuse": "max"}),
        (
            {"query": "blue fish", "evidence": [row, against]},
            [Text("blue fish"), Row("id-007"), Text("striped", -0.4)],
            {"rerank": "neighbours"},
        ),
    ]

    async def check() -> None:
        search: Search = service.search()
        await search.warm_up()
        for said, evidence, options in asked if local else asked[4:]:
            plain = finder.find(evidence, 6, images=1, **options)
            for _ in range(2 if not options and len(evidence) == 2 else 1):  # made, and remembered
                answer = await search.answer(SearchRequest.model_validate({**said, **options, "k": 6, "images": 1}), "")
                same(answer, plain, pieces=len(evidence))
            assert answer.query == said.get("query", "")
        request = SearchRequest.model_validate({"query": "blue", "evidence": [row], "k": 6, "images": 1})
        first, *_, last = [data async for _, data in search.stages(request, "")]
        assert isinstance(first, SearchAnswer)
        assert isinstance(last, SearchAnswer)
        assert first.recomposed == last.recomposed
        assert (await search.served()).aspects == ["pattern", "shape", "colour"]
        with refused("unknown", "focus") as error:
            await search.answer(SearchRequest(query="red", focus="size"), "")
        assert "pattern, shape, colour" in str(error.value)

    asyncio.run(check())


def test_what_an_assistant_has_ordered_is_refined_and_asked_about_as_in_one_process(
    target: Path, whole: Service, query_encoder: QueryEncoder
) -> None:
    bodies: list[Body] = []

    async def answering(request: web.Request, body: Body) -> web.Response:
        bodies.append(body)
        if given(body)["task"] == "list":
            return completion('{"order": [8, 3, 7]}')
        return completion('{"question": "Which?", "choices": [1]}')

    options: dict[str, Any] = {"rerank": "list", "depth": 8, "mode": "text"}
    request = SearchRequest.model_validate({"query": "red", "k": 3, **options})

    async def ask(url: str) -> tuple[SearchAnswer, QuestionAnswer]:
        named = AssistantSettings(url=url, model="model", depth=8)
        models = whole.profile.models.model_copy(update={"assistant": named})
        search = replace(whole, profile=whole.profile.model_copy(update={"models": models})).search()
        await search.warm_up()
        assert search.assistant
        try:
            return await search.answer(request, ""), await search.question(request, "")
        finally:
            await search.assistant.close()

    with serving(answering) as url:
        answer, question = asyncio.run(ask(url))
        assistant = Assistant(url, "model", depth=8)
        finder = Finder(query_encoder, open_index(target), words=find_words(target), assistant=assistant)
        plain = finder.find([Text("red")], 3, **options)
        labels, words = [found.label for found in plain], [word.text for word in plain.refinements]
        asked = asked_of(assistant, [Text("red")], labels, words, plain.words)
    same(answer, plain, pieces=1)
    assert answer.reranked == "list"
    assert words  # of three rows, not of eight
    assert words != [word.text for word in finder.find([Text("red")], 8, mode="text").refinements]
    assert [given(body)["task"] for body in bodies] == ["list", "ask", "list", "ask"]  # the order was cached
    assert given(bodies[1]) == given(bodies[3])
    assert list(given(bodies[1])["found"].values())[: len(words)] == words
    assert asked.answer
    assert (
        (question.question, question.choices) == (asked.answer.question, asked.answer.choices) == ("Which?", [words[0]])
    )


def test_images_of_what_was_read_are_dropped_without_a_query(whole: Service) -> None:
    asked = {"evidence": [{"row": "id-007"}], "bridge": "words", "k": 6, "images": 2}

    async def check() -> None:
        search: Search = whole.search()
        await search.warm_up()
        every, without = [
            await search.answer(SearchRequest.model_validate({**asked, "drop": drop}), "") for drop in ([], [1])
        ]
        assert [image.dropped for image in without.imagined] == [False, True]
        assert without.recomposed == every.recomposed
        alone = await search.answer(SearchRequest(query=every.recomposed, k=6, images=2, drop=[1]), "")
        assert [one.score for one in without.results] == [one.score for one in alone.results]
        assert [one.score for one in without.results] != [one.score for one in every.results]
        for drop, other in (([2], asked), ([0], {**asked, "bridge": "none"})):
            with refused("no-such-image", "drop"):
                await search.answer(SearchRequest.model_validate({**other, "drop": drop}), "")

    asyncio.run(check())


def test_what_is_encoded_before_a_reading_and_after_it_is_told_once_and_timed_in_all(
    whole: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"evidence": [{"row": "id-007"}, {"text": "red moon", "weight": 1}], "mode": "text", "k": 6, "images": 1}
    long = {"text": "nothing that was read " * 8, "weight": -0.4}
    slow = 0.1

    async def check() -> None:
        search: Search = whole.search()
        await search.warm_up()
        told = asked | {"evidence": [{"row": "id-007"}, long], "bridge": "words", "mode": "fused"}
        new, remembered = [await search.answer(SearchRequest.model_validate(told), "") for _ in range(2)]
        assert (new.memory, remembered.memory, len(new.warnings)) == ("miss", "hit", 1)
        assert remembered.warnings == new.warnings
        texts = search._reading._encoding._texts
        send = texts._send

        async def slowly(*given: Any) -> Any:
            await asyncio.sleep(slow)
            return await send(*given)

        monkeypatch.setattr(texts, "_send", slowly)
        answer = await search.answer(SearchRequest.model_validate(asked), "")
        assert answer.recomposed
        assert answer.timings_ms["text"] >= 2 * 1000 * slow  # what was given, and what was read

        async def fails(*_: Any, **__: Any) -> Any:
            await asyncio.sleep(slow)
            raise Unavailable("the ranker", "late")

        monkeypatch.setattr("serving.reading.call", fails)
        unread = await search.answer(SearchRequest.model_validate(asked), "")
        assert "pictures were not read into words" in (unread.degraded or "")
        assert unread.timings_ms["read"] >= 1000 * slow

    asyncio.run(check())


def same(answer: SearchAnswer, plain: Any, *, pieces: int) -> None:
    ours, theirs = (
        [(one.score, one.text_part, one.visual_part) for one in all_of] for all_of in (answer.results, plain)
    )
    assert [found.id for found in answer.results] == [found.id for found in plain]
    if pieces < 3:
        assert ours == theirs
    else:  # two texts that are encoded in one batch may differ in their last bit from each alone
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert answer.refinements == [of.text for of in plain.refinements]
    assert answer.words == ([word.value for word in plain.words.words] if plain.words else [])
    assert answer.recomposed == (plain.words.text if plain.words else None)
    if pieces > 1:
        np.testing.assert_allclose([found.shares for found in answer.results], plain.shares, atol=1e-6)
    assert (answer.degraded, answer.warnings) == (None, [])


@pytest.mark.parametrize("local", [True, False])
def test_what_is_composed_equals_one_process(
    target: Path,
    profile: Profile,
    query_encoder: QueryEncoder,
    collection: Collection,
    tmp_path: Path,
    local: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = Composer(query_encoder.vlm.dim, query_encoder.vision.dim, layers=1)
    made = TrainedComposer.save(tmp_path, network, collection.index.manifest.models, {})
    models = profile.models.model_copy(update={"composer": made.uri})
    profile = profile.model_copy(update={"models": models})
    service = (
        local_service(target=str(target), profile=profile, store="memory:")
        if local
        else in_deployments(target, profile)
    )
    finder = open_finder(target, profile)
    blue, row, against = {"query": "blue"}, {"row": "id-007"}, {"text": "striped", "weight": -0.4}
    given = [Text("blue"), Row("id-007")]
    asked: list[tuple[dict[str, Any], list[Evidence], dict[str, Any]]] = [
        ({**blue, "evidence": [row]}, given, {}),
        ({**blue, "evidence": [row]}, given, {"mode": "text"}),
        ({**blue, "evidence": [row]}, given, {"fuse": "rrf", "rerank": "neighbours"}),
        ({**blue, "evidence": [against, row]}, [Text("blue"), Text("striped", -0.4), Row("id-007")], {"mode": "text"}),
        ({"evidence": [row]}, given[1:], {}),
    ]

    async def fails(*_: Any, **__: Any) -> None:
        raise Unavailable("the ranker", "down")

    async def check() -> None:
        search: Search = service.search()
        await search.warm_up()
        for said, evidence, options in asked if local else asked[:1]:
            options = {**options, "bridge": "composer"}
            plain = finder.find(evidence, 6, images=1, **options)
            answer = await search.answer(SearchRequest.model_validate({**said, **options, "k": 6, "images": 1}), "")
            same(answer, plain, pieces=len(evidence))
            assert (answer.query, answer.imagined, answer.visual) == (said.get("query", ""), [], plain.visual)
            assert ("compose" in answer.timings_ms) == (len(evidence) > 1)
        assert (await search.served()).composer == made.uri
        request = {**blue, "evidence": [row], "bridge": "composer"}
        with refused("no-such-image", "drop"):
            await search.answer(SearchRequest.model_validate({**request, "drop": [0]}), "")
        with refused("no-assistant", "rerank"):
            await search.answer(SearchRequest.model_validate({**request, "rerank": "judge"}), "")
        monkeypatch.setattr("serving.reading.call", fails)
        answer = await search.answer(SearchRequest.model_validate({**request, "k": 6, "images": 1}), "")
        plain = finder.find(given, 6, images=1, bridge="none")
        assert [(found.id, found.score) for found in answer.results] == [(found.id, found.score) for found in plain]
        assert answer.degraded == "pictures were not composed with texts: the ranker is not running"

    asyncio.run(check())


def test_a_service_without_a_dictionary_or_a_composer_says_so(collection: Collection, profile: Profile) -> None:
    service = local_service(target=str(collection.folder), profile=profile, store="memory:")

    async def ask(**options: Any) -> None:
        search: Search = service.search()
        await search.warm_up()
        await search.answer(SearchRequest.model_validate({"query": "red", **options}), "")

    with refused("no-words", "focus"):
        asyncio.run(ask(focus="colour"))
    with refused("no-words", "bridge"):
        asyncio.run(ask(bridge="words"))
    with refused("no-composer", "bridge"):
        asyncio.run(ask(bridge="composer"))
