"""A chat model that a test writes the answers of, at a loopback address, in a thread of its own."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

Body = dict[str, Any]
Answering = Callable[[web.Request, Body], Awaitable[web.StreamResponse]]


def completion(text: str | None, **further: Any) -> web.Response:
    """An answer of the protocol; ``further`` are fields of its one choice."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}, **further}
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})


def logprobs(**shares: float) -> Body:
    """What an answer says of its first token."""
    top = [{"token": token, "logprob": logprob} for token, logprob in shares.items()]
    return {"content": [{**top[0], "top_logprobs": top}]}


def given(body: Body) -> Body:
    """The JSON object of a request."""
    return json.loads(body["messages"][-1]["content"][0]["text"])


def shown(body: Body) -> list[bytes]:
    """The pictures of a request."""
    urls = [part["image_url"]["url"] for part in body["messages"][-1]["content"][1:]]
    return [base64.b64decode(url.removeprefix("data:image/jpeg;base64,")) for url in urls]


@contextmanager
def serving(answering: Answering | web.Application) -> Iterator[str]:
    """Run a server; yield the base URL that an assistant is given."""
    app = answering if isinstance(answering, web.Application) else _application(answering)
    ready, loop = threading.Event(), asyncio.new_event_loop()
    url, ending = "", asyncio.Event()

    async def run() -> None:
        nonlocal url
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        url = f"http://{host}:{port}/v1"
        ready.set()
        await ending.wait()
        await runner.cleanup()
        unfinished = asyncio.all_tasks() - {asyncio.current_task()}
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join(30)
        loop.close()


def _application(answering: Answering) -> web.Application:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await answering(request, await request.json())

    app = web.Application(client_max_size=2**24)
    app.router.add_route("*", "/{path:.*}", handle)
    return app
