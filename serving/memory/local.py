"""A store of the query memory in one process: for tests, and for services that need not remember."""

from __future__ import annotations

import threading
import time

from cachetools import LRUCache

from serving.memory.store import ENTRIES


class MemoryStore:
    """A store in this process."""

    def __init__(self, entries: int = ENTRIES) -> None:
        self.entries: int | None = entries
        self._values: LRUCache[str, bytes] = LRUCache(entries)
        self._leases: dict[str, tuple[str, float]] = {}
        self._settings: dict[str, str] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        with self._lock:
            return self._values.get(key)

    def put(self, key: str, value: bytes) -> None:
        with self._lock:
            self._values[key] = value

    def drop(self, key: str) -> None:
        with self._lock:
            self._values.pop(key, None)

    def claim(self, key: str, owner: str, seconds: float) -> bool:
        now = time.monotonic()
        with self._lock:
            owned_by, until = self._leases.get(key, (owner, now))
            if owned_by != owner and until > now:
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
