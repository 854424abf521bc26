"""Who may ask: API keys, or this machine alone where there are none. ASGI middlewares, and the file of keys."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from retrieval.errors import UserError
from serving.guards.middleware import CALLER, HttpMiddleware, listed, refuse


@dataclass(frozen=True)
class Key:
    """An API key: its SHA-256, when it expires, a name for logs and limits, and whether it may change the service."""

    digest: bytes
    expires: datetime | None
    name: str
    admin: bool = False


MIN_KEY_CHARACTERS = 16
ADMIN = "admin"
"""The word after a key that may do more than search."""


def read_keys(file: str | Path) -> list[Key]:
    """Read API keys: one a line, of at least 16 characters without spaces, perhaps followed by the word ``admin`` and
    by the day (2027-01-31) or time (2027-01-31T12:00:00+01:00), in UTC by default, at which it expires. Blank lines and
    ``#`` comments are skipped.

    Raises:
        UserError: the file is missing, has no key, or a line is wrong; the message names the line and not the key.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the API keys in {file} cannot be read: {error}", code="unreadable", field="serve.keys_file"
        ) from error
    keys = []
    for number, line in enumerate(lines, 1):
        key, *rest = line.split("#", 1)[0].split() or [""]
        if not key:
            continue
        where = f"{file}, line {number}"
        if len(key) < MIN_KEY_CHARACTERS or not (key.isascii() and key.isprintable()):
            remedy = "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"
            raise UserError(
                f"{where}: an API key has at least {MIN_KEY_CHARACTERS} ASCII characters; {remedy}",
                code="bad-key",
                field="serve.keys_file",
            )
        digest = hashlib.sha256(key.encode()).digest()
        # The name is in logs and in Redis: a hash of the hash says nothing of what a key is compared with.
        name = f"key-{hashlib.sha256(digest).hexdigest()[:8]}"
        admin = rest[:1] == [ADMIN]
        keys.append(Key(digest, _moment(rest[1:] if admin else rest, where), name, admin))
    if not keys:
        raise UserError(f"{file} has no API key in it; write one a line", code="no-keys", field="serve.keys_file")
    return keys


def _moment(words: list[str], where: str) -> datetime | None:
    if not words:
        return None
    try:
        [word] = words
        moment = datetime.fromisoformat(word)
    except ValueError:
        raise UserError(
            f"{where}: after the key, only the word {ADMIN} and a day or time like 2027-01-31 are expected",
            code="bad-expiry",
            field="serve.keys_file",
        ) from None
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
        UserError: ``host``, which the service is bound to, is not the loopback, and there are no keys.
    """
    if not keys and not is_loopback(host):
        raise UserError(
            f"bound to {host}, the service can be reached from other machines, so it needs API keys: name a file of"
            " them in serve.keys_file of the profile, or bind it to 127.0.0.1",
            code="keys-needed",
            field="host",
        )


class LoopbackNames(HttpMiddleware):
    """For a service without keys: refuses requests from other machines, and those that were sent to another name than
    this machine's own, as the requests of a web page are whose name was made to point here (DNS rebinding).
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
    """Lets requests with ``Authorization: Bearer KEY`` or ``X-API-Key: KEY`` pass; others only to ``open_paths``. To
    ``admin_paths`` it lets only admin keys pass.

    How long the comparison takes depends neither on the key given nor on which one it equals.
    """

    def __init__(
        self, app: ASGIApp, keys: Sequence[Key], *, open_paths: Sequence[str] = (), admin_paths: Sequence[str] = ()
    ) -> None:
        super().__init__(app)
        self.keys = keys
        self.open_paths = open_paths
        self.admin_paths = admin_paths

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if listed(scope, self.open_paths):
            await self.app(scope, receive, send)
            return
        given = _given_key(Headers(scope=scope))
        key = self._matching(given)
        if key and not (key.expires and key.expires <= datetime.now(UTC)):
            if listed(scope, self.admin_paths) and not key.admin:
                message = f"this needs an admin key: one with the word {ADMIN} after it in the file of keys"
                await refuse(scope, receive, send, 403, "admin-needed", message)
                return
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
