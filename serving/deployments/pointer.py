"""Which index is served: the one that the store's setting names, or else the one that the service was started with."""

from __future__ import annotations

from retrieval.artifacts import Index
from serving.memory import Store


def pointer(started_with: str) -> str:
    """Return the name of the setting: services of different indexes may share a store."""
    return f"index of {started_with}"


def pointed_at(store: Store, started_with: str) -> Index:
    """Open the newest version of the index to serve, or the one version that is named.

    Raises:
        UserError: there is none, or its manifest is damaged.
    """
    return Index.open(store.setting(pointer(started_with)) or started_with)
