"""The files that a gallery was made from, read again by the paths that its rows have."""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from retrieval.folder import Folder
from retrieval.images import MAX_BYTES, ImageRejected
from retrieval.sources.contents import Lines, lines_of, place_of
from retrieval.sources.files import IMAGE_SUFFIXES, File, files_in, inputs_table, kind_of, suffix
from retrieval.sources.metadata import text
from retrieval.sources.reader import InputReader, base_of, hashes_of, is_relative, is_safe
from retrieval.sources.tar import tar_inputs

TARS = 256
"""Tars whose members are kept in mind, of 24 bytes each."""


class Pictures:
    """The images of a gallery's source, of any kind and at any URI. Several threads may read at once.

    Nothing is read before the first picture is asked for. Parquet and lists of URIs cost one pass over their paths
    then, and 16 bytes of memory a row from then on; a tar costs one pass over its headers when the first of its members
    is asked for.

    Args:
        source: what the gallery was made from.
        links_out: follow symbolic links that lead out of a local folder. A gallery may have been made through some;
            but only those who may read this machine's files anyway should be shown what they lead to.
    """

    def __init__(self, source: str, *, links_out: bool = False) -> None:
        self._source = source
        self._links_out = links_out
        self._reader: _Reader | None = None
        self._opening = threading.Lock()

    def bytes_of(self, path: str) -> bytes | None:
        """Return the file of one image, or None if the source has no picture of this path.

        A path is one that a listing of the source could have given: for files and members of tars, relative, with
        forward slashes, no part of it empty or hidden (which ``.`` and ``..`` are); for Parquet and lists, one that
        stands in them. Any other path is no picture's, and what a URI names that stands in no list is not asked for.

        Raises:
            OSError: there may be one, but it can not be read now (permissions, network, damage).
        """
        return self.read([path]).get(path)

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the files of several images by path, without those that are not there; as ``bytes_of``."""
        with self._opening:
            if self._reader is None:
                self._reader = self._open()
        return self._reader.read(set(paths))

    def _open(self) -> _Reader:
        try:
            root, name = base_of(self._source)
        except ValueError:  # nothing is there, now
            return _Files(Folder(self._source), self._links_out)
        if name is None:
            kind, files = _kind_of_folder(root)
        else:
            kind, files = kind_of(name), [name]
        if kind == "parquet":
            return _Rows(root, files, self._links_out)
        if kind == "tar":
            return _Tars(root, name, self._links_out)
        if kind == "list":
            return _List(root, files[0], self._links_out)
        return _Files(root, self._links_out)


def _kind_of_folder(root: Folder) -> tuple[str | None, list[str]]:
    """Return the kind of a folder, which its first telling file says, as kinds are never mixed; and Parquet files."""
    files = (file.name for file in files_in(root) if not file.reason)
    for name in files:
        kind = kind_of(name)
        if kind == "parquet":
            return kind, [name, *(other for other in files if kind_of(other) == kind)]
        if kind == "tar" or suffix(name) in IMAGE_SUFFIXES:
            return ("tar" if kind == "tar" else None), []
    return None, []


class _Reader(Protocol):
    def read(self, paths: set[str]) -> dict[str, bytes]: ...


def _lies_inside(root: Folder, path: str, links_out: bool) -> bool:
    """Whether a relative path names something in a folder; links that lead out of it do only if they may."""
    folder = root.local_path
    try:
        path.encode()
        if folder is None:
            return True
        target = (folder / path).resolve(strict=True)
    except (UnicodeEncodeError, FileNotFoundError, NotADirectoryError, RuntimeError):  # the last: links in a circle
        return False
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            return False
        raise
    return links_out or target.is_relative_to(folder.resolve())


class _Files:
    """An image folder."""

    def __init__(self, root: Folder, links_out: bool) -> None:
        self._root = root
        self._links_out = links_out

    def read(self, paths: set[str]) -> dict[str, bytes]:
        inside = [path for path in sorted(paths) if is_safe(path) and _lies_inside(self._root, path, self._links_out)]
        found = {path: self._file(path) for path in inside}
        return {path: data for path, data in found.items() if data is not None}

    def _file(self, path: str) -> bytes | None:
        info = self._root.filesystem.get_file_info(f"{self._root.path}/{path}")
        # Neither a pipe, which would never end, nor more bytes than any gallery takes.
        if info.type != fs.FileType.File or info.size > MAX_BYTES:
            return None
        try:
            return self._root.read_bytes(path)
        except FileNotFoundError:  # it went in between
            return None


class _Named:
    """What lists name, by the text that stands in them."""

    def __init__(self, root: Folder, links_out: bool) -> None:
        self._root = root
        self._links_out = links_out
        self._reader = InputReader(root.uri)

    def read(self, list_name: str, paths: Iterable[str]) -> dict[str, bytes]:
        """Read some of what the list of this name names. That it does, its caller has seen to."""
        names, files = [], []
        for path in sorted(paths):
            place = place_of(self._reader, self._root, File(list_name, 0, 0), path)
            file = place.file
            if not place.reason and (not is_relative(file) or _lies_inside(self._root, file, self._links_out)):
                names.append(path)
                files.append(file)
        return _read(self._reader, inputs_table(File(list_name, 0, 0), names, {"file": files}))


def _read(reader: InputReader, rows: pa.Table) -> dict[str, bytes]:
    found = {}
    for path, content in zip(rows["path"].to_pylist(), reader.read(rows), strict=True):
        if isinstance(content, bytes):
            found[path] = content
        elif not isinstance(content, ImageRejected | FileNotFoundError):
            raise content
    return found


class _List:
    """A list of URIs and paths, CSV or text. Only what stands in it is read."""

    def __init__(self, root: Folder, name: str, links_out: bool) -> None:
        self._name = name
        self._named = _Named(root, links_out)
        self._key = os.urandom(16)  # so that nobody can find a path that looks like one of the list
        lines = (lines.values for lines in lines_of(root, File(name, 0, 0)) if isinstance(lines, Lines))
        hashes = [hashes_of((value or "" for value in values), self._key) for values in lines]
        self._hashes = np.concatenate([np.empty(0, np.uint64), *hashes])
        self._hashes.sort()

    def read(self, paths: set[str]) -> dict[str, bytes]:
        names = sorted(path for path in paths if path)
        hashes = hashes_of(names, self._key)
        ends = np.searchsorted(self._hashes, hashes, "right") - np.searchsorted(self._hashes, hashes)
        return self._named.read(self._name, [name for name, there in zip(names, ends, strict=True) if there])


class _Members(NamedTuple):
    """The images of a tar: hashes of their paths in order, and where they lie."""

    file: File
    hashes: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray


class _Tars:
    """Tars; ``only`` is the name of the one there is, if the source is a file."""

    def __init__(self, root: Folder, only: str | None, links_out: bool) -> None:
        self._root = root
        self._only = only
        self._links_out = links_out
        self._reader = InputReader(root.uri)
        self._tars: OrderedDict[str, _Members] = OrderedDict()
        self._listing = threading.Lock()

    def read(self, paths: set[str]) -> dict[str, bytes]:
        of_tar: defaultdict[str, list[str]] = defaultdict(list)
        for path in paths:
            name = self._tar_of(path)
            if name is not None:
                of_tar[name].append(path)
        return {path: data for name in sorted(of_tar) for path, data in self._members(name, of_tar[name]).items()}

    def _tar_of(self, path: str) -> str | None:
        if not is_safe(path):
            return None
        end = path.lower().find(".tar/")
        name = path[: end + 4]
        if end < 0 or self._only not in (None, name) or not _lies_inside(self._root, name, self._links_out):
            return None
        return name

    def _members(self, name: str, paths: list[str]) -> dict[str, bytes]:
        info = self._root.filesystem.get_file_info(f"{self._root.path}/{name}")
        if info.type != fs.FileType.File:
            return {}
        members = self._listed(File(name, info.size, info.mtime_ns or 0))
        if not len(members.hashes):
            return {}
        hashes = hashes_of(paths)
        at = np.minimum(np.searchsorted(members.hashes, hashes), len(members.hashes) - 1)
        found = sorted(
            (int(members.offsets[i]), i, p) for i, p, h in zip(at, paths, hashes, strict=True) if members.hashes[i] == h
        )
        columns = {
            "offset": [offset for offset, _, _ in found],
            "length": [int(members.lengths[i]) for _, i, _ in found],
        }
        return _read(self._reader, inputs_table(members.file, [path for _, _, path in found], columns))

    def _listed(self, file: File) -> _Members:
        with self._listing:
            known = self._tars.get(file.name)
            if known is None or known.file != file:
                known = self._tars[file.name] = _members_of(self._root, file)
                while len(self._tars) > TARS:
                    self._tars.popitem(last=False)
            self._tars.move_to_end(file.name)
            return known


def _members_of(root: Folder, file: File) -> _Members:
    hashes, offsets, lengths = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for table in tar_inputs(root, file):
        good = table.filter(pa.compute.is_valid(table["offset"]))
        hashes.append(hashes_of(good["path"].to_pylist()))
        offsets.append(good["offset"].to_numpy())
        lengths.append(good["length"].to_numpy())
    # Of members of one name the first is the one that was listed.
    first, at = np.unique(np.concatenate(hashes), return_index=True)
    return _Members(file, first, np.concatenate(offsets)[at], np.concatenate(lengths)[at])


class _Rows:
    """Parquet with the files in it, or with their URIs. It is known in which row group each path lies, so that no other
    is read: a filter on the path would read every image to find one.
    """

    def __init__(self, root: Folder, files: list[str], links_out: bool) -> None:
        self._root = root
        self._named = _Named(root, links_out)
        self._groups: list[tuple[str, pq.FileMetaData, int]] = []
        hashes_of_groups = []
        damage: OSError | None = None
        for name in files:
            try:
                with self._open(name) as file:
                    column = _path_column(file)
                    for group in range(file.num_row_groups) if column else ():
                        hashes_of_groups.append(hashes_of(_paths(file.read_row_group(group, columns=[column]), column)))
                        self._groups.append((name, file.metadata, group))
            except _Damaged as error:  # its rows were rejected when it was listed; others have theirs
                damage = error
        if damage and not self._groups:
            raise damage
        hashes = np.concatenate([np.empty(0, np.uint64), *hashes_of_groups])
        groups = np.repeat(np.arange(len(self._groups)), [len(of_group) for of_group in hashes_of_groups])
        order = np.argsort(hashes)
        self._hashes, self._group_of = hashes[order], groups[order]

    def read(self, paths: set[str]) -> dict[str, bytes]:
        names = sorted(paths)
        hashes = hashes_of(names)
        starts, ends = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        wanted: defaultdict[int, set[str]] = defaultdict(set)
        for name, start, end in zip(names, starts, ends, strict=True):
            for group in self._group_of[start:end]:
                wanted[int(group)].add(name)
        return {path: data for group in sorted(wanted) for path, data in self._rows(group, wanted[group])}

    def _rows(self, number: int, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
        name, metadata, group = self._groups[number]
        with self._open(name, metadata) as file:
            column = _path_column(file)
            has_images = "image" in file.schema_arrow.names
            for batch in file.iter_batches(
                64, row_groups=[group], columns=[column, "image"] if has_images else [column]
            ):
                found = [(i, path) for i, path in enumerate(_paths(batch, column)) if path in wanted]
                if not has_images:
                    yield from self._named.read(name, [path for _, path in found]).items()
                    continue
                for i, path in found:
                    image = batch["image"][i].as_py()
                    data = image["bytes"] if isinstance(image, dict) else image
                    if data is not None:
                        yield path, data

    @contextmanager
    def _open(self, name: str, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
        try:
            with self._root.open_input(name) as stream:
                yield pq.ParquetFile(stream, metadata=metadata)
        except pa.ArrowInvalid as error:
            raise _Damaged(f"{name} can not be read as Parquet: {error}") from error


class _Damaged(OSError):
    pass


def _path_column(file: pq.ParquetFile) -> str:
    """Return the column that holds paths; empty if the file is no source of images."""
    names = file.schema_arrow.names
    order = ("path",) if "image" in names else ("uri", "path")
    return next((name for name in order if name in names), "")


def _paths(rows: pa.Table | pa.RecordBatch, column: str) -> list[str]:
    return [path or "" for path in text(rows[column]).to_pylist()]
