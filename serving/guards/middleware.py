"""Request ids, security headers, the last handler of errors, and what all middlewares here share. Plain ASGI.

From the outside in: ``FetchWhenAsked``, ``RequestId``, ``SecurityHeaders``, ``LastResort``, ``keys.Keys`` or
``keys.LoopbackNames``, ``places.Places``, ``limits.RateLimit``, ``limits.BodyLimit``, the application. Each answers
with ``protocol.FaultAnswer`` what it refuses.
"""

from __future__ import annotations

import logging
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import metrics
from serving.protocol import Fault, FaultAnswer
from serving.ray_names import fetched_when_asked

CALLER = "mindseye.caller"
"""Where ``Keys`` leaves in the scope whose key a request came with: a name that says nothing about the key."""

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being answered."""

INTERNAL = "the service failed to answer; its log says why, under this request id"
"""The sentence for an exception that is no fault of the request."""

log = logging.getLogger("ray.serve")


class HttpMiddleware(ABC):
    """A middleware that looks at HTTP requests and lets everything else pass."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handle = self.handle if scope["type"] == "http" else self.app
        await handle(scope, receive, send)

    @abstractmethod
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have ``self.app`` answer it."""


async def refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    code: str,
    message: str,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer with a fault, and count it."""
    metrics.refused.count(code=code)
    answer = FaultAnswer(error=Fault(code=code, message=message), request_id=request_id.get())
    await JSONResponse(answer.model_dump(), status, headers)(scope, receive, send)


def caller(scope: Scope) -> str:
    """Who asks: the name of an API key, or an address where keys are off."""
    client = scope.get("client")
    return scope.get(CALLER) or (client[0] if client else "unknown")


def listed(scope: Scope, paths: Sequence[str]) -> bool:
    """Whether a request is for one of ``paths``; one that ends in ``/*`` stands for all that begin so."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return any(path.startswith(entry[:-1]) if entry.endswith("/*") else path == entry for entry in paths)


class FetchWhenAsked(HttpMiddleware):
    """Has nothing of a request fetched from Serve's proxy before somebody wants it."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, fetched_when_asked(receive), send)


class RequestId(HttpMiddleware):
    """Gives each request an id, for ``request_id`` and the header ``X-Request-Id`` of the answer: the one it came with
    if that is 1 to 64 letters, digits and ``._-``, else a new one.

    Args:
        echo: set the header. Serve's own proxy does so by itself, and twice would be once too often.
    """

    SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")

    def __init__(self, app: ASGIApp, *, echo: bool = True) -> None:
        super().__init__(app)
        self.echo = echo

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        chosen = given if self.SANE.fullmatch(given) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start" and self.echo:
                MutableHeaders(scope=message)["X-Request-Id"] = chosen
            await send(message)

        before = request_id.set(chosen)
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            request_id.reset(before)


class SecurityHeaders(HttpMiddleware):
    """Tells browsers to load nothing from elsewhere, to guess no types, to tell nobody, and to frame nothing of this
    service. A header that the application set stays.
    """

    HEADERS: Mapping[str, str] = {
        "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none';"
        " base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class LastResort(HttpMiddleware):
    """Turns an exception that nothing else caught into an answer that says nothing of it, and a log entry that does."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except Exception:
            log.exception("request %s to %s failed", request_id.get(), scope["path"])
            if started:  # the server cuts the connection, so that half an answer is not taken for a whole one
                raise
            await refuse(scope, receive, send, 500, "internal", INTERNAL)
