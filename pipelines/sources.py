"""Where images come from, as a frozen list of inputs.

A source is an image folder (flat, or with class folders, of any depth), Parquet with the bytes in it, WebDataset tars,
or a list of URIs (Parquet, CSV, text), at any pyarrow URI. ``list_inputs`` writes down once what is in it, as Parquet
of the columns ``retrieval.sources.reader.INPUTS``, so that a job that goes on tomorrow has the same inputs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

import pyarrow as pa
import ray

from pipelines.input_list import Known, Listing, ListWriter, Seen, difference
from retrieval.folder import Folder
from retrieval.sources.contents import inputs_of
from retrieval.sources.files import IMAGE_SUFFIXES, File, files_in, inputs_table, kind_of, pieces, suffix
from retrieval.sources.reader import base_of

__all__ = ["Known", "Listing", "difference", "list_inputs"]

_TABLES_AHEAD = 4


def list_inputs(source: str, into: Folder, *, known: Sequence[Known] = ()) -> Listing:
    """Write the list of a source's inputs to ``into``, as files of at most 65,536 rows: ``000000.parquet`` and so on.

    What is at ``into`` is deleted first. A folder is walked folder by folder, in the order of names, so the entries of
    no more than one are in memory; files with many inputs (Parquet, tars) are listed in parallel where Ray runs. The
    label of a file is the first-level folder that it lies in. Hidden files and folders (``.name``) are passed over, and
    so is what lies beside Parquet files or tars and is no image.

    Args:
        source: a folder or a file, as a local path or URI.
        into: where to write.
        known: lists of earlier runs over the same source: inputs that one of them has and that have not changed since
            are left out. That costs 16 bytes of memory for each row of theirs.

    Raises:
        ValueError: there is nothing at ``source``, or nothing that could be embedded.
        OSError: the source can not be listed now; a PermissionError says what to do about credentials.
    """
    root, name = base_of(source)
    writer = ListWriter(into, Seen(known))
    files = _list_folder(root, writer) if name is None else [_single_file(root, name)]
    for table in _listed(root, files):
        writer.add(table)
    if not writer.count and not writer.skipped:
        expected = "expected images, in class folders or not, Parquet, tars, or a list of URIs"
        what = "is a folder without files" if not files else "has no inputs"
        raise ValueError(f"{Folder(source).uri} {what}; {expected}")
    if writer.refused == writer.count and not writer.skipped:
        more = f" (and {writer.refused - 1:,} more like it)" if writer.refused > 1 else ""
        raise ValueError(f"nothing in {Folder(source).uri} can be embedded: {writer.first_detail}{more}")
    return writer.finish(root)


def _single_file(root: Folder, name: str) -> File:
    if kind_of(name) is None:
        raise ValueError(
            f"{(root / name).uri} is a file; expected an image folder, or a file whose name ends in .parquet, .tar, or,"
            " for a list of URIs, in .csv or .txt"
        )
    info = root.filesystem.get_file_info(f"{root.path}/{name}")
    return File(name, info.size or 0, info.mtime_ns or 0)


def _listed(root: Folder, files: Iterable[File]) -> Iterator[pa.Table]:
    """Yield the inputs of each file, in order: in a task for each where Ray runs, a few ahead, else here."""
    if not ray.is_initialized():
        for file in files:
            yield from inputs_of(root, file)
        return
    task = ray.remote(inputs_of).options(num_returns="streaming", _generator_backpressure_num_objects=_TABLES_AHEAD)
    ahead = int(ray.cluster_resources().get("CPU", 1))
    running: deque = deque()
    for file in files:
        running.append(task.remote(root, file))
        if len(running) > ahead:
            yield from map(ray.get, running.popleft())
    while running:
        yield from map(ray.get, running.popleft())


def _list_folder(root: Folder, writer: ListWriter) -> list[File]:
    """Write the files of a folder as inputs; or return those that list inputs themselves, if there are such."""
    of_kind: dict[str, list[File]] = {"parquet": [], "tar": []}
    unusable: list[File] = []
    image = None
    for piece in pieces(files_in(root)):
        for file in piece:
            kind = kind_of(file.name)
            if file.reason:
                unusable.append(file)
            elif kind in of_kind:
                of_kind[kind].append(file)
            elif image is None and suffix(file.name) in IMAGE_SUFFIXES:
                image = file.name
        found = ([image] if image else []) + [files[0].name for files in of_kind.values() if files]
        if len(found) > 1:
            raise ValueError(
                f"{root.uri} mixes kinds of sources ({' and '.join(found)}); give images, Parquet and tars a folder"
                " each, and index one after the other"
            )
        if not any(of_kind.values()):
            writer.add(_as_inputs(piece), unique=True)
    files = of_kind["parquet"] + of_kind["tar"]
    if files:
        writer.clear()
        if unusable:
            writer.add(_as_inputs(unusable))
    return files


def _as_inputs(files: Sequence[File]) -> pa.Table:
    names = [file.name for file in files]
    columns: dict[str, list] = {
        name: [getattr(file, name) for file in files] for name in File._fields if name != "name"
    }
    columns["file"] = names
    columns["label"] = [PurePosixPath(name).parts[0] if "/" in name else None for name in names]
    return inputs_table(files[0], names, columns)
