"""The query memory: what was imagined once, and the stores that keep it and outlive a replica.

sqlite:PATH            one file, for replicas on one machine; PATH must be on a local disk
redis://HOST:PORT/DB   (rediss://, unix://) Redis or Valkey, for replicas on any machine
memory:                this process alone; gone with it
"""

from __future__ import annotations

from retrieval.errors import UserError
from serving.memory.local import MemoryStore
from serving.memory.redis import RedisStore, shown
from serving.memory.sqlite import SqliteStore
from serving.memory.store import Store, StoreError

__all__ = ["Store", "StoreError", "open_store"]


def open_store(uri: str) -> Store:
    """Open the store at ``uri``, in one of the forms above.

    Raises:
        UserError: the URI has none of these forms, its file is no store, or the package ``redis`` is missing.
        StoreError: the file cannot be opened.
    """
    scheme, _, rest = uri.partition(":")
    if scheme == "sqlite" and rest:
        return SqliteStore(rest)
    if scheme in ("redis", "rediss", "unix"):
        return RedisStore(uri)
    if uri == "memory:":
        return MemoryStore()
    raise UserError(
        f"{shown(uri)} names no store; give sqlite:PATH, redis://HOST:PORT/DB or memory:",
        code="unknown-store",
        field="store",
    )
