"""The bytes of inputs, as they are read from their source by the rows of a frozen list."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pyarrow as pa

from retrieval.errors import UserError
from retrieval.sources.inputs import Row, rows_of
from retrieval.sources.kinds import KINDS, kind_of_row
from retrieval.sources.places import Places
from retrieval.sources.retries import with_retries
from retrieval.sources.rows import Content, RowReader, read_rows


class InputReader:
    """Reads rows of a list of inputs, of any kind. May be pickled; several threads may read at once.

    From one call to the next it holds what its kinds hold (Parquet: one row group of at most 128 MiB).

    Args:
        source: what was listed, which is opened when the first row is read.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._places = Places(source)
        self._readers: dict[str, RowReader] = {name: kind.reader() for name, kind in KINDS.items()}

    def __reduce__(self) -> tuple[type[InputReader], tuple[str]]:
        return type(self), (self.source,)

    def read(self, rows: pa.Table) -> list[Content]:
        """Return the bytes of each row of a list, in order, or why it has none.

        Never more than ``MAX_BYTES`` are read for one input that is not a row of Parquet. What an object store fails to
        give is retried a few times.

        Returns:
            For each row its bytes; or an ImageRejected, for a row that has a ``reason``, and for one of too many bytes;
            or an OSError that says what could not be read.
        """
        return read_rows(self._places, rows_of(rows), self._reader_of)

    def _reader_of(self, row: Row) -> RowReader:
        return self._readers[kind_of_row(row)]

    def check_source(self) -> None:
        """Distinguish an input that cannot be read from a source that is away: a mount that went, a store that is down.

        Raises:
            FileNotFoundError: there is nothing where the source was.
            OSError: it cannot be seen whether there is.
        """
        cause: UserError | None = None
        try:
            root = self._places.root
            there = with_retries(root.filesystem, root.exists) and not (root.local_path and _is_empty(root.local_path))
        except UserError as error:
            there, cause = False, error
        if not there:
            raise FileNotFoundError(
                f"the source {self.source} is not there any more, seen from {platform.node()}. When every machine of"
                " the job has it, run the job again: it resumes where it stopped"
            ) from cause


def _is_empty(folder: Path) -> bool:
    """Return whether there is nothing in a folder, as in one that nothing is mounted at."""
    with os.scandir(folder) as entries:
        return next(entries, None) is None
