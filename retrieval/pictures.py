"""The files that a gallery was made from, read again by the paths that its rows have."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from retrieval.folder import Folder
from retrieval.images import MAX_BYTES


class Pictures:
    """The images of a gallery's source: an image folder or Parquet, at any URI. Several threads may read at once.

    Nothing is read before the first picture is asked for. Parquet costs one pass over its column ``path`` then, and
    16 bytes of memory a row from then on.

    Args:
        source: what the gallery was made from (``GalleryManifest.source``).
        links_out: follow symbolic links that lead out of a local folder. A gallery may have been made through some;
            but only those who may read this machine's files anyway should be shown what they lead to.
    """

    def __init__(self, source: str, *, links_out: bool = False) -> None:
        self._root = Folder(source)
        self._links_out = links_out
        self._reader: _Files | _Rows | None = None
        self._opening = threading.Lock()

    def bytes_of(self, path: str) -> bytes | None:
        """Return the file of one image, or None if the source has no picture of this path.

        A path is one that a listing of the source could have given: relative, with forward slashes, no part of it
        empty or hidden (which ``.`` and ``..`` are). Any other path is no picture's.

        Raises:
            OSError: there may be one, but it can not be read now (permissions, network, damage).
        """
        return self.read([path]).get(path)

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the files of several images by path, without those that are not there; as ``bytes_of``."""
        with self._opening:
            if self._reader is None:
                files = parquet_files(self._root)
                self._reader = _Rows(self._root, files) if files else _Files(self._root, self._links_out)
        return self._reader.read(set(paths))


def parquet_files(root: Folder) -> list[str]:
    """Return the paths of the Parquet files that a source consists of; none if it is a folder of images."""
    if root.filesystem.get_file_info(root.path).type == fs.FileType.File:
        return [root.path] if root.path.endswith(".parquet") else []
    if root.local_path:  # beside names that Arrow can not list
        return sorted(str(file) for file in root.local_path.glob("*.parquet"))
    return [f"{root.path}/{name}" for name in root.files(suffix=".parquet")]


class _Files:
    """An image folder."""

    def __init__(self, root: Folder, links_out: bool) -> None:
        self._root = root
        self._links_out = links_out

    def read(self, paths: set[str]) -> dict[str, bytes]:
        found = {path: self._file(path) for path in sorted(paths) if self._lies_inside(path)}
        return {path: data for path, data in found.items() if data is not None}

    def _lies_inside(self, path: str) -> bool:
        if "\0" in path or any(not part or part.startswith(".") for part in path.split("/")):
            return False
        folder = self._root.local_path
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
        return self._links_out or target.is_relative_to(folder.resolve())

    def _file(self, path: str) -> bytes | None:
        info = self._root.filesystem.get_file_info(f"{self._root.path}/{path}")
        # Neither a pipe, which would never end, nor more bytes than any gallery takes.
        if info.type != fs.FileType.File or info.size > MAX_BYTES:
            return None
        try:
            return self._root.read_bytes(path)
        except FileNotFoundError:  # it went in between
            return None


class _Rows:
    """Parquet with the files in it. It is known in which row group each path lies, so that no other is read: a filter
    on the path would read every image to find one.
    """

    def __init__(self, root: Folder, files: list[str]) -> None:
        self._filesystem = root.filesystem
        self._groups: list[tuple[str, pq.FileMetaData, int]] = []
        hashes_of_groups = []
        for name in files:
            with self._open(name) as file:
                if not {"path", "image"} <= set(file.schema_arrow.names):
                    continue
                for group in range(file.num_row_groups):
                    hashes_of_groups.append(_hashes(_paths(file.read_row_group(group, columns=["path"]))))
                    self._groups.append((name, file.metadata, group))
        hashes = np.concatenate([np.empty(0, np.uint64), *hashes_of_groups])
        groups = np.repeat(np.arange(len(self._groups)), [len(of_group) for of_group in hashes_of_groups])
        order = np.argsort(hashes)
        self._hashes, self._group_of = hashes[order], groups[order]

    def read(self, paths: set[str]) -> dict[str, bytes]:
        names = sorted(paths)
        starts, ends = (np.searchsorted(self._hashes, _hashes(names), side) for side in ("left", "right"))
        wanted: defaultdict[int, set[str]] = defaultdict(set)
        for name, start, end in zip(names, starts, ends, strict=True):
            for group in self._group_of[start:end]:
                wanted[int(group)].add(name)
        return {path: data for group in sorted(wanted) for path, data in self._rows(group, wanted[group])}

    def _rows(self, number: int, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
        name, metadata, group = self._groups[number]
        with self._open(name, metadata) as file:
            for batch in file.iter_batches(64, row_groups=[group], columns=["path", "image"]):
                for i, path in enumerate(_paths(batch)):
                    if path not in wanted:
                        continue
                    image = batch["image"][i].as_py()
                    data = image["bytes"] if isinstance(image, dict) else image
                    if data is not None:
                        yield path, data

    @contextmanager
    def _open(self, name: str, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
        try:
            with self._filesystem.open_input_file(name) as stream:
                yield pq.ParquetFile(stream, metadata=metadata)
        except pa.ArrowInvalid as error:
            raise OSError(f"{name} can not be read as Parquet: {error}") from error


def _paths(rows: pa.Table | pa.RecordBatch) -> list[str]:
    return pc.fill_null(rows["path"].cast(pa.string()), "").to_pylist()


def _hashes(paths: list[str]) -> np.ndarray:
    digests = (hashlib.blake2b(path.encode(errors="replace"), digest_size=8).digest() for path in paths)
    return np.frombuffer(b"".join(digests), np.uint64)
