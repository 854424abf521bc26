"""What a store of the query memory does: remembered queries, leases, settings, for replicas to share.

A lease is the right to make an entry, for a time. Its owner may prolong it by claiming it again; a lease that has run
out has no owner. All methods may wait for a disk or a network: call them from a thread.
"""

from __future__ import annotations

from typing import Protocol

ENTRIES = 100_000
"""Remembered queries that a store of ours keeps; with 8 images each, about 5 GB. The least recently used go first."""


class StoreError(OSError):
    """The store does not answer or cannot do what was asked. The service works without it."""


class Store(Protocol):
    """Bytes by key, leases by key, settings by name. Several threads may use one.

    Every method raises ``StoreError`` if the store cannot be used now.

    Attributes:
        entries: how many it keeps, the least recently used evicted first; None if that is set elsewhere.
    """

    entries: int | None

    def get(self, key: str) -> bytes | None:
        """Return an entry, which counts as a use of it."""

    def put(self, key: str, value: bytes) -> None:
        """Write an entry whole, in the place of what was there."""

    def drop(self, key: str) -> None:
        """Delete an entry, if it is there."""

    def claim(self, key: str, owner: str, seconds: float) -> bool:
        """Take or prolong the lease of a key; False if another owner holds it."""

    def release(self, key: str, owner: str) -> None:
        """Release a lease, if ``owner`` still holds it."""

    def setting(self, name: str) -> str | None:
        """Return a setting, None if it was never set."""

    def set_setting(self, name: str, value: str) -> None:
        """Set a setting for all who share the store. Settings are never evicted."""
