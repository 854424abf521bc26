"""One folder on any filesystem of ``pyarrow.fs``: local disk, S3, GCS, …"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs


class Folder:
    """A folder, named by a local path or by a URI (``s3://bucket/…``, ``gs://…``, ``file:///…``). It need not exist
    yet. A URI may end in options of its filesystem, which children keep (``s3://…?endpoint_override=…&scheme=http``).

    Names of files are relative to it, with forward slashes. Writing creates the folders that are missing.

    Raises:
        ValueError: the URI's scheme is unknown, or its filesystem can not be reached.
    """

    def __init__(self, uri: str | Path) -> None:
        text = str(uri)
        if "://" not in text:
            text = Path(text).expanduser().absolute().as_posix()
        try:
            self.filesystem, path = fs.FileSystem.from_uri(text)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{uri} is neither a local path nor a URI that can be reached: {error}") from error
        self.path = path.rstrip("/")
        place, mark, options = text.partition("?") if "://" in text else (text, "", "")
        self._place, self._options = place.rstrip("/"), mark + options

    def __truediv__(self, name: str) -> Self:
        child = object.__new__(type(self))
        child.filesystem, child.path = self.filesystem, f"{self.path}/{name}"
        child._place, child._options = f"{self._place}/{name}", self._options
        return child

    def __repr__(self) -> str:
        return f"Folder({self.uri!r})"

    @property
    def uri(self) -> str:
        """The absolute path or the URI, with which the folder can be opened again anywhere."""
        return self._place + self._options

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def local_path(self) -> Path | None:
        """The folder as a path, if it lies on this machine."""
        return Path(self.path) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    def exists(self, name: str = "") -> bool:
        return self.filesystem.get_file_info(self._at(name)).type != fs.FileType.NotFound

    def files(self, name: str = "", suffix: str = "") -> list[str]:
        """Return the files in a sub-folder (not below it), sorted; none if it does not exist."""
        return self._entries(name, fs.FileType.File, suffix)

    def folders(self, name: str = "") -> list[str]:
        """Return the folders in a sub-folder, sorted; none if it does not exist."""
        return self._entries(name, fs.FileType.Directory, "")

    def read_bytes(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(self._at(name)) as stream:
            return stream.read()

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all: under a temporary name first, which is then moved."""
        target = self._at(name)
        self.filesystem.create_dir(target.rsplit("/", 1)[0], recursive=True)
        partial = f"{target}.{uuid.uuid4().hex[:8]}.partial"
        with self.filesystem.open_output_stream(partial) as stream:
            stream.write(data)
        self.filesystem.move(partial, target)

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, content: Any) -> None:
        self.write_bytes(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    def open_input(self, name: str) -> pa.NativeFile:
        return self.filesystem.open_input_file(self._at(name))

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        with self.open_input(name) as file:
            return pq.ParquetFile(file).read(columns=list(columns) if columns else None)

    def write_table(self, name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def create(self) -> None:
        self.filesystem.create_dir(self.path, recursive=True)

    def delete(self, name: str = "") -> None:
        """Delete a sub-folder with all that is in it, if it exists."""
        if self.exists(name):
            self.filesystem.delete_dir(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path

    def _entries(self, name: str, kind: fs.FileType, suffix: str) -> list[str]:
        selector = fs.FileSelector(self._at(name), allow_not_found=True)
        prefix = f"{name}/" if name else ""
        found = self.filesystem.get_file_info(selector)
        return sorted(
            prefix + info.base_name for info in found if info.type == kind and info.base_name.endswith(suffix)
        )
