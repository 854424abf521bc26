"""Pipelines in this process, one step after the other: for tests, tiny jobs and debuggers."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from cluster.cores import usable_cores
from cluster.profile import Placement
from pipelines.checkpoint import clean_pending, unwritten, write_noted
from pipelines.executor import ONE_CPU, RETRIES, Checkpoint, Each, Files, Shared, Sink, Workers

T = TypeVar("T")
_ROWS_READ = 65_536


class LocalShared(NamedTuple):
    """A value of this process."""

    value: Any

    def get(self) -> Any:
        return self.value


class LocalExecutor:
    """As ``pipelines.executor.Executor`` says. There is one worker of each kind, and rows arrive in order."""

    def share(self, value: T) -> Shared[T]:
        return LocalShared(value)

    def run(self, function: Callable[..., T], *arguments: Any, place: Placement = ONE_CPU) -> Shared[T]:
        return LocalShared(function(*arguments))

    def map(
        self,
        function: Callable[..., T],
        items: Iterable[tuple[Any, ...]],
        *,
        place: Placement = ONE_CPU,
        retry_on: Sequence[type[Exception]] = (),
    ) -> list[T]:
        return [_retried(function, item, tuple(retry_on)) for item in items]

    def map_shared(self, function: Callable[..., T], items: Iterable[tuple[Any, ...]]) -> list[Shared[T]]:
        return [LocalShared(function(*item)) for item in items]

    def as_completed(
        self, function: Callable[..., T], items: Iterable[tuple[Any, ...]], *, place: Placement = ONE_CPU
    ) -> Iterator[T]:
        return (function(*item) for item in items)

    def reduce(
        self, function: Callable[..., T], items: Iterable[tuple[Any, ...]], join: Callable[[T, T], T]
    ) -> Shared[T]:
        return LocalShared(functools.reduce(join, (function(*item) for item in items)))

    def stream(
        self, function: Callable[..., Iterator[T]], items: Iterable[tuple[Any, ...]], *, ahead: int
    ) -> Iterator[T]:
        for item in items:
            yield from function(*item)

    def shared_among(self, calls: int, place: Placement) -> Placement:
        return place.resized(max(place.cpus, usable_cores()))

    def tables(self, source: Files | Sequence[pa.Table], *stages: Each | Workers) -> Iterator[pa.Table]:
        made = _made(stages)
        for block in _blocks(source):
            yield from _through(block, made)

    def write(
        self,
        source: Files | Sequence[pa.Table],
        *stages: Each | Workers,
        sink: Sink,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        kept: tuple[Each, ...] = ()
        if checkpoint:
            clean_pending(checkpoint.folder, sink.folder)
            kept = unwritten(self, checkpoint)
        sink.folder.create()
        job, made = uuid.uuid4().hex, _made(stages)
        for number, block in enumerate(_blocks(source, *kept)):
            tables = list(_through(block, made))
            if not tables:
                continue
            rows, name = pa.concat_tables(tables), f"{job}_{number:06}"
            if checkpoint:
                write_noted(rows, name, sink, checkpoint)
            else:
                sink.write(rows, name)


def _retried(function: Callable[..., T], item: tuple[Any, ...], retry_on: tuple[type[Exception], ...]) -> T:
    for _ in range(RETRIES):
        try:
            return function(*item)
        except retry_on:
            continue
    return function(*item)


def _made(stages: Sequence[Each | Workers]) -> list[Each]:
    """Make a worker of each kind."""
    return [
        Each(stage.make(*stage.arguments), stage.settings.batch) if isinstance(stage, Workers) else stage
        for stage in stages
    ]


def _blocks(source: Files | Sequence[pa.Table], *stages: Each) -> Iterator[Iterator[pa.Table]]:
    """Yield the tables of each block. Where the source has no blocks of its own, all of it is one, or each table."""
    if not isinstance(source, Files):
        yield from (_through(iter([table]), stages) for table in source)
        return
    columns = list(source.columns) if source.columns is not None else None
    read = (
        table for name in source.names for table in source.folder.tables(name, columns, rows=source.block or _ROWS_READ)
    )
    tables = _through(read, stages)
    yield from ([rows] for rows in _cut(tables, source.block)) if source.block else [tables]  # type: ignore[misc]


def _through(tables: Iterable[pa.Table], stages: Sequence[Each]) -> Iterator[pa.Table]:
    """Yield what comes out of the last stage, but for empty tables."""
    for stage in stages:
        tables = map(stage.function, _cut(tables, stage.rows) if stage.rows else tables)
    return (table for table in tables if table.num_rows)


def _cut(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the rows of tables in tables of so many; fewer in the last one."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(each.num_rows for each in waiting) < rows:
            continue
        joined = pa.concat_tables(waiting)
        whole = joined.num_rows - joined.num_rows % rows
        yield from (joined.slice(start, rows) for start in range(0, whole, rows))
        waiting = [joined.slice(whole)]
    rest = [table for table in waiting if table.num_rows]
    if rest:
        yield pa.concat_tables(rest)
