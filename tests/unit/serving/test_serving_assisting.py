"""The assistant as the ingress asks it: what it may cost a search, when it is asked no more, and what is counted."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from aiohttp import web
from assistant_server import Answering, Body, completion, given, serving, shown
from PIL import Image

from retrieval.assistant import grid
from retrieval.assistant.endpoint import Assistant, Call
from retrieval.assistant.material import Wanted
from serving import metrics
from serving.assisting import Assisting, Reordered, counted
from serving.deployments.calls import Unavailable
from serving.deployments.messages import Row

T = TypeVar("T")
FISH = Wanted(["fish"])
ROWS = [Row(f"id-{i}", 0, f"{i}.png", "file:///gallery", None, {}, 1.0 - i / 10, 0.5, 0.5) for i in range(5)]


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (500, 400), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED = png("red")


async def picture(row: Row) -> bytes | None:
    return RED


def saying(text: str, bodies: list[Body] | None = None) -> Answering:
    async def answering(request: web.Request, body: Body) -> web.Response:
        if bodies is not None:
            bodies.append(body)
        return completion(text)

    return answering


def assisted(
    answering: Answering,
    ask: Callable[[Assisting], Awaitable[T]],
    *,
    picture: Callable[[Row], Awaitable[bytes | None]] = picture,
    at_once: int = 2,
    **settings: Any,
) -> T:
    async def run(url: str) -> T:
        assistant = Assistant(url, "model", **{"depth": 4, "at_once": 2, **settings})
        try:
            return await ask(Assisting(assistant, picture, seconds=30, at_once=at_once))
        finally:
            await assistant.close()

    with serving(answering) as url:
        return asyncio.run(run(url))


def reorder(assisting: Assisting, *, wanted: Wanted = FISH, seconds: float = 30, version: str = "v1") -> Any:
    return assisting.reorder("list", wanted, ROWS, version, seconds=seconds)


def test_the_first_rows_are_shown_small_and_put_in_order() -> None:
    bodies: list[Body] = []
    found = assisted(saying('{"order": [4, 2]}', bodies), reorder)
    assert found == Reordered([3, 1, 0, 2], [], None)
    assert given(bodies[0]) == {"task": "list", "wanted": ["fish"], "count": 4, "columns": 2}
    [sheet] = shown(bodies[0])
    with Image.open(io.BytesIO(sheet)) as opened:
        assert opened.size == (2 * grid.TILE, 2 * (grid.TILE + grid.STRIP))


def test_an_order_is_paid_for_once_and_belongs_to_its_query_and_version() -> None:
    bodies: list[Body] = []

    async def several(assisting: Assisting) -> list[Reordered]:
        other = [{"wanted": FISH}, {"wanted": FISH}, {"wanted": Wanted(["fish"], ["red"])}, {"version": "v2"}]
        return [await reorder(assisting, **one) for one in other]

    assert {tuple(found.order or ()) for found in assisted(saying('{"order": [2, 1]}', bodies), several)} == {
        (1, 0, 2, 3)
    }
    assert len(bodies) == 3


def test_pictures_that_cannot_be_read_in_time_are_not_shown() -> None:
    async def picture(row: Row) -> bytes | None:
        if row.id == "id-0":
            raise Unavailable("the source of the pictures", "failed")
        if row.id == "id-1":
            await asyncio.sleep(60)
        return RED

    async def ask(assisting: Assisting) -> Reordered:
        return await reorder(assisting, seconds=4)

    found = assisted(saying('{"order": [2, 1]}'), ask, picture=picture)
    assert found == Reordered([0, 1, 3, 2], [], None)


async def _fails(request: web.Request, body: Body) -> web.Response:
    return web.Response(status=503)


async def _has_no_time(request: web.Request, body: Body) -> web.Response:
    return web.Response(status=429)


async def _hangs(request: web.Request, body: Body) -> web.Response:
    await asyncio.sleep(60)
    return completion("late")


@pytest.mark.parametrize(
    ("answering", "told"), [(_fails, "fails (HTTP 503)"), (_has_no_time, "too many requests"), (_hangs, "in time")]
)
def test_an_assistant_that_does_not_answer_is_named_and_left_alone_for_a_while(answering: Answering, told: str) -> None:
    calls: list[Call] = []

    async def twice(assisting: Assisting) -> list[Reordered]:
        return [await reorder(assisting), await reorder(assisting)]

    found = assisted(answering, twice, seconds=0.3 if answering is _hangs else 30, told=calls.append)
    assert [one.order for one in found] == [None, None]
    assert all(one.shortfall and one.shortfall.reason == "assistant" for one in found)
    assert found[0].shortfall
    assert told in found[0].shortfall.sentence
    assert found[1].shortfall
    assert "the assistant" in found[1].shortfall.sentence
    assert len(calls) == 1


def test_who_gives_it_no_time_and_who_gets_nonsense_end_it_for_nobody() -> None:
    calls: list[Call] = []

    async def thrice(assisting: Assisting) -> list[Reordered]:
        return [await reorder(assisting, seconds=1), await reorder(assisting), await reorder(assisting)]

    async def answering(request: web.Request, body: Body) -> web.Response:
        if not calls:
            await asyncio.sleep(60)
        return completion("nonsense")

    found = assisted(answering, thrice, told=calls.append)
    assert [call.outcome for call in calls] == ["late", "answered", "answered"]
    assert found[2].shortfall
    assert "not what was asked for" in found[2].shortfall.sentence


def test_only_so_many_searches_wait_for_it_at_a_time() -> None:
    async def together(assisting: Assisting) -> list[Reordered]:
        queries = [Wanted([word]) for word in ("fish", "boat", "house")]
        return await asyncio.gather(*(reorder(assisting, wanted=query) for query in queries))

    async def answering(request: web.Request, body: Body) -> web.Response:
        await asyncio.sleep(0.1)
        return completion('{"order": [2, 1]}')

    found = assisted(answering, together)
    assert [one.order is None for one in found] == [False, False, True]
    assert found[2].shortfall
    assert "as many requests waiting as it may" in found[2].shortfall.sentence


def test_calls_and_tokens_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []
    for name in ("assistant_calls", "assistant_tokens"):
        monkeypatch.setattr(getattr(metrics, name), "count", lambda *by, **tags: told.append((*by, *tags.values())))
    counted(Call("judge", "answered", 0.5, 800, 1))
    assert told == [("judge", "answered"), (800, "judge", "in"), (1, "judge", "out")]
