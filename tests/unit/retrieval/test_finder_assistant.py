"""A second stage by an assistant, in one process: what was found in a new order, or as it was with the reason."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest
from aiohttp import web
from assistant_server import Answering, Body, completion, given, logprobs, serving, shown
from errors import refused
from tiny_artifacts import Collection

from retrieval.assistant.endpoint import Assistant, Spent
from retrieval.evidence import Row, Text
from retrieval.finder import Answer, Finder
from retrieval.query import QueryEncoder

STAR = [Text("a star"), Text("red", -0.4)]


@pytest.fixture(scope="module")
def plain(query_encoder: QueryEncoder, collection: Collection) -> Iterator[Answer]:
    """The first eight as they are without an assistant."""
    return Finder(query_encoder, collection.index).find(STAR, 8, mode="text")


def found(
    query_encoder: QueryEncoder, collection: Collection, answering: Answering, way: str, depth: int = 6
) -> Answer:
    with serving(answering) as url:
        assistant = Assistant(url, "model", depth=depth, seconds=20)
        finder = Finder(query_encoder, collection.index, assistant=assistant)

        async def in_a_notebook() -> Answer:
            return finder.find(STAR, 4, mode="text", rerank=way)  # type: ignore[arg-type]

        return asyncio.run(in_a_notebook())


def ids(answer: Answer, *places: int) -> list[str]:
    return [answer.results[place].id for place in places]


def test_the_first_are_judged_by_their_pictures_and_words_alone(
    query_encoder: QueryEncoder, collection: Collection, plain: Answer
) -> None:
    bodies: list[Body] = []

    async def answering(request: web.Request, body: Body) -> web.Response:
        bodies.append(body)
        yes = 0.9 if len(shown(body)[0]) == sizes[-1] else 0.1
        return completion("yes", logprobs=logprobs(yes=math.log(yes), no=math.log(1 - yes)))

    sizes = [0]
    first = found(query_encoder, collection, answering, "judge")
    assert ids(first, 0, 1, 2, 3) == ids(plain, 0, 1, 2, 3)  # all judged alike
    assert {tuple(given(body)["wanted"]) for body in bodies} == {("a star",)}
    assert {tuple(given(body)["unwanted"]) for body in bodies} == {("red",)}
    assert not any(plain.results[0].id in str(given(body)) for body in bodies)
    assert len(bodies) == 6
    sizes = sorted(len(shown(body)[0]) for body in bodies)  # the largest file is the one that is wanted
    again = found(query_encoder, collection, answering, "judge")
    assert again.results[0].rerank_score == pytest.approx(0.9)
    assert (again.reranked, again.degraded, again.spent) == ("judge", None, Spent(6, 0, 42, 18))
    assert len(again.results) == len(again.shares) == 4
    assert {one.id for one in again} <= {one.id for one in plain.results[:6]}


def test_an_order_moves_what_lies_deeper_to_the_front(
    query_encoder: QueryEncoder, collection: Collection, plain: Answer
) -> None:
    async def answering(request: web.Request, body: Body) -> web.Response:
        return completion('{"order": [6, 2]}')

    answer = found(query_encoder, collection, answering, "list")
    assert [one.id for one in answer] == ids(plain, 5, 1, 0, 2)
    assert [one.score for one in answer] == [plain.results[place].score for place in (5, 1, 0, 2)]
    assert answer.shares == [plain.shares[place] for place in (5, 1, 0, 2)]
    assert (answer.reranked, answer.degraded) == ("list", None)


@pytest.mark.parametrize("way", ["judge", "list"])
def test_without_an_answer_it_stays_as_it_was_and_says_so(
    query_encoder: QueryEncoder, collection: Collection, plain: Answer, way: str
) -> None:
    async def answering(request: web.Request, body: Body) -> web.Response:
        return web.Response(status=500)

    answer = found(query_encoder, collection, answering, way)
    assert [one.id for one in answer] == ids(plain, 0, 1, 2, 3)
    assert (answer.reranked, answer.degraded) == (None, "the assistant fails (HTTP 500)")


def test_there_must_be_an_assistant_and_words_to_judge_by(query_encoder: QueryEncoder, collection: Collection) -> None:
    with refused("no-assistant", "rerank"):
        Finder(query_encoder, collection.index).find(STAR, rerank="list")
    finder = Finder(query_encoder, collection.index, assistant=Assistant("http://127.0.0.1:1/v1", "model"))
    with refused("no-words", "rerank"):
        finder.find([Row("id-000"), Text("red", -0.4)], rerank="judge")
