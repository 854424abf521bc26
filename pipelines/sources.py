"""The frozen list of a source's inputs, with files that have many inputs listed in parallel."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import ray

from retrieval.folder import Folder
from retrieval.sources.files import File
from retrieval.sources.frozen_list import Listing, freeze
from retrieval.sources.known import Known
from retrieval.sources.listing import inputs_in_order, inputs_of

_TABLES_AHEAD = 4


def list_inputs(source: str, into: Folder, *, known: Sequence[Known] = ()) -> Listing:
    """Write the list of a source's inputs to ``into``, as ``freeze`` does; a task a file where Ray runs.

    Raises:
        UserError, OSError: as ``freeze``.
    """
    return freeze(source, into, known=known, inputs=_in_tasks if ray.is_initialized() else inputs_in_order)


def _in_tasks(root: Folder, files: Iterable[File]) -> Iterator[pa.Table]:
    """Yield the inputs of each file, in order: in a task for each, a few ahead."""
    task = ray.remote(inputs_of).options(num_returns="streaming", _generator_backpressure_num_objects=_TABLES_AHEAD)
    ahead = int(ray.cluster_resources().get("CPU", 1))
    running: deque = deque()
    for file in files:
        running.append(task.remote(root, file))
        if len(running) > ahead:
            yield from map(ray.get, running.popleft())
    while running:
        yield from map(ray.get, running.popleft())
