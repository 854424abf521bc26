"""Pipelines on Ray: calls are its tasks, maps over tables are datasets of Ray Data."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.data.block import BlockAccessor
from ray.data.checkpoint import CheckpointConfig
from ray.data.checkpoint.checkpoint_filter import CheckpointManager
from ray.data.datasource import BlockBasedFileDatasink

from cluster.profile import Placement, Stage
from cluster.room import cluster_nodes, preferred, room
from pipelines.checkpoint import clean_pending, unwritten
from pipelines.executor import ONE_CPU, RETRIES, Checkpoint, Each, Files, Shared, Sink, Workers
from pipelines.tables import read_tables

T = TypeVar("T")


class RayShared(NamedTuple):
    """A value in Ray's object store. Within a tuple, Ray hands on the reference, and arrays are mapped when read."""

    reference: ray.ObjectRef

    def get(self) -> Any:
        return ray.get(self.reference)


class RayExecutor:
    """As ``pipelines.executor.Executor`` says, on the Ray that this process is connected to."""

    def share(self, value: T) -> Shared[T]:
        return RayShared(ray.put(value))

    def run(self, function: Callable[..., T], *arguments: Any, place: Placement = ONE_CPU) -> Shared[T]:
        # By default a worker is kept for what comes next. On a CPU that saves the stage that follows the seconds in
        # which libraries are imported and models loaded; on a GPU it would hold memory that Ray counts as free.
        ends = {"max_calls": 1} if place.gpus else {}
        task = ray.remote(**place.options(), **ends)(function)
        reference = task.remote(*arguments)
        ray.wait([reference], fetch_local=False)  # a call that waited for it would hold a CPU meanwhile
        return RayShared(reference)

    def map(
        self,
        function: Callable[..., T],
        items: Iterable[tuple[Any, ...]],
        *,
        place: Placement = ONE_CPU,
        retry_on: Sequence[type[Exception]] = (),
    ) -> list[T]:
        again = {"max_retries": RETRIES, "retry_exceptions": list(retry_on) or False}
        task = ray.remote(**place.options(), **again)(function)
        return ray.get([task.remote(*item) for item in items])

    def map_shared(self, function: Callable[..., T], items: Iterable[tuple[Any, ...]]) -> list[Shared[T]]:
        task = ray.remote(max_retries=RETRIES)(function)
        made = [task.remote(*item) for item in items]
        if made:  # a call that waited for others would hold a CPU meanwhile
            ray.wait(made, num_returns=len(made), fetch_local=False)
        return [RayShared(reference) for reference in made]

    def as_completed(
        self, function: Callable[..., T], items: Iterable[tuple[Any, ...]], *, place: Placement = ONE_CPU
    ) -> Iterator[T]:
        task = ray.remote(**place.options(), max_retries=RETRIES)(function)
        waiting = [task.remote(*item) for item in items]
        while waiting:
            [done], waiting = ray.wait(waiting)
            yield ray.get(done)

    def reduce(
        self, function: Callable[..., T], items: Iterable[tuple[Any, ...]], join: Callable[[T, T], T]
    ) -> Shared[T]:
        task = ray.remote(max_retries=RETRIES)(function)
        # Without a CPU of its own, or it would wait behind all calls, whose results would pile up meanwhile.
        joined = ray.remote(num_cpus=0, max_retries=RETRIES)(join)
        waiting = [task.remote(*item) for item in items]
        while len(waiting) > 1:
            pair, waiting = ray.wait(waiting, num_returns=2, fetch_local=False)
            waiting.append(joined.remote(*pair))
        ray.wait(waiting, fetch_local=False)
        return RayShared(waiting[0])

    def stream(
        self, function: Callable[..., Iterator[T]], items: Iterable[tuple[Any, ...]], *, ahead: int
    ) -> Iterator[T]:
        # A private name. Without it, a generator yields all that it has into the object store at once.
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": ahead}
        task, at_once = ray.remote(**options)(_each), int(ray.cluster_resources().get("CPU", 1))
        running: deque[Any] = deque()
        try:
            for item in items:
                running.append(task.remote(function, *item))
                if len(running) > at_once:
                    yield from map(ray.get, running[0])
                    running.popleft()
            while running:
                yield from map(ray.get, running[0])
                running.popleft()
        finally:
            for left in running:  # held back, they would keep their CPUs
                ray.cancel(left)

    def shared_among(self, calls: int, place: Placement) -> Placement:
        alone = place.resized(place.cpus)
        _, nodes = preferred(alone, cluster_nodes())
        cpus = [node.cpus for node in nodes]
        return alone.resized(max(place.cpus, min(max(cpus, default=0), sum(cpus) // max(calls, 1))))

    def tables(self, source: Files | Sequence[pa.Table], *stages: Each | Workers) -> Iterator[pa.Table]:
        dataset = _mapped(_dataset(source), stages)
        batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
        return (table for table in batches if table.num_rows)

    def write(
        self,
        source: Files | Sequence[pa.Table],
        *stages: Each | Workers,
        sink: Sink,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        rows = source.block if isinstance(source, Files) else None
        if checkpoint is None:
            _mapped(_dataset(source), stages).write_datasink(_Datasink(sink, rows))
            return
        clean_pending(checkpoint.folder, sink.folder)
        kept = unwritten(self, checkpoint)
        context = ray.data.DataContext.get_current()
        # A dataset takes the context that there is when it is made.
        context.checkpoint_config = CheckpointConfig(
            id_column=checkpoint.column,
            checkpoint_path=checkpoint.folder.path,
            override_filesystem=checkpoint.folder.filesystem,
            checkpoint_manager_cls=_NothingToFilter,
            delete_checkpoint_on_success=False,
        )
        try:
            dataset = _dataset(source, *kept)
        finally:
            context.checkpoint_config = None
        _mapped(dataset, stages).write_datasink(_Datasink(sink, rows))


def _each(function: Callable[..., Iterator[T]], *arguments: Any) -> Iterator[T]:
    # Ray wants a generator function, and sends to it, which a mere iterator behind a ``yield from`` cannot take.
    for value in function(*arguments):  # noqa: UP028
        yield value


class _NothingToFilter(CheckpointManager):
    """Leaves it to ``pipelines.checkpoint`` to pass over what is done: Ray Data's filter is a pool of actors, which
    together with ours can hold every CPU of a small machine, so that nothing is left to read with.
    """

    def load_checkpoint(self, data_file_dir: str | None = None, data_file_filesystem: Any = None) -> tuple[None, int]:
        return None, 0


class _Datasink(BlockBasedFileDatasink):
    """A sink of ours. Ray Data's checkpoint asks ``filename_provider`` too how the names of a task's files begin."""

    def __init__(self, sink: Sink, rows: int | None) -> None:
        folder = sink.folder
        super().__init__(folder.path, filesystem=folder.filesystem, min_rows_per_file=rows, file_format="parquet")
        self.sink = sink

    def write_block(self, block: BlockAccessor, block_index: int, ctx: Any) -> None:
        name = self.filename_provider.get_filename_for_task(ctx.kwargs["write_uuid"], ctx.task_idx)
        self.sink.write(block.to_arrow(), name.removesuffix(".parquet"))


def _dataset(source: Files | Sequence[pa.Table], *kept: Each) -> Dataset:
    if not isinstance(source, Files):
        return _mapped(ray.data.from_arrow(list(source)), kept)
    # Else there are more blocks than files, of as few rows as there are CPUs for, which make uneven batches.
    options = {"override_num_blocks": len(source.names)} if source.block else {}
    dataset = read_tables(source.folder, source.names, **options)
    if source.columns is not None:
        dataset = dataset.select_columns(list(source.columns))
    dataset = _mapped(dataset, kept)
    return dataset.repartition(target_num_rows_per_block=source.block) if source.block else dataset


def _mapped(dataset: Dataset, stages: Sequence[Each | Workers]) -> Dataset:
    for number, stage in enumerate(stages):
        if isinstance(stage, Each):
            options = _of_workers(stages[number + 1]) if number + 1 < len(stages) else {}
            dataset = dataset.map_batches(stage.function, batch_size=stage.rows, batch_format="pyarrow", **options)
            continue
        settings = stage.settings
        dataset = dataset.map_batches(
            stage.make,
            fn_constructor_args=stage.arguments,
            batch_size=settings.batch,
            batch_format="pyarrow",
            compute=actor_pool(settings),
            **settings.options(),
        )
    return dataset


def _of_workers(stage: Each | Workers) -> dict[str, Any]:
    """Return the options with which Ray Data runs what is before a stage within that stage's workers. Where both use
    CPUs alone, a core then does whichever there is to do, in whatever ratio; on a GPU's worker it would keep that
    waiting.
    """
    if isinstance(stage, Workers) and not stage.settings.gpus:
        return {key: value for key, value in stage.settings.options().items() if key != "num_gpus"}
    return {}


def actor_pool(stage: Stage) -> ActorPoolStrategy:
    """Return the pool of a stage: as many actors at once as its nodes have room for, and up to ``max_actors`` if there
    come more.

    One CPU is left for tasks that read and write, without which a pool that holds every CPU would wait for ever.
    """
    nodes = cluster_nodes()
    most = room(stage, nodes)
    if stage.cpus:
        most = min(most, (sum(node.cpus for node in nodes) - 1) // stage.cpus)
    start = max(stage.min_actors, int(min(stage.max_actors, most)))
    return ActorPoolStrategy(min_size=stage.min_actors, max_size=stage.max_actors, initial_size=start)
