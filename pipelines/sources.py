"""The frozen list of a source's inputs, with files that have many inputs listed in parallel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from pipelines.running import current_executor
from retrieval.folder import Folder
from retrieval.sources.files import File
from retrieval.sources.frozen_list import Listing, freeze
from retrieval.sources.known import Known
from retrieval.sources.listing import inputs_of

_TABLES_AHEAD = 4


def list_inputs(source: str, into: Folder, *, known: Sequence[Known] = ()) -> Listing:
    """Write the list of a source's inputs to ``into``, as ``freeze`` does, with a task for each file of many inputs.

    Raises:
        UserError, OSError: as ``freeze``.
    """
    return freeze(source, into, known=known, inputs=_in_tasks)


def _in_tasks(root: Folder, files: Iterable[File]) -> Iterator[pa.Table]:
    return current_executor().stream(inputs_of, ((root, file) for file in files), ahead=_TABLES_AHEAD)
