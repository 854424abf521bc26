"""The query memory of a replica: what was imagined once is never imagined again.

First an LRU cache in this process, then a store that other replicas share and that survives restarts. While an entry
is being made, everyone else who asks for it waits for that one making (single flight): in this process for the same
task, in others for the lease in the store.

A key stands for everything that the entry depends on, so nothing is ever invalidated: a service with other models has
other keys. Only an entry that is unfinished is made again, after a while.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, Protocol, Self, TypeVar

from cachetools import LRUCache, TTLCache

from serving.memory.entry import DamagedEntry, Remembered
from serving.memory.flight import Flight
from serving.memory.picture import RememberedPicture
from serving.memory.store import Store, StoreError

T = TypeVar("T")
PICTURES = 1_000
"""Pictures that were given as evidence that a process caches, of about 0.1 MB each."""

log = logging.getLogger("ray.serve")


class Entry(Protocol):
    """What a memory keeps."""

    @property
    def unfinished(self) -> bool:
        """Whether it lacks what another attempt may bring."""

    def to_bytes(self) -> bytes: ...

    @classmethod
    def from_bytes(cls, data: bytes) -> Self: ...


E = TypeVar("E", bound=Entry)


class EntryMemory(Generic[E]):
    """The memory of one process for one kind of entry, for one event loop.

    When the store fails, the failure is logged, and for some seconds this process remembers and makes on its own.

    Args:
        kind: of entry.
        store: shared with the other replicas.
        entries: how many this process caches, the least recently used evicted first.
        lease_seconds: after how long another replica takes over from one that died while making an entry.
        prefix: of its keys in the store.
    """

    PAUSES = 0.02, 1.0
    """Seconds between probes for an entry that another process is making: the first and, with back-off, the longest."""
    BACK_OFF_SECONDS = 5.0
    """How long a store that failed is not asked: a query should not wait for its time limit each time."""
    UNFINISHED_SECONDS = 300.0
    """How long an entry that is unfinished is as good as a finished one, for the process that made it."""

    def __init__(
        self, kind: type[E], store: Store, entries: int, *, lease_seconds: float = 15.0, prefix: str = ""
    ) -> None:
        self.store = store
        self._kind = kind
        self._prefix = prefix
        self._lease_seconds = lease_seconds
        self._recent: LRUCache[str, E] = LRUCache(entries)
        self._unfinished: TTLCache[str, E] = TTLCache(entries, self.UNFINISHED_SECONDS)
        self._flights: dict[str, Flight[E]] = {}
        self._failed_until = 0.0

    async def recall(self, key: str, *, unfinished: bool = False) -> E | None:
        """Return an entry that exists.

        Args:
            unfinished: return one that is unfinished as well, for callers who could not have it made again.
        """
        if known := self._cached(key):
            return known
        found = await self._ask(None, self._load, key)
        if found and found.unfinished:
            return found if unfinished else None
        if found:
            self._recent[key] = found
        return found

    async def look_up(self, key: str, *, unfinished: bool = False) -> E | None:
        """Return an entry that exists, None only where the store says that there is none.

        Args:
            unfinished: as of ``recall``.

        Raises:
            Unavailable: the store does not answer, and this process does not know the entry.
        """
        from serving.deployments.calls import Unavailable  # loads Ray, which a process that only warms need not

        found = await self.recall(key, unfinished=unfinished)
        if found is None and self._backs_off():
            raise Unavailable("the query memory", "down")
        return found

    async def obtain(
        self, key: str, make: Callable[[], Awaitable[E]], *, seconds: float | None = None
    ) -> tuple[E, bool]:
        """Return an entry and whether it was there; if not, it is made, once for all who ask meanwhile.

        The making belongs to no request. A caller that is cancelled leaves it, and when the last one has left, it is
        cancelled too: nobody wants it any more. A caller that has waited ``seconds`` leaves as well, but then the
        making continues to its end, so that the next caller finds the entry.

        Args:
            make: called at most once; what it returns is remembered. If it raises, all who wait get its exception,
                and nothing is remembered.

        Raises:
            TimeoutError: it was not there within ``seconds``.
        """
        if known := self._cached(key):
            return known, True
        flight = self._flights.get(key)
        if flight is None or flight.task.cancelling():
            flight = self._flights[key] = Flight(self._fly(key, make))
            flight.task.add_done_callback(lambda task: self._landed(key, task))
        return await flight.wait(seconds)

    async def close(self) -> None:
        """Cancel what is being made, and release its leases."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _cached(self, key: str) -> E | None:
        return self._recent.get(key) or self._unfinished.get(key)

    async def _fly(self, key: str, make: Callable[[], Awaitable[E]]) -> tuple[E, bool]:
        owner = uuid.uuid4().hex
        try:
            # Probed again after the lease: another process may have written the entry between our probe and our lease.
            if found := await self._wait_for_lease(key, owner) or await self.recall(key):
                return found, True
            async with self._prolonged(key, owner):
                made = await make()
            (self._unfinished if made.unfinished else self._recent)[key] = made
            await self._ask(None, self._save, key, made)
            return made, False
        finally:
            await self._ask(None, self.store.release, self._prefix + key, owner)

    async def _wait_for_lease(self, key: str, owner: str) -> E | None:
        """Return the entry that another process makes, or None as soon as it is ours to make."""
        pause, longest = self.PAUSES
        while True:
            if found := await self.recall(key):
                return found
            if await self._ask(True, self.store.claim, self._prefix + key, owner, self._lease_seconds):
                return None
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 1.5, longest)

    @asynccontextmanager
    async def _prolonged(self, key: str, owner: str) -> AsyncIterator[None]:
        async def prolong() -> None:
            while True:
                await asyncio.sleep(self._lease_seconds / 3)
                await self._ask(True, self.store.claim, self._prefix + key, owner, self._lease_seconds)

        task = asyncio.create_task(prolong())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def _landed(self, key: str, task: asyncio.Task[tuple[E, bool]]) -> None:
        flight = self._flights.get(key)
        if flight and flight.task is task:  # else it was cancelled, and another flight has taken its place
            del self._flights[key]
        if not task.cancelled():
            task.exception()  # all callers may have left, and asyncio would warn of an exception nobody retrieved

    def _load(self, key: str) -> E | None:
        data = self.store.get(self._prefix + key)
        try:
            return self._kind.from_bytes(data) if data else None
        except DamagedEntry as error:
            log.warning("what is remembered as %s is damaged and will be made again: %s", key, error)
            self.store.drop(self._prefix + key)
            return None

    def _save(self, key: str, entry: E) -> None:
        self.store.put(self._prefix + key, entry.to_bytes())

    def _backs_off(self) -> bool:
        """Whether the store has failed just now, and is not asked."""
        return time.monotonic() < self._failed_until

    async def _ask(self, otherwise: T, method: Callable[..., T], *values: Any) -> T:
        """Return what the store answers, ``otherwise`` if it cannot."""
        if self._backs_off():
            return otherwise
        try:
            return await asyncio.to_thread(method, *values)
        except StoreError as error:
            self._failed_until = time.monotonic() + self.BACK_OFF_SECONDS
            log.warning("%s; for %.0f s each replica remembers on its own", error, self.BACK_OFF_SECONDS)
            return otherwise


class Memory(EntryMemory[Remembered]):
    """The memory of imagined queries."""

    def __init__(self, store: Store, entries: int = 10_000, *, lease_seconds: float = 15.0) -> None:
        super().__init__(Remembered, store, entries, lease_seconds=lease_seconds)

    async def remembered_image(self, key: str, index: int) -> bytes | None:
        """Return the thumbnail of an imagined image, None if there is no such entry or image; errors as ``look_up``."""
        found = await self.look_up(key, unfinished=True)
        return found.thumbnail(index) if found else None


class PictureMemory(EntryMemory[RememberedPicture]):
    """The memory of pictures that were given as evidence, in the same store."""

    def __init__(self, store: Store) -> None:
        super().__init__(RememberedPicture, store, PICTURES, prefix="picture:")
