"""Which index is served: one replica of a small deployment says so to all others, on whatever nodes they run.

It lives as long as its application, and no other application sees it. Should its replica be lost, the rankers tell the
next one what they know: that is what revisions are for.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray import serve


@dataclass(frozen=True)
class Pointed:
    """URI of an index, or of one version of it; how many times it has been switched to another one; and what the
    service was started with.
    """

    index: str
    revision: int
    started_with: str


@serve.deployment
class Pointer:
    """Keeps what is to be served; at first, what the service was started with."""

    def __init__(self, started_with: str) -> None:
        self._pointed = Pointed(started_with, 0, started_with)

    async def read(self) -> Pointed:
        return self._pointed

    async def switch(self, index: str, known: int) -> Pointed:
        """Have another index served, in a revision that is newer than all that the caller knows of."""
        self._pointed = Pointed(index, max(self._pointed.revision, known) + 1, self._pointed.started_with)
        return self._pointed

    async def remind(self, pointed: Pointed) -> Pointed:
        """Restore what a ranker knows, unless something newer is known here; return what counts. A ranker that is about
        to end, since the application was deployed with another index, knows nothing that counts.
        """
        if pointed.started_with == self._pointed.started_with and pointed.revision > self._pointed.revision:
            self._pointed = pointed
        return self._pointed
