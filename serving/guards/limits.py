"""How much a caller may ask for: bytes of a body, seconds to send it, requests in a minute. ASGI middlewares."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Sequence
from typing import Any

from limits import RateLimitItemPerMinute
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.guards.middleware import HttpMiddleware, caller, listed, refuse
from serving.memory.redis import PASSWORD

log = logging.getLogger("ray.serve")

# The rest of the body is not read, so the connection cannot be used again.
_CLOSE = {"Connection": "close"}


class BodyLimit(HttpMiddleware):
    """Reads a request's body, within bounds, before the application sees the request.

    So nothing waits behind a slow sender, and at most ``max_bytes`` of a request are in memory.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float) -> None:
        super().__init__(app)
        self.max_bytes = max_bytes
        self.seconds = seconds

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        if declared in ("", "0") and "transfer-encoding" not in headers:  # there is no body (RFC 9112, 6.3)
            await self.app(scope, receive, send)
            return
        too_large = f"the body of a request may have at most {self.max_bytes:,} bytes"
        if declared.isdecimal() and int(declared) > self.max_bytes:
            await refuse(scope, receive, send, 413, "body-too-large", too_large, _CLOSE)
            return
        body = bytearray()
        try:
            async with asyncio.timeout(self.seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":  # nobody is there to be answered
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self.max_bytes:
                        await refuse(scope, receive, send, 413, "body-too-large", too_large, _CLOSE)
                        return
        except TimeoutError:
            too_slow = f"the body of a request must arrive within {self.seconds:g} s"
            await refuse(scope, receive, send, 408, "body-too-slow", too_slow, _CLOSE)
            return
        unread: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receive_again() -> Message:
            return unread.pop() if unread else await receive()

        await self.app(scope, receive_again, send)


class RateLimit(HttpMiddleware):
    """Lets each caller ask ``per_minute`` times in any 60 seconds: each API key, or each address where keys are off.

    With a Redis as the store the count is one for all replicas; else each replica counts by itself. While the Redis
    does not answer, nobody is refused.

    Args:
        counted: what is counted, in a word: each has a count of its own.
        paths: what counts; by default everything.
        free_paths: what does not count even so.
    """

    BACK_OFF_SECONDS = 5.0
    """How long a Redis that failed is not asked."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        per_minute: int,
        store: str = "memory:",
        counted: str = "requests",
        paths: Sequence[str] = ("/*",),
        free_paths: Sequence[str] = (),
    ) -> None:
        super().__init__(app)
        self.counted = counted
        self.paths = paths
        self.free_paths = free_paths
        self._item = RateLimitItemPerMinute(per_minute)
        self._limiter = MovingWindowRateLimiter(_storage(store))
        self._failed_until = 0.0

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        counts = listed(scope, self.paths) and not listed(scope, self.free_paths)
        wait = await self._seconds_to_wait(caller(scope)) if counts else None
        if wait is None:
            await self.app(scope, receive, send)
            return
        message = f"at most {self._item.amount:,} {self.counted} a minute are answered; try again in {wait} s"
        await refuse(scope, receive, send, 429, "too-many-requests", message, {"Retry-After": str(wait)})

    async def _seconds_to_wait(self, caller: str) -> int | None:
        if time.monotonic() < self._failed_until:
            return None
        try:
            if await self._limiter.hit(self._item, self.counted, caller):
                return None
            reset = (await self._limiter.get_window_stats(self._item, self.counted, caller)).reset_time
            return max(1, math.ceil(reset - time.time()))
        except StorageError as error:
            self._failed_until = time.monotonic() + self.BACK_OFF_SECONDS
            log.warning("requests are not counted for %.0f s: %s", self.BACK_OFF_SECONDS, error.storage_error)
            return None


def _storage(store: str) -> Any:
    scheme, mark, place = store.partition("://")
    if scheme not in ("redis", "rediss", "unix"):
        return storage_from_string("async+memory://")
    scheme = "redis+unix" if scheme == "unix" else scheme
    password = os.environ.get(PASSWORD)
    return storage_from_string(
        f"async+{scheme}{mark}{place}",
        implementation="redispy",
        key_prefix="mindseye:rate",
        **({"password": password} if password else {}),
        wrap_exceptions=True,
        socket_timeout=1,
        socket_connect_timeout=1,
    )
