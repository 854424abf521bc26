"""The query memory: what was imagined once is never imagined again.

First an LRU in this process, then a store that other replicas share and that survives restarts (``serving.memory``).
While an entry is being made, everyone else who asks for it waits for that one making: in this process for the same
task, in others for the lease in the store.

A key stands for everything that the entry depends on, so nothing is ever invalidated: a service with other models has
other keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import time
import unicodedata
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from retrieval.artifacts import QuerySet
from retrieval.artifacts.columns import fixed_size_list, matrix
from retrieval.prompts import usable
from serving.memory.store import Store, StoreError

T = TypeVar("T")
Make = Callable[[], Awaitable["Remembered"]]

log = logging.getLogger("ray.serve")


def normalised(text: str) -> str:
    """Return the text that a query is remembered by, and that it is encoded and imagined from.

    Unicode NFC; each run of white space (of any kind: Unicode's, line breaks) becomes one space, and none is left at
    the ends; half a surrogate pair becomes a question mark. So texts that look alike are one query.

    Case stays: some tokenizers fold it and others do not, and the seeds of the images depend on it. Compatibility
    forms stay as well (NFKC would turn x² into x2).

    Raises:
        ValueError: the text is blank or longer than ``prompts.MAX_CHARACTERS``.
    """
    return " ".join(unicodedata.normalize("NFC", usable(text)).split())


def memory_key(
    text: str,
    kind: str,
    images: int,
    seed: int,
    *,
    generator_fingerprint: str,
    vision_fingerprint: str,
    vlm_fingerprint: str,
    templates: Sequence[str],
) -> str:
    """Return the key of a query, 64 hex digits: SHA-256 of canonical JSON of everything its entry depends on.

    Raises:
        ValueError: as ``normalised``.
    """
    parts = {
        "format": FORMAT,
        "text": normalised(text),
        "kind": kind,
        "images": images,
        "seed": seed,
        "generator": generator_fingerprint,
        "vision": vision_fingerprint,
        "vlm": vlm_fingerprint,
        "templates": list(templates),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


FORMAT = 1
_MAGIC = b"mindseye query %d\n" % FORMAT
_DIGEST = 16


@dataclass(frozen=True, eq=False)
class Remembered:
    """A query, encoded and imagined: a row of a QuerySet. K counts the accepted images and may be 0.

    Attributes:
        text, kind: as they were asked, the text normalised.
        vlm_D1: t, float32.
        vision_KD2: g_1…g_K, float32.
        seeds: of the accepted images, (K,) int64.
        indices: by which an answer names them, (K,) int64.
        thumbnails: a JPEG of each.
        rejected: a reason for each image that was not accepted.
    """

    text: str
    kind: str
    vlm_D1: np.ndarray
    vision_KD2: np.ndarray
    seeds: np.ndarray
    indices: np.ndarray
    thumbnails: list[bytes]
    rejected: list[str]

    def to_bytes(self) -> bytes:
        """Return the entry as bytes: a line that says what it is, a checksum, and one row in Arrow's IPC format."""
        row = pa.record_batch(
            {
                "text": [self.text],
                "kind": [self.kind],
                "vlm": fixed_size_list(self.vlm_D1[None].astype(np.float32, copy=False)),
                "vision": _one_list(fixed_size_list(self.vision_KD2.astype(np.float32, copy=False))),
                "seeds": _one_list(pa.array(self.seeds, pa.int64())),
                "indices": _one_list(pa.array(self.indices, pa.int64())),
                "thumbnails": _one_list(pa.array(self.thumbnails, pa.binary())),
                "rejected": _one_list(pa.array(self.rejected, pa.string())),
            }
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, row.schema) as writer:
            writer.write_batch(row)
        body = sink.getvalue().to_pybytes()
        return _MAGIC + hashlib.blake2b(body, digest_size=_DIGEST).digest() + body

    @classmethod
    def from_bytes(cls, data: bytes) -> Remembered:
        """Return the entry that ``to_bytes`` wrote.

        Raises:
            ValueError: the bytes are damaged, or of another format.
        """
        head, digest, body = data[: len(_MAGIC)], data[len(_MAGIC) :][:_DIGEST], data[len(_MAGIC) + _DIGEST :]
        if head != _MAGIC:
            raise ValueError(f"it begins with {head!r} where {_MAGIC!r} was expected")
        if hashlib.blake2b(body, digest_size=_DIGEST).digest() != digest:
            raise ValueError(f"the checksum of its {len(body):,} bytes is wrong")
        with pa.ipc.open_stream(body) as reader:
            row = reader.read_next_batch()
        return cls.of_row(row, row["indices"].flatten().to_numpy())

    @classmethod
    def of_row(cls, row: pa.RecordBatch, indices: np.ndarray) -> Remembered:
        """Return the entry of one row with the columns of a QuerySet; its text becomes ``normalised``."""
        return cls(
            text=normalised(row["text"][0].as_py()),
            kind=row["kind"][0].as_py(),
            vlm_D1=matrix(row["vlm"])[0],
            vision_KD2=matrix(row["vision"].flatten()),
            seeds=row["seeds"].flatten().to_numpy(),
            indices=indices,
            thumbnails=row["thumbnails"][0].as_py(),
            rejected=row["rejected"][0].as_py(),
        )

    def thumbnail(self, index: int) -> bytes | None:
        """Return the JPEG of the image that an answer names ``index``, None if there is none."""
        places = np.flatnonzero(self.indices == index)
        return self.thumbnails[places[0]] if len(places) else None


def _one_list(values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


class Memory:
    """The memory of one process, for one event loop.

    When the store fails, its failure is logged, and for some seconds this process remembers and makes on its own.

    Args:
        store: shared with the other replicas.
        entries: how many queries this process keeps itself, the longest unused going first.
        lease_seconds: after how long another replica takes over from one that died while making an entry.
    """

    PAUSES = 0.02, 1.0
    """Seconds between looks at an entry that another process is making: the first and, growing, the longest."""
    REST_SECONDS = 5.0
    """How long a store that failed is left alone: a query should not wait for its time limit each time."""

    def __init__(self, store: Store, entries: int = 10_000, *, lease_seconds: float = 15.0) -> None:
        self._store = store
        self._entries = entries
        self._lease_seconds = lease_seconds
        self._recent: OrderedDict[str, Remembered] = OrderedDict()
        self._flights: dict[str, _Flight] = {}
        self._resting_until = 0.0

    async def recall(self, key: str) -> Remembered | None:
        """Return an entry that exists."""
        if key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key]
        found = await self._ask(None, self._load, key)
        if found:
            self._keep(key, found)
        return found

    async def obtain(self, key: str, make: Make, *, seconds: float | None = None) -> tuple[Remembered, bool]:
        """Return an entry and whether it was there; if not, it is made, once for all who ask meanwhile.

        The making belongs to no request. Who is cancelled leaves it, and the last one to leave ends it: nobody wants
        it any more. Who has waited ``seconds`` leaves it too, but then it goes on to its end, so that who asks next
        finds the entry.

        Args:
            make: called at most once; what it returns is remembered. If it raises, all who wait get its exception,
                and nothing is remembered.

        Raises:
            TimeoutError: it was not there within ``seconds``.
        """
        if key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key], True
        flight = self._flights.get(key)
        if flight is None or flight.task.cancelling():
            flight = self._flights[key] = _Flight(self._fly(key, make))
            flight.task.add_done_callback(lambda task: self._landed(key, task))
        return await flight.wait(seconds)

    async def remembered_image(self, key: str, index: int) -> bytes | None:
        """Return the thumbnail of an imagined image, None if there is no such entry or image."""
        found = await self.recall(key)
        return found.thumbnail(index) if found else None

    async def close(self) -> None:
        """End what is being made, and give its leases back."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fly(self, key: str, make: Make) -> tuple[Remembered, bool]:
        owner = uuid.uuid4().hex
        try:
            # After the lease we look again: another process may have put the entry between our look and our lease.
            if found := await self._wait_for_lease(key, owner) or await self.recall(key):
                return found, True
            async with self._prolonged(key, owner):
                made = await make()
            self._keep(key, made)
            await self._ask(None, self._save, key, made)
            return made, False
        finally:
            await self._ask(None, self._store.release, key, owner)

    async def _wait_for_lease(self, key: str, owner: str) -> Remembered | None:
        """Return the entry that another process makes, or None as soon as it is ours to make."""
        pause, longest = self.PAUSES
        while True:
            if found := await self.recall(key):
                return found
            if await self._ask(True, self._store.claim, key, owner, self._lease_seconds):
                return None
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 1.5, longest)

    @asynccontextmanager
    async def _prolonged(self, key: str, owner: str) -> AsyncIterator[None]:
        async def prolong() -> None:
            while True:
                await asyncio.sleep(self._lease_seconds / 3)
                await self._ask(True, self._store.claim, key, owner, self._lease_seconds)

        task = asyncio.create_task(prolong())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def _landed(self, key: str, task: asyncio.Task) -> None:
        flight = self._flights.get(key)
        if flight and flight.task is task:  # else another has taken the place of this one, which was cancelled
            del self._flights[key]
        if not task.cancelled():
            task.exception()  # else asyncio complains of one that nobody fetched: all who waited may have left

    def _load(self, key: str) -> Remembered | None:
        data = self._store.get(key)
        try:
            return Remembered.from_bytes(data) if data else None
        except ValueError as error:
            log.warning("the remembered query %s is damaged and will be made again: %s", key, error)
            self._store.drop(key)
            return None

    def _save(self, key: str, entry: Remembered) -> None:
        self._store.put(key, entry.to_bytes())

    def _keep(self, key: str, entry: Remembered) -> None:
        self._recent[key] = entry
        self._recent.move_to_end(key)
        while len(self._recent) > self._entries:
            self._recent.popitem(last=False)

    async def _ask(self, otherwise: T, method: Callable[..., T], *values: Any) -> T:
        """Return what the store answers, ``otherwise`` if it can not."""
        if time.monotonic() < self._resting_until:
            return otherwise
        try:
            return await asyncio.to_thread(method, *values)
        except StoreError as error:
            self._resting_until = time.monotonic() + self.REST_SECONDS
            log.warning("%s; for %.0f s each replica remembers on its own", error, self.REST_SECONDS)
            return otherwise


class _Flight:
    """The making of one entry, and those who wait for it."""

    def __init__(self, making: Any) -> None:
        # In a context of its own: Serve would cancel the calls of the making together with the request that was first.
        self.task: asyncio.Task[tuple[Remembered, bool]] = asyncio.create_task(making, context=Context())
        self._waiting = 0
        self._goes_on = False

    async def wait(self, seconds: float | None) -> tuple[Remembered, bool]:
        self._waiting += 1
        try:
            # A task that is waited for is not cancelled with who waits; asyncio.wait does not raise at the end.
            done, _ = await asyncio.wait([self.task], timeout=seconds)
            if not done:
                self._goes_on = True
                raise TimeoutError(f"the query was not imagined within {seconds:g} s")
            return self.task.result()
        finally:
            self._waiting -= 1
            if not self._waiting and not self._goes_on:
                self.task.cancel()


def warm(store: Store, queries: QuerySet) -> int:
    """Put a query set into a store, so that its queries are answered without imagining; return how many there are.

    The keys have the models, templates, K and seed of its manifest: a service with others does not find them.

    Raises:
        ValueError: the query set does not say which models made it.
        StoreError: the store can not be used.
    """
    manifest = queries.manifest
    made_by = {role: record.fingerprint for role, record in manifest.models.items()}
    if missing := {"generator", "vision", "vlm"} - set(made_by):
        raise ValueError(f"the query set {queries.uri} does not say which model made it: {', '.join(sorted(missing))}")
    count = 0
    for name in queries.folder.files("queries", ".parquet"):
        for batch in queries.folder.read_table(name).to_batches():
            for i in range(batch.num_rows):
                row = batch.slice(i, 1)
                entry = Remembered.of_row(row, np.arange(len(row["thumbnails"][0])))
                key = memory_key(
                    entry.text,
                    entry.kind,
                    manifest.images,
                    manifest.seed,
                    generator_fingerprint=made_by["generator"],
                    vision_fingerprint=made_by["vision"],
                    vlm_fingerprint=made_by["vlm"],
                    templates=manifest.templates,
                )
                store.put(key, entry.to_bytes())
                count += 1
    return count
