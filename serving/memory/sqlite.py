"""A store of the query memory in one SQLite file, for replicas on one machine."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from retrieval.errors import UserError
from serving.memory.store import ENTRIES, StoreError


class SqliteStore:
    """A store in one SQLite file, which several processes of a machine may use at once.

    The file is readable by its owner alone: it holds what people searched for.

    Raises:
        UserError: the file is something else, or of another version of mindseye.
        StoreError: the file cannot be opened or created.
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
        self.entries: int | None = entries
        self._checked_each = max(1, entries // 100)
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
            raise UserError(
                f"{self.path} is no query memory ({error}); {remedy}", code="wrong-kind", field="store"
            ) from error
        if found not in (0, self.FORMAT):
            raise UserError(
                f"{self.path} is a query memory of format {found}, not {self.FORMAT}; {remedy}",
                code="wrong-format",
                field="store",
            )
        self._database.executescript(f"BEGIN IMMEDIATE;{self._TABLES};PRAGMA user_version = {self.FORMAT};COMMIT")

    def _begin_log(self) -> None:
        # With a write-ahead log readers do not wait for writers. SQLite's own time limit does not cover several
        # processes that create the log at once.
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
            raise StoreError(f"the query memory {self.path} cannot be used: {error}") from error

    def _run(self, statement: str, *values: Any) -> list[tuple]:
        """Run one statement; return its rows, which a statement that writes has only where it says RETURNING."""
        with self._faults(), self._lock, closing(self._database.execute(statement, values)) as cursor:
            return cursor.fetchall()

    def get(self, key: str) -> bytes | None:
        found = self._run("SELECT value FROM entries WHERE key = ?", key)
        if not found:
            return None
        with suppress(StoreError):  # recording the use is not worth failing for
            self._run(f"UPDATE entries SET used = {self._NOW} WHERE key = ?", key)
        return found[0][0]

    def put(self, key: str, value: bytes) -> None:
        self._run(f"INSERT OR REPLACE INTO entries (key, used, value) VALUES (?, {self._NOW}, ?)", key, value)
        self._puts += 1
        if self._puts % self._checked_each == 0:  # counting takes its time: the bound may be 1% exceeded
            self._run(
                "DELETE FROM entries WHERE key IN (SELECT key FROM entries ORDER BY used"
                " LIMIT max(0, (SELECT count(*) FROM entries) - ?))",
                self.entries,
            )

    def drop(self, key: str) -> None:
        self._run("DELETE FROM entries WHERE key = ?", key)

    def claim(self, key: str, owner: str, seconds: float) -> bool:
        now = time.time()
        # A lease that ends much later than a new one would was made before the clock was set back. (It ends a little
        # later if its owner read the clock after us and wrote before us.)
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
