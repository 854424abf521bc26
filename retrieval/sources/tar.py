"""Tars: each image among the members is an input, by the conventions of WebDataset."""

from __future__ import annotations

import io
import tarfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from cachetools import LRUCache
from pyarrow import fs

from retrieval.folder import Folder
from retrieval.images import MAX_BYTES
from retrieval.sources.files import File, is_safe, suffix
from retrieval.sources.inputs import Row, hashes_of, inputs_table, rejected
from retrieval.sources.places import Places, lies_inside
from retrieval.sources.rows import Content, check_regular, check_unchanged, over_limit, read_known
from retrieval.sources.webdataset import SIDECARS, Member, sample_inputs

_SIDECAR_BYTES, _HEADER_BYTES = 2**20, 2**20
# A gap of this size (other members of a sample) is read and thrown away rather than asked around; what is asked for at
# once stays below the second bound, unless it is one image.
_GAP_BYTES, _REQUEST_BYTES = 64 * 2**10, min(32 * 2**20, MAX_BYTES)
_COMPRESSED = ("gz", "tgz", "bz2", "tbz2", "xz", "txz", "zst", "zip")
_TARS_IN_CACHE = 256


class Tar:
    """The kind of file that is a plain tar of images and what belongs to them."""

    title = "tars (.tar)"
    in_folders, alone = True, True

    def has(self, name: str) -> bool:
        return suffix(name) == "tar" or _is_compressed(name)

    def inputs(self, root: Folder, files: Sequence[File]) -> Iterator[pa.Table]:
        for file in files:
            yield from _inputs(root, file)

    def reader(self) -> _Ranges:
        return _Ranges()

    def lookup(self, root: Folder, name: str | None, *, links_out: bool) -> _Lookup:
        return _Lookup(root, name, links_out)


def _is_compressed(name: str) -> bool:
    kind = suffix(name)
    return kind in _COMPRESSED and (kind.startswith("t") or suffix(name.rpartition(".")[0]) == "tar")


# Listing


def _inputs(root: Folder, file: File) -> Iterator[pa.Table]:
    """Yield the inputs of a tar; a member's path is ``tar/member``."""
    if _is_compressed(file.name):
        detail = f"{file.name} is compressed, so its members cannot be read one by one; unpack it to a plain .tar first"
        yield rejected(file, "compressed", detail)
        return
    broken: list[pa.Table] = []
    yield from sample_inputs(file, _members(root, file, broken))
    yield from broken


class _Bounded(io.BufferedReader):
    """Reads a tar's headers: a megabyte at a time from the store, and never a header of more than that."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _HEADER_BYTES:
            raise tarfile.ReadError(f"a header declares {size:,} bytes")
        return super().read(size)


def _members(root: Folder, file: File, broken: list[pa.Table]) -> Iterator[Member]:
    """Yield the members of a tar; what is wrong with the tar itself is added to ``broken``."""
    count = 0

    def note(what: str, reason: str = "broken-file") -> None:
        broken.append(rejected(file, reason, f"{file.name} {what}, after {count:,} members; copy or make it again"))

    with root.open_input(file.name) as stream:
        size = stream.size()
        source = _Bounded(stream, _HEADER_BYTES)
        if source.peek(2)[:2] == b"\x1f\x8b":
            note("is compressed with gzip, whatever its name says: unpack it first")
            return
        try:
            with tarfile.open(fileobj=source, mode="r:", encoding="utf-8", errors="backslashreplace") as archive:
                while (info := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                    count += 1
                    member = None if info.isdir() else _member(archive, info, size)
                    if member is not None:
                        yield member
                # An unreadable header ends a tar as the end does, but there zeros must follow.
                source.seek(archive.offset)
                if source.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    note(f"is cut or damaged at byte {archive.offset:,}")
        except OSError as error:
            note(f"cannot be read further ({error})", "unreadable")
        except (tarfile.TarError, ValueError, RecursionError) as error:  # the last: headers in headers in headers
            note(f"is cut or damaged ({error})")


def _member(archive: tarfile.TarFile, info: tarfile.TarInfo, size: int) -> Member | None:
    parts = [part for part in info.name.split("/") if part != "."]
    name = "/".join(parts)
    member = Member(name, info.offset_data, info.size)
    if not parts or "" in parts or ".." in parts or "\0" in name:
        return member._replace(reason="bad-name", detail=f"the member {info.name} would lie outside of the tar")
    if any(part.startswith(".") for part in parts):
        return None
    if not info.isreg() or info.issparse():
        what = "a link" if info.issym() or info.islnk() else "not a plain file"
        return member._replace(reason="no-image", detail=f"the member {name} is {what}")
    if info.offset_data + info.size > size:
        return member._replace(reason="truncated", detail=f"the tar ends before the member {name} does")
    if suffix(name) not in SIDECARS:
        return member
    if info.size > _SIDECAR_BYTES:
        return member._replace(
            reason="bad-metadata", detail=f"{name} has {info.size:,} bytes, the limit is {_SIDECAR_BYTES:,}"
        )
    content = archive.extractfile(info)
    return member._replace(text=(content.read() if content else b"").decode("utf-8-sig", errors="backslashreplace"))


# Reading


class _Ranges:
    """Reads members where they lie in their tar; those that are not far apart in one request."""

    def together(self, first: Row, last: Row, following: Row) -> bool:
        if first.offset is None or last.offset is None or following.offset is None:
            return False
        gap = following.offset - last.offset - (last.length or 0)
        end = following.offset + (following.length or 0)
        return 0 <= gap <= _GAP_BYTES and end - first.offset <= _REQUEST_BYTES

    def read(self, filesystem: fs.FileSystem, path: str, rows: Sequence[Row]) -> list[Content]:
        check_regular(filesystem, path)
        check_unchanged(filesystem, path, rows[0])
        with filesystem.open_input_file(path) as file:
            return _ranges(file, rows)


def _ranges(file: pa.NativeFile, rows: Sequence[Row]) -> list[Content]:
    spans = [(row.offset or 0, row.length or 0) for row in rows]
    rejection = over_limit(spans[0][1])
    if rejection:  # it is alone: what is read together is below the limit
        return [rejection]
    start = spans[0][0]
    data = file.read_at(spans[-1][0] + spans[-1][1] - start, start)
    parts = [data[offset - start :][:length] for offset, length in spans]
    return [
        part if len(part) == length else OSError(f"{row.file} ends {length - len(part):,} bytes before this member")
        for part, (_, length), row in zip(parts, spans, rows, strict=True)
    ]


# One of them again


class _Index(NamedTuple):
    """The images of a tar: hashes of their paths in order, and where they lie."""

    file: File
    hashes: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray


class _Lookup:
    """A path is ``tar/member``. A tar is listed when the first of its members is asked for.

    Args:
        only: the name of the one tar there is, if the source is a file.
    """

    def __init__(self, root: Folder, only: str | None, links_out: bool) -> None:
        self._root = root
        self._only = only
        self._links_out = links_out
        self._places = Places(root)
        self._ranges = _Ranges()
        self._tars: LRUCache[str, _Index] = LRUCache(_TARS_IN_CACHE)
        self._listing = threading.Lock()

    def read(self, paths: set[str]) -> dict[str, bytes]:
        of_tar: defaultdict[str, list[str]] = defaultdict(list)
        for path in paths:
            name = self._tar_of(path)
            if name is not None:
                of_tar[name].append(path)
        return {path: data for name in sorted(of_tar) for path, data in self._images(name, of_tar[name]).items()}

    def _tar_of(self, path: str) -> str | None:
        if not is_safe(path):
            return None
        end = path.lower().find(".tar/")
        name = path[: end + 4]
        if end < 0 or self._only not in (None, name):
            return None
        return name if lies_inside(self._root, name, links_out=self._links_out) else None

    def _images(self, name: str, paths: list[str]) -> dict[str, bytes]:
        info = self._root.filesystem.get_file_info(f"{self._root.path}/{name}")
        if info.type != fs.FileType.File:
            return {}
        index = self._index(File(name, info.size, info.mtime_ns or 0))
        if not len(index.hashes):
            return {}
        hashes = hashes_of(paths)
        at = np.minimum(np.searchsorted(index.hashes, hashes), len(index.hashes) - 1)
        found = sorted(
            (int(index.offsets[i]), i, p) for i, p, h in zip(at, paths, hashes, strict=True) if index.hashes[i] == h
        )
        columns = {
            "offset": [offset for offset, _, _ in found],
            "length": [int(index.lengths[i]) for _, i, _ in found],
        }
        rows = inputs_table(index.file, [path for _, _, path in found], columns)
        return read_known(self._places, rows, self._ranges)

    def _index(self, file: File) -> _Index:
        with self._listing:
            known = self._tars.get(file.name)
            if known is None or known.file != file:
                known = self._tars[file.name] = _index_of(self._root, file)
            return known


def _index_of(root: Folder, file: File) -> _Index:
    hashes, offsets, lengths = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for table in _inputs(root, file):
        good = table.filter(pc.is_valid(table["offset"]))
        hashes.append(hashes_of(good["path"].to_pylist()))
        offsets.append(good["offset"].to_numpy())
        lengths.append(good["length"].to_numpy())
    # Of members of one name the first is the one that was listed.
    first, at = np.unique(np.concatenate(hashes), return_index=True)
    return _Index(file, first, np.concatenate(offsets)[at], np.concatenate(lengths)[at])
