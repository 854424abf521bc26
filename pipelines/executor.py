"""What pipelines need of whatever runs them: calls, and maps over tables. On Ray it is a cluster, else this process.

A pipeline says what is done to what; the executor says where, in which order and how often after a failure. Functions
and their arguments are sent to other processes, so a function is one of a module, and what many calls read is shared
once. Rows arrive in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import pyarrow as pa

from cluster.profile import Placement, Stage
from retrieval.folder import Folder

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
ONE_CPU = Placement()
"""Of any node."""
RETRIES = 3
"""How often a call is retried that raised one of the errors given, or whose worker was lost."""


class Shared(Protocol[T_co]):
    """A read-only value that lies where workers reach it. It can be part of any argument."""

    def get(self) -> T_co:
        """Return the value; arrays of it are mapped, not copied, and must not be written to."""


class Files(NamedTuple):
    """Parquet files of one schema, as a source of tables."""

    folder: Folder
    names: Sequence[str]
    columns: Sequence[str] | None = None
    """By default all."""
    block: int | None = None
    """Rows that go through the stages, and into a file, together; by default as they come."""


class Each(NamedTuple):
    """A stage without state: tables to tables, wherever there is room."""

    function: Callable[[pa.Table], pa.Table]
    rows: int | None = None
    """Rows that the function is given at once, fewer at the end; by default as they come."""


class Workers(NamedTuple):
    """A stage of workers, each of which is made once and keeps what it has loaded: tables to tables."""

    make: Callable[..., Callable[[pa.Table], pa.Table]]
    """Makes a worker of ``arguments``; a class."""
    arguments: tuple[Any, ...]
    settings: Stage
    """How many workers, what each may use, and the rows that it is given at once."""


class Sink(Protocol):
    """Where tables are written, by any worker."""

    @property
    def folder(self) -> Folder: ...

    def write(self, rows: pa.Table, name: str) -> None:
        """Write to files of ``folder`` whose names begin with ``name``, over those of the same name: a write that was
        interrupted is repeated.
        """


class TableFiles(NamedTuple):
    """A sink of Parquet files, one for each block."""

    folder: Folder

    def write(self, rows: pa.Table, name: str) -> None:
        self.folder.write_table(f"{name}.parquet", rows)


class Checkpoint(NamedTuple):
    """Where a write notes which rows are written for good: see ``pipelines.checkpoint``."""

    folder: Folder
    column: str
    """An int64 that identifies a row."""


class Executor(Protocol):
    """Runs calls and maps over tables."""

    def share(self, value: T) -> Shared[T]:
        """Put a value where workers reach it."""

    def run(self, function: Callable[..., T], *arguments: Any, place: Placement = ONE_CPU) -> Shared[T]:
        """Call a function in a worker, and leave the result there. One that had GPUs ends with the call."""

    def map(
        self,
        function: Callable[..., T],
        items: Iterable[tuple[Any, ...]],
        *,
        place: Placement = ONE_CPU,
        retry_on: Sequence[type[Exception]] = (),
    ) -> list[T]:
        """Call a function with the arguments of each item; return the results in order.

        Args:
            place: what each call takes, and of which nodes.
            retry_on: errors after which a call is retried, ``RETRIES`` times.
        """

    def map_shared(self, function: Callable[..., T], items: Iterable[tuple[Any, ...]]) -> list[Shared[T]]:
        """Call a function with the arguments of each item; leave the results where they are made, in order.

        What a call raises is raised where its result is read, or here.
        """

    def as_completed(
        self, function: Callable[..., T], items: Iterable[tuple[Any, ...]], *, place: Placement = ONE_CPU
    ) -> Iterator[T]:
        """Call a function with the arguments of each item; yield the results as they come, holding none."""

    def reduce(
        self, function: Callable[..., T], items: Iterable[tuple[Any, ...]], join: Callable[[T, T], T]
    ) -> Shared[T]:
        """Call a function with the arguments of each item, and join the results two at a time, in any order, as they
        come, where they are made; leave there what remains. At least one item is given.
        """

    def stream(
        self, function: Callable[..., Iterator[T]], items: Iterable[tuple[Any, ...]], *, ahead: int
    ) -> Iterator[T]:
        """Call a generator with the arguments of each item; yield in order what they yield.

        Args:
            ahead: what a generator may yield before it is asked for.
        """

    def shared_among(self, calls: int, place: Placement) -> Placement:
        """Return the place of each of so many calls: no GPUs, and more CPUs where there are more of them than calls."""

    def tables(self, source: Files | Sequence[pa.Table], *stages: Each | Workers) -> Iterator[pa.Table]:
        """Send tables through stages, to the caller. None of them is empty."""

    def write(
        self,
        source: Files | Sequence[pa.Table],
        *stages: Each | Workers,
        sink: Sink,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Send tables through stages, and write what comes out.

        Args:
            checkpoint: what is noted there as written is left out, and what is written is noted there. What an
                interrupted write left half done is deleted first.
        """
