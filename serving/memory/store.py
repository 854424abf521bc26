"""What the replicas of the service share and what outlives them: remembered queries, leases, settings.

    sqlite:PATH            one file, for replicas on one machine; PATH must be on a local disk
    redis://HOST:PORT/DB   (rediss://, unix://) Redis or Valkey, for replicas on any machine
    memory:                this process alone; gone with it

A lease is the right to make an entry, for a time: who holds one may prolong it by claiming it again; of one that has
run out, nobody is the holder. All methods may wait for a disk or a network: call them from a thread.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

ENTRIES = 100_000
"""Remembered queries that a store of ours keeps; with 8 images each, about 5 GB. The longest unused go first."""

_FORMS = "sqlite:PATH, redis://HOST:PORT/DB or memory:"


class StoreError(OSError):
    """The store does not answer or can not do what was asked; without it, the service goes on."""


class Store(Protocol):
    """Bytes by key, leases by key, settings by name. Several threads may use one.

    Every method raises ``StoreError`` if the store can not be used now.
    """

    def get(self, key: str) -> bytes | None:
        """Return an entry, which counts as a use of it."""

    def put(self, key: str, value: bytes) -> None:
        """Write an entry whole, in the place of what was there."""

    def drop(self, key: str) -> None:
        """Delete an entry, if it is there."""

    def claim(self, key: str, owner: str, seconds: float) -> bool:
        """Take or prolong the lease of a key; False if another owner holds it."""

    def release(self, key: str, owner: str) -> None:
        """Give a lease back, if ``owner`` still holds it."""

    def setting(self, name: str) -> str | None:
        """Return a setting, None if it was never set."""

    def set_setting(self, name: str, value: str) -> None:
        """Set a setting for all who share the store. Settings are never evicted."""


def open_store(uri: str) -> Store:
    """Open the store at ``uri`` (forms: see the module).

    Raises:
        ValueError: the URI has none of these forms, its file is no store, or the package ``redis`` is missing.
        StoreError: the file can not be opened.
    """
    scheme, _, rest = uri.partition(":")
    if scheme == "sqlite" and rest:
        return SqliteStore(rest)
    if scheme in ("redis", "rediss", "unix"):
        return RedisStore(uri)
    if uri == "memory:":
        return MemoryStore()
    raise ValueError(f"{shown(uri)} names no store; give {_FORMS}")


def shown(uri: str) -> str:
    """Return a store's URI as it may be shown: without user and password."""
    head, mark, rest = uri.partition("://")
    return f"{head}{mark}{rest.rpartition('@')[2]}" if mark else uri


class MemoryStore:
    """A store in this process."""

    def __init__(self, entries: int = ENTRIES) -> None:
        self._entries = entries
        self._values: OrderedDict[str, bytes] = OrderedDict()
        self._leases: dict[str, tuple[str, float]] = {}
        self._settings: dict[str, str] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: str, value: bytes) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._entries:
                self._values.popitem(last=False)

    def drop(self, key: str) -> None:
        with self._lock:
            self._values.pop(key, None)

    def claim(self, key: str, owner: str, seconds: float) -> bool:
        now = time.monotonic()
        with self._lock:
            holder, until = self._leases.get(key, (owner, now))
            if holder != owner and until > now:
                return False
            self._leases[key] = (owner, now + seconds)
            return True

    def release(self, key: str, owner: str) -> None:
        with self._lock:
            if self._leases.get(key, ("", 0))[0] == owner:
                del self._leases[key]

    def setting(self, name: str) -> str | None:
        return self._settings.get(name)

    def set_setting(self, name: str, value: str) -> None:
        self._settings[name] = value


class SqliteStore:
    """A store in one SQLite file, which several processes of a machine may use at once.

    The file is readable by its owner alone: it holds what people searched for.

    Raises:
        ValueError: the file is something else, or of another version of mindseye.
        StoreError: the file can not be opened or made.
    """

    FORMAT = 1
    WAIT_SECONDS = 2.0
    """How long to wait for another process that is writing."""

    _TABLES = """
        CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, used INTEGER NOT NULL, value BLOB NOT NULL);
        CREATE INDEX IF NOT EXISTS by_use ON entries (used);
        CREATE TABLE IF NOT EXISTS leases (key TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL);
        CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    """
    # Uses are counted, not timed: a clock may be set back.
    _NOW = "(SELECT coalesce(max(used), 0) + 1 FROM entries)"

    def __init__(self, path: str | Path, entries: int = ENTRIES) -> None:
        self.path = Path(path).expanduser().absolute()
        self._entries = entries
        self._puts = 0
        self._lock = threading.Lock()
        with self._faults():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)
            # Autocommit: each statement is a transaction of its own.
            self._database = sqlite3.connect(
                self.path, timeout=self.WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._prepare()

    def _prepare(self) -> None:
        remedy = "delete it, or give another file"
        try:
            self._begin_log()
            self._database.execute("PRAGMA synchronous = NORMAL")
            [[found]] = self._database.execute("PRAGMA user_version")
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path} is no query memory ({error}); {remedy}") from error
        if found not in (0, self.FORMAT):
            raise ValueError(f"{self.path} is a query memory of format {found}, not {self.FORMAT}; {remedy}")
        self._database.executescript(f"BEGIN IMMEDIATE;{self._TABLES};PRAGMA user_version = {self.FORMAT};COMMIT")

    def _begin_log(self) -> None:
        # With a write-ahead log readers do not wait for writers. SQLite does not wait by itself when several processes
        # begin one at once.
        end = time.monotonic() + self.WAIT_SECONDS
        while True:
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"the query memory {self.path} can not be used: {error}") from error

    def _run(self, statement: str, *values: Any) -> list[tuple]:
        """Run one statement; return its rows, which a statement that writes has only where it says RETURNING."""
        with self._faults(), self._lock, closing(self._database.execute(statement, values)) as cursor:
            return cursor.fetchall()

    def get(self, key: str) -> bytes | None:
        found = self._run("SELECT value FROM entries WHERE key = ?", key)
        if not found:
            return None
        with suppress(StoreError):  # noting that it was used is not worth failing
            self._run(f"UPDATE entries SET used = {self._NOW} WHERE key = ?", key)
        return found[0][0]

    def put(self, key: str, value: bytes) -> None:
        self._run(f"INSERT OR REPLACE INTO entries (key, used, value) VALUES (?, {self._NOW}, ?)", key, value)
        self._puts += 1
        if self._puts % max(1, self._entries // 100) == 0:  # counting takes its time: the bound may be 1% exceeded
            self._run(
                "DELETE FROM entries WHERE key IN (SELECT key FROM entries ORDER BY used"
                " LIMIT max(0, (SELECT count(*) FROM entries) - ?))",
                self._entries,
            )

    def drop(self, key: str) -> None:
        self._run("DELETE FROM entries WHERE key = ?", key)

    def claim(self, key: str, owner: str, seconds: float) -> bool:
        now = time.time()
        # A lease that ends much later than one could by now was made before the clock was set back. (A little later
        # it ends when its holder came after us and wrote before us.)
        return bool(
            self._run(
                "INSERT INTO leases (key, owner, until) VALUES (?1, ?2, ?3 + ?4) ON CONFLICT (key) DO UPDATE"
                " SET owner = ?2, until = ?3 + ?4 WHERE owner = ?2 OR until <= ?3 OR until > ?3 + 2 * ?4 RETURNING key",
                *(key, owner, now, seconds),
            )
        )

    def release(self, key: str, owner: str) -> None:
        self._run("DELETE FROM leases WHERE key = ? AND owner = ?", key, owner)

    def setting(self, name: str) -> str | None:
        found = self._run("SELECT value FROM settings WHERE name = ?", name)
        return found[0][0] if found else None

    def set_setting(self, name: str, value: str) -> None:
        self._run("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", name, value)


class RedisStore:
    """A store in Redis or Valkey, under keys that begin with ``mindseye:``.

    Its own ``maxmemory`` is the bound. With ``maxmemory-policy volatile-lru`` it evicts the longest unused entries and
    never a setting: entries expire, a year after their last use, and settings do not.

    Raises:
        ValueError: the package ``redis`` is missing, or the URL is wrong.
    """

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
            raise ValueError(
                f"the store {self._place} needs the package redis: pip install 'mindseye[redis]'"
            ) from error
        self._error = redis.RedisError
        try:
            self._redis: Any = redis.Redis.from_url(
                url,
                socket_timeout=self.WAIT_SECONDS,
                socket_connect_timeout=self.WAIT_SECONDS,
                retry=Retry(NoBackoff(), 1),  # a connection that the server closed meanwhile is opened again
            )
        except ValueError as error:
            raise ValueError(f"{self._place} is no URL of a Redis ({error}); give redis://HOST:PORT/DB") from None

    def _run(self, command: str, *values: Any, **options: Any) -> Any:
        try:
            return getattr(self._redis, command)(*values, **options)
        except self._error as error:
            raise StoreError(f"the query memory {self._place} can not be used: {error}") from error

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
