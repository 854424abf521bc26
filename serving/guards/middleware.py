"""Who may ask, under which request id, and what every answer carries: plain ASGI middlewares.

From the outside in: ``RequestId``, ``SecurityHeaders``, ``LastResort``, ``Keys`` or ``LoopbackNames``,
``limits.RateLimit``, ``limits.BodyLimit``, the application. Each answers with ``protocol.FaultAnswer`` what it refuses.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import metrics
from serving.protocol import Fault, FaultAnswer

CALLER = "mindseye.caller"
"""Where ``Keys`` leaves in the scope whose key a request came with: a name that says nothing about the key."""

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being answered."""

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


def listed(scope: Scope, paths: Sequence[str]) -> bool:
    """Whether a request is for one of ``paths``; one that ends in ``/*`` stands for all that begin so."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return any(path.startswith(entry[:-1]) if entry.endswith("/*") else path == entry for entry in paths)


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
        begun = False

        async def watched_send(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except Exception:
            log.exception("request %s to %s failed", request_id.get(), scope["path"])
            if begun:  # the server cuts the connection, so that half an answer is not taken for a whole one
                raise
            message = "the service failed to answer; its log says why, under this request id"
            await refuse(scope, receive, send, 500, "internal", message)


@dataclass(frozen=True)
class Key:
    """An API key: the SHA-256 of it, since when it is not accepted any more, and a name for logs and limits."""

    digest: bytes
    expires: datetime | None
    name: str


MIN_KEY_CHARACTERS = 16


def read_keys(file: str | Path) -> list[Key]:
    """Read API keys: one a line, of at least 16 characters without spaces, perhaps followed by the day (2027-01-31) or
    time (2027-01-31T12:00:00+01:00) in UTC from which on it is not accepted. Blank lines and ``#`` comments are
    passed over.

    Raises:
        ValueError: the file is missing, has no key, or a line is wrong; the message names the line and not the key.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the API keys in {file} can not be read: {error}") from error
    keys = []
    for number, line in enumerate(lines, 1):
        key, *rest = line.split("#", 1)[0].split() or [""]
        if not key:
            continue
        where = f"{file}, line {number}"
        if len(key) < MIN_KEY_CHARACTERS or not (key.isascii() and key.isprintable()):
            remedy = "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"
            raise ValueError(f"{where}: an API key has at least {MIN_KEY_CHARACTERS} ASCII characters; {remedy}")
        digest = hashlib.sha256(key.encode()).digest()
        # The name is in logs and in Redis: a hash of the hash says nothing of what a key is compared with.
        keys.append(Key(digest, _moment(rest, where), f"key-{hashlib.sha256(digest).hexdigest()[:8]}"))
    if not keys:
        raise ValueError(f"{file} has no API key in it; write one a line")
    return keys


def _moment(words: list[str], where: str) -> datetime | None:
    if not words:
        return None
    try:
        [word] = words
        moment = datetime.fromisoformat(word)
    except ValueError:
        raise ValueError(f"{where}: after the key, only a day or time like 2027-01-31 is expected") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def is_loopback(host: str) -> bool:
    """Whether a name or an address can only mean this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, keys: Sequence[Key]) -> None:
    """Refuse to be reachable from other machines without API keys.

    Raises:
        ValueError: ``host``, which the service is bound to, is not the loopback, and there are no keys.
    """
    if not keys and not is_loopback(host):
        raise ValueError(
            f"bound to {host}, the service can be reached from other machines, so it needs API keys: name a file of"
            " them in serve.keys_file of the profile, or bind it to 127.0.0.1"
        )


class LoopbackNames(HttpMiddleware):
    """For a service without keys: refuses requests from other machines, and those that were sent to another name than
    this machine's own, as a web page's are that has its name point here (DNS rebinding) to read what only people at
    this machine should.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = _hostname(Headers(scope=scope).get("host", ""))
        client = (scope.get("client") or ("",))[0]
        only = "without API keys only requests {} are answered, and this one is {} {!r}"
        if not is_loopback(host):
            message = only.format("to 127.0.0.1 or localhost", "to", host)
            await refuse(scope, receive, send, 421, "host-unknown", message)
        elif _is_elsewhere(client):
            await refuse(scope, receive, send, 403, "key-missing", only.format("from this machine", "from", client))
        else:
            await self.app(scope, receive, send)


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host


def _is_elsewhere(client: str) -> bool:
    """Whether a client is on another machine; one that comes over a Unix socket, or in a test, has no address."""
    try:
        return not ipaddress.ip_address(client).is_loopback
    except ValueError:
        return False


class Keys(HttpMiddleware):
    """Lets in who has a key, as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``; all others only to ``open_paths``.

    How long the comparison takes depends neither on the key given nor on which one it equals.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[Key], *, open_paths: Sequence[str] = ()) -> None:
        super().__init__(app)
        self.keys = keys
        self.open_paths = open_paths

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if listed(scope, self.open_paths):
            await self.app(scope, receive, send)
            return
        given = _given_key(Headers(scope=scope))
        key = self._matching(given)
        if key and not (key.expires and key.expires <= datetime.now(UTC)):
            await self.app({**scope, CALLER: key.name}, receive, send)
            return
        if key:
            code, message = "key-expired", f"the API key is not accepted since {key.expires:%Y-%m-%d %H:%M %Z}"
        elif given:
            code, message = "key-unknown", "the API key is not known"
        else:
            code, message = "key-missing", "an API key is needed: send the header Authorization: Bearer KEY"
        await refuse(scope, receive, send, 401, code, message, {"WWW-Authenticate": "Bearer"})

    def _matching(self, given: str) -> Key | None:
        digest = hashlib.sha256(given.encode()).digest()
        found = None
        for key in self.keys:  # all of them, whichever it is
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def _given_key(headers: Headers) -> str:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
