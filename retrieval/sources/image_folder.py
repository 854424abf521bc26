"""Image folders: each file is an input, its first-level folder the label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import pyarrow as pa
from pyarrow import fs

from retrieval.folder import Folder
from retrieval.images import MAX_BYTES
from retrieval.sources.files import File, is_safe, suffix
from retrieval.sources.inputs import Row, inputs_table
from retrieval.sources.places import lies_inside
from retrieval.sources.rows import Content, check_regular, over_limit

IMAGE_SUFFIXES = frozenset(
    [
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff"),
        *("heic", "heif", "avif", "jxl", "jp2", "svg", "psd", "ico", "ppm", "pgm", "tga"),
    ]
)
"""Of names that promise an image, readable or not."""


class ImageFolder:
    """The kind of source that has its images as files. Whatever else lies there is listed too, and costs its row."""

    title = "an image folder"
    in_folders, alone = True, False

    def has(self, name: str) -> bool:
        return suffix(name) in IMAGE_SUFFIXES

    def inputs(self, root: Folder, files: Sequence[File]) -> Iterator[pa.Table]:
        names = [file.name for file in files]
        columns: dict[str, list] = {
            name: [getattr(file, name) for file in files] for name in File._fields if name != "name"
        }
        columns["file"] = names
        columns["label"] = [PurePosixPath(name).parts[0] if "/" in name else None for name in names]
        if files:
            yield inputs_table(files[0], names, columns)

    def reader(self) -> WholeFiles:
        return WholeFiles()

    def lookup(self, root: Folder, name: str | None, *, links_out: bool) -> _Lookup:
        return _Lookup(root, links_out)


class WholeFiles:
    """Reads inputs that are files of their own, in an image folder or named by a list."""

    def together(self, first: Row, last: Row, following: Row) -> bool:
        return False

    def read(self, filesystem: fs.FileSystem, path: str, rows: Sequence[Row]) -> list[Content]:
        check_regular(filesystem, path)
        with filesystem.open_input_file(path) as file:
            rejection = over_limit(file.size())
            if rejection:
                return [rejection]
            data = file.read(MAX_BYTES + 1)
            return [over_limit(len(data)) or data]


class _Lookup:
    """A path is a file's name relative to the folder."""

    def __init__(self, root: Folder, links_out: bool) -> None:
        self._root = root
        self._links_out = links_out

    def read(self, paths: set[str]) -> dict[str, bytes]:
        inside = [path for path in sorted(paths) if is_safe(path) and self._is_inside(path)]
        found = {path: self._file(path) for path in inside}
        return {path: data for path, data in found.items() if data is not None}

    def _is_inside(self, path: str) -> bool:
        return lies_inside(self._root, path, links_out=self._links_out)

    def _file(self, path: str) -> bytes | None:
        info = self._root.filesystem.get_file_info(f"{self._root.path}/{path}")
        # Neither a pipe, which would never end, nor more bytes than any gallery takes.
        if info.type != fs.FileType.File or info.size > MAX_BYTES:
            return None
        try:
            return self._root.read_bytes(path)
        except FileNotFoundError:  # it vanished in between
            return None
