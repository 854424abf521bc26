"""A folder of this disk that is taken for one of an object store."""

from __future__ import annotations

from io import RawIOBase
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from retrieval.folder import Folder


class Traffic:
    """What was read of a ``FarFolder`` and of the folders in it."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        """Names of the files, as often as they were opened."""
        self.bytes = 0


class FarFolder(Folder):
    """It has no path on this machine, and counts what is read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.filesystem = fs.SubTreeFileSystem("/", fs.LocalFileSystem())
        self.traffic = Traffic()

    def __truediv__(self, name: str) -> Any:
        child = super().__truediv__(name)
        child.traffic = self.traffic
        return child

    def open_input(self, name: str) -> pa.NativeFile:
        self.traffic.opened.append(name)
        return pa.PythonFile(_Counting(super().open_input(name), self.traffic), mode="r")


class _Counting(RawIOBase):
    def __init__(self, file: pa.NativeFile, traffic: Traffic) -> None:
        self._file, self._traffic = file, traffic

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._traffic.bytes += len(data)
        return data

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
