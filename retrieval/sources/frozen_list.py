"""The frozen list of a source's inputs: written down once, so that a job that resumes tomorrow has the same inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.sources.files import File
from retrieval.sources.inputs import INPUTS, hashes_of
from retrieval.sources.kinds import IMAGES, KINDS
from retrieval.sources.known import Known, KnownInputs, is_in_sorted, keys_of
from retrieval.sources.listing import FolderWalk, inputs_in_order, single_file
from retrieval.sources.metadata import common_schema, conform
from retrieval.sources.places import open_source

ROWS_PER_FILE, ROWS_PER_GROUP = 65_536, 4_096


@dataclass(frozen=True)
class Listing:
    """What ``freeze`` wrote."""

    count: int
    """Rows of the list, those with a reason included."""
    digest: str
    """Hash over path, size and time of change of every row, in order."""
    root: Folder
    """What the list's relative file names are relative to."""
    metadata: tuple[str, ...]
    """Names of the columns that the source has beside ours."""
    skipped: int
    """Inputs that are left out, since a known list has the same path, size and time of change."""
    changed: tuple[str, ...]
    """Paths that a known list has with another size or time of change; they are listed again."""


def freeze(
    source: str,
    into: Folder,
    *,
    known: Sequence[Known] = (),
    inputs: Callable[[Folder, Iterable[File]], Iterator[pa.Table]] = inputs_in_order,
) -> Listing:
    """Write the list of a source's inputs to ``into``, as files of at most 65,536 rows: ``000000.parquet`` and so on.

    What is at ``into`` is deleted first. A folder is walked folder by folder, in the order of names, so the entries of
    no more than one are in memory. The label of a file is the first-level folder that it lies in. Hidden files and
    folders (``.name``) are passed over, and so is what lies beside Parquet files or tars and is no image.

    Args:
        source: a folder or a file, as a local path or URI.
        into: where to write.
        known: lists of earlier runs over the same source: inputs that one of them has and that have not changed since
            are left out. That costs 16 bytes of memory for each row of theirs.
        inputs: yields the inputs of files that have many (``inputs_of``), in the order of the files.

    Raises:
        UserError: there is nothing at ``source``, or nothing that could be embedded.
        OSError: the source cannot be listed now; a PermissionError says what to do about credentials.
    """
    root, name = open_source(source)
    writer = ListWriter(into, KnownInputs(known))
    files = _write_folder(root, writer) if name is None else [single_file(root, name)]
    for table in inputs(root, files):
        writer.add(table)
    uri = Folder(source).uri
    if not writer.count and not writer.skipped:
        what = "has no inputs" if files else "is a folder without files"
        expected = ", ".join(kind.title for kind in KINDS.values())
        raise UserError(f"{uri} {what}; expected one of {expected}", code="no-inputs", field="source")
    if writer.rejected == writer.count and not writer.skipped:
        more = f" (and {writer.rejected - 1:,} more like it)" if writer.rejected > 1 else ""
        raise UserError(
            f"nothing in {uri} can be embedded: {writer.first_detail}{more}", code="no-usable-input", field="source"
        )
    return writer.finish(root)


def _write_folder(root: Folder, writer: ListWriter) -> list[File]:
    """Write the files of a folder as inputs; or return those that have inputs in them, if there are such."""
    walk = FolderWalk(root)
    for files in walk.files():
        if not walk.containers:
            for table in KINDS[IMAGES].inputs(root, files):
                writer.add(table, unique=True)
    if walk.containers:
        writer.clear()
        for table in KINDS[IMAGES].inputs(root, walk.unusable):
            writer.add(table)
    return walk.containers


class ListWriter:
    """Writes a list of inputs, file by file as rows come. Only when all have come are the types of its columns known,
    so files that have others are written again at the end.

    Args:
        into: an empty folder.
        known: inputs to leave out.
    """

    def __init__(self, into: Folder, known: KnownInputs) -> None:
        self._into = into
        self._known = known
        self.clear()

    def clear(self) -> None:
        """Forget and delete what was written."""
        self._into.delete()
        self._into.create()
        self.count = self.skipped = self.rejected = 0
        self.changed: list[str] = []
        self.first_detail = ""
        self._digest = hashlib.sha256()
        self._waiting: list[pa.Table] = []
        self._hashes: list[np.ndarray] = []
        self._files: list[pa.Schema] = []

    def add(self, table: pa.Table, *, unique: bool = False) -> None:
        """Add rows: ``INPUTS`` without ``input``, and metadata.

        Args:
            unique: these paths are of no other row. Where they might be, that is checked at the end, for 8 bytes of
                memory a row.
        """
        keys = keys_of(table)
        if len(self._known):
            paths = table["path"].to_pylist()
            is_unchanged, is_known = self._known.look_up(paths, keys)
            self.changed += [paths[i] for i in np.flatnonzero(is_known & ~is_unchanged)]
            self.skipped += int(is_unchanged.sum())
            table = table.filter(pa.array(~is_unchanged))
            keys = [keys[i] for i in np.flatnonzero(~is_unchanged)]
        for key in keys:
            self._digest.update(f"{key}\0".encode())
        details = pc.drop_null(table["detail"])
        self.rejected += len(details)
        if not self.first_detail and len(details):
            self.first_detail = details[0].as_py()
        if not unique:
            self._hashes.append(hashes_of(table["path"].to_pylist()))
        self.count += table.num_rows
        self._waiting.append(table)
        if sum(len(waiting) for waiting in self._waiting) >= ROWS_PER_FILE:
            self._write_waiting(all=False)

    def finish(self, root: Folder) -> Listing:
        """Write what waits, and settle the columns' types and paths that more than one input has."""
        self._write_waiting(all=True)
        schema = common_schema(self._files)
        repeated = self._repeated()
        met: set[str] = set()
        for number, written in enumerate(self._files):
            if written.equals(schema) and not len(repeated):
                continue
            table = conform(self._into.read_table(_name(number)), schema)
            self._write(number, _with_own_paths(table, repeated, met) if len(repeated) else table)
        names = tuple(schema.names[len(INPUTS) :])
        return Listing(self.count, self._digest.hexdigest(), root, names, self.skipped, tuple(self.changed))

    def _write_waiting(self, *, all: bool) -> None:
        if not self._waiting:
            return
        schema = common_schema([table.schema for table in self._waiting])
        rows = pa.concat_tables([conform(table, schema) for table in self._waiting])
        while rows.num_rows >= ROWS_PER_FILE or (all and rows.num_rows):
            number = len(self._files)
            table = rows.slice(0, ROWS_PER_FILE)
            ordinals = pa.array(np.arange(len(table), dtype=np.int64) + number * ROWS_PER_FILE)
            table = table.set_column(0, schema.field(0), ordinals)
            self._files.append(schema)
            self._write(number, table)
            rows = rows.slice(len(table))
        self._waiting = [rows] if rows.num_rows else []

    def _write(self, number: int, table: pa.Table) -> None:
        # Small groups, so that a few rows of a long list are read without the others.
        with self._into.writing(_name(number)) as stream:
            pq.write_table(table, stream, row_group_size=ROWS_PER_GROUP)

    def _repeated(self) -> np.ndarray:
        if not self._hashes:
            return np.empty(0, np.uint64)
        hashes = np.concatenate(self._hashes)
        self._hashes = []
        hashes.sort()
        return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def _name(number: int) -> str:
    return f"{number:06d}.parquet"


def _with_own_paths(table: pa.Table, repeated: np.ndarray, met: set[str]) -> pa.Table:
    """Refuse inputs whose path an earlier one has, under a path of their own; ``met`` has the paths so far."""
    paths = table["path"].to_pylist()
    again = []
    for i in np.flatnonzero(is_in_sorted(repeated, hashes_of(paths))):
        if paths[i] in met:
            again.append(i)
        met.add(paths[i])
    if not again:
        return table
    columns = {name: table[name].to_pylist() for name in ("path", "reason", "detail", "input")}
    for i in again:
        if columns["reason"][i] is None:
            columns["reason"][i] = "same-path"
            columns["detail"][i] = f"an earlier input has the path {paths[i]} too; give each a path of its own"
        columns["path"][i] = f"{paths[i]}#{columns['input'][i]}"
    for name in ("path", "reason", "detail"):
        table = table.set_column(table.column_names.index(name), name, pa.array(columns[name], pa.string()))
    return table
