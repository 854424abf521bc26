"""A store of the query memory in Redis or Valkey, for replicas on any machine."""

from __future__ import annotations

import os
from typing import Any

from retrieval.errors import UserError
from serving.memory.store import StoreError

PASSWORD = "MINDSEYE_REDIS_PASSWORD"
"""The environment variable with the password of a URL that has none, so that it need not be written where URLs are."""


class RedisStore:
    """A store in Redis or Valkey, under keys that begin with ``mindseye:``. Its password may be in the URL, or in the
    environment (``PASSWORD``).

    Its own ``maxmemory`` is the bound. With ``maxmemory-policy volatile-lru`` it evicts the least recently used entries
    and never a setting: entries expire, a year after their last use, and settings do not.

    Raises:
        UserError: the package ``redis`` is missing, or the URL is wrong.
    """

    entries: int | None = None
    UNUSED_SECONDS = 365 * 24 * 3600
    WAIT_SECONDS = 2.0

    _CLAIM = """
        if redis.call('set', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
        if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
        return redis.call('pexpire', KEYS[1], ARGV[2])
    """
    _RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"

    def __init__(self, url: str) -> None:
        self._place = shown(url)
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise UserError(
                f"the store {self._place} needs the package redis: pip install 'mindseye[redis]'",
                code="package-missing",
                field="store",
            ) from error
        self._error = redis.RedisError
        try:
            self._redis: Any = redis.Redis.from_url(
                url,
                password=os.environ.get(PASSWORD),
                socket_timeout=self.WAIT_SECONDS,
                socket_connect_timeout=self.WAIT_SECONDS,
                retry=Retry(NoBackoff(), 1),  # a connection that the server closed meanwhile is opened again
            )
        except ValueError as error:
            raise UserError(
                f"{self._place} is no URL of a Redis ({error}); give redis://HOST:PORT/DB",
                code="bad-url",
                field="store",
            ) from None

    def _run(self, command: str, *values: Any, **options: Any) -> Any:
        try:
            return getattr(self._redis, command)(*values, **options)
        except self._error as error:
            raise StoreError(f"the query memory {self._place} cannot be used: {error}") from error

    def get(self, key: str) -> bytes | None:
        return self._run("getex", f"mindseye:entry:{key}", ex=self.UNUSED_SECONDS)

    def put(self, key: str, value: bytes) -> None:
        self._run("set", f"mindseye:entry:{key}", value, ex=self.UNUSED_SECONDS)

    def drop(self, key: str) -> None:
        self._run("delete", f"mindseye:entry:{key}")

    def claim(self, key: str, owner: str, seconds: float) -> bool:
        return bool(self._run("eval", self._CLAIM, 1, f"mindseye:lease:{key}", owner, max(1, round(seconds * 1000))))

    def release(self, key: str, owner: str) -> None:
        self._run("eval", self._RELEASE, 1, f"mindseye:lease:{key}", owner)

    def setting(self, name: str) -> str | None:
        found = self._run("get", f"mindseye:setting:{name}")
        return None if found is None else found.decode()

    def set_setting(self, name: str, value: str) -> None:
        self._run("set", f"mindseye:setting:{name}", value)


def shown(uri: str) -> str:
    """Return a store's URI as it may be shown: without user and password."""
    head, mark, rest = uri.partition("://")
    return f"{head}{mark}{rest.rpartition('@')[2]}" if mark else uri
