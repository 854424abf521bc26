"""Asking a chat model: what is sent and where to, and every way in which it fails to answer."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import pytest
from aiohttp import web
from assistant_server import Answering, Body, completion, serving

from retrieval.assistant.address import check_address
from retrieval.assistant.endpoint import MAX_ANSWER_BYTES, Assistant, AssistantFault, Call, Talk

KEY = "sk-secret-of-nobody"
ASKED = [{"role": "user", "content": "hello"}]


def talked(url: str, *, seconds: float = 20, calls: list[Call] | None = None) -> str:
    """The text that the model at ``url`` answers."""

    async def run() -> str:
        assistant = Assistant(url, "model", key=KEY, seconds=seconds, told=None if calls is None else calls.append)
        try:
            choice = await assistant.talk().complete("ask", ASKED, max_tokens=5, seed=1)
            return choice.text
        finally:
            await assistant.close()

    return asyncio.run(run())


def fault(answering: Answering, *, seconds: float = 20) -> AssistantFault:
    """How asking ends; the call is counted with that word."""
    calls: list[Call] = []
    with serving(answering) as url, pytest.raises(AssistantFault) as error:
        talked(url, seconds=seconds, calls=calls)
    assert [call.outcome for call in calls] == [error.value.reason]
    return error.value


def test_what_is_sent_is_the_protocol_and_the_call_is_counted() -> None:
    seen: list[tuple[str, str, Body]] = []

    async def answering(request: web.Request, body: Body) -> web.Response:
        seen.append((request.path, request.headers["Authorization"], body))
        return completion("hi")

    calls: list[Call] = []
    with serving(answering) as url:
        assert talked(url + "/", calls=calls) == "hi"
    body = {"model": "model", "messages": ASKED, "max_tokens": 5, "temperature": 0, "seed": 1}
    assert seen == [("/v1/chat/completions", f"Bearer {KEY}", body)]
    [call] = calls
    assert (call.task, call.outcome, call.tokens_in, call.tokens_out) == ("ask", "answered", 7, 3)
    assert 0 < call.seconds < 20


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (302, "rejected"),
        (400, "rejected"),
        (401, "rejected"),
        (404, "rejected"),
        (429, "busy"),
        (500, "down"),
        (503, "down"),
    ],
)
def test_a_status_of_http_is_a_word(status: int, reason: str) -> None:
    async def answering(request: web.Request, body: Body) -> web.Response:
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    found = fault(answering)
    assert (found.reason, found.status) == (reason, status)
    assert str(status) in str(found) or status == 429


def test_a_redirect_is_not_followed() -> None:
    """Or the key and the pictures would go where the operator never said."""
    elsewhere: list[str] = []

    async def other(request: web.Request, body: Body) -> web.Response:
        elsewhere.append(request.headers.get("Authorization", ""))
        return completion("hi")

    with serving(other) as url:

        async def answering(request: web.Request, body: Body) -> web.Response:
            return web.Response(status=307, headers={"Location": f"{url}/chat/completions"})

        assert fault(answering).reason == "rejected"
    assert not elsewhere


def test_an_error_that_repeats_the_key_is_neither_shown_nor_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def answering(request: web.Request, body: Body) -> web.Response:
        return web.Response(status=401, text=f"incorrect key {request.headers['Authorization']}")

    with caplog.at_level(logging.DEBUG):
        found = fault(answering)
    assert KEY not in caplog.text + str(found) + repr(found) + repr(
        vars(Talk(Assistant("https://a/v1", "m", key=KEY), 1))
    )


def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        with pytest.raises(AssistantFault) as error:
            talked(f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
    assert error.value.reason == "down"
    assert KEY not in caplog.text


async def _hang(request: web.Request, body: Body) -> web.StreamResponse:
    await asyncio.sleep(60)
    return completion("late")


async def _drip(request: web.Request, body: Body) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    while True:
        await answer.write(b" ")
        await asyncio.sleep(0.02)


async def _break_off(request: web.Request, body: Body) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Length": "1000"})
    await answer.prepare(request)
    await answer.write(b'{"choices": ')
    assert request.transport
    request.transport.close()
    return answer


async def _endless(request: web.Request, body: Body) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    for _ in range(2 * MAX_ANSWER_BYTES // 2**16):
        await answer.write(b" " * 2**16)
    return answer


async def _bomb(request: web.Request, body: Body) -> web.StreamResponse:
    answer = web.Response(body=b" " * 2**24)
    answer.enable_compression(web.ContentCoding.gzip, strategy=0)
    return answer


def _json(value: Any) -> Answering:
    async def answering(request: web.Request, body: Body) -> web.StreamResponse:
        return web.json_response(value) if not isinstance(value, str) else web.Response(text=value)

    return answering


@pytest.mark.parametrize("answering", [_hang, _drip], ids=["a hang", "a byte now and then"])
def test_who_is_late_is_not_waited_for(answering: Answering) -> None:
    assert fault(answering, seconds=0.2).reason == "late"


@pytest.mark.parametrize(
    ("answering", "reason"),
    [
        (_break_off, "down"),
        (_endless, "malformed"),
        (_bomb, "malformed"),
        (_json("not json"), "malformed"),
        (_json("[" * 100_000), "malformed"),
        (_json([]), "malformed"),
        (_json({"choices": []}), "malformed"),
        (_json({"choices": [{"message": {"content": 5}}]}), "malformed"),
        (_json({"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": -5}}), "malformed"),
        (_json({"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 10**30}}), "malformed"),
        (_json({"choices": [{"message": {"content": "", "refusal": "I cannot"}}]}), "refused"),
        (_json({"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}), "refused"),
    ],
)
def test_an_answer_that_cannot_be_used(answering: Answering, reason: str) -> None:
    assert fault(answering).reason == reason


@pytest.mark.parametrize(
    "url",
    [
        "https://models.example.com/v1",
        "https://[2001:db8::1]:8443/v1",
        "http://127.0.0.1:8100/v1",
        "http://localhost/v1",
        "http://[::1]:1/v1",
        "http://127.8.9.1/v1",
    ],
)
def test_addresses_of_https_and_of_this_machine(url: str) -> None:
    check_address(url)


@pytest.mark.parametrize(
    "url",
    [
        *("http://models.example.com/v1", "http://10.0.0.1/v1", "http://169.254.169.254/v1", "http://0.0.0.0/v1"),
        *(
            "http://localhost.example.com/v1",
            "http://127.0.0.1.example.com/v1",
            "ftp://127.0.0.1/",
            "file:///etc/passwd",
        ),
        *("https://user:word@a/v1", "http://127.0.0.1@a/v1", "https://a/v1?key=word", "https://a/v1#word"),
        *(
            "https://",
            "https:///v1",
            "",
            "word",
            "https://a b/v1",
            "https://a/v1\n",
            "https://[::1/v1",
            "https://a:x/v1",
        ),
    ],
)
def test_other_addresses_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(ValueError, match="it must") as error:
        check_address(url)
    assert "word" not in str(error.value).replace("password", "")
