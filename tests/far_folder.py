"""A folder of this disk that is taken for one of an object store."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from retrieval.folder import Folder


class FarFolder(Folder):
    """It has no path on this machine, and ``opened`` has the name of each file that was opened, as often as it was."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.filesystem = fs.SubTreeFileSystem("/", fs.LocalFileSystem())
        self.opened: list[str] = []

    def open_input(self, name: str) -> pa.NativeFile:
        self.opened.append(name)
        return super().open_input(name)
