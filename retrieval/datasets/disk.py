"""The folder of a data set: files by the names that its lists have for them, and never one that lies outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.sources.files import File, files_in, is_safe

MAX_LIST_BYTES = 2**30
"""Of a list of images; that of the 1.8 million of Places365 has 70 MB."""


class Place(NamedTuple):
    """Where a name leads.

    Attributes:
        path: the file relative to the folder, None if there is none.
        exact: whether it is called so, and not in other capitals.
        outside: whether it leads out of the folder.
    """

    path: str | None
    exact: bool = True
    outside: bool = False


class Disk:
    """A folder, and what lies in it, by exact names and in other capitals. Each folder is listed once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = root.resolve()
        self._listed: dict[str, dict[str, bool]] = {}
        self._lower: dict[str, dict[str, str]] = {}
        self._inside: dict[str, bool] = {}

    def find(self, name: str) -> Place:
        """Return where a relative name leads."""
        if not is_safe(name):
            return Place(None, outside=True)
        at, exact = "", True
        for part in name.split("/"):
            names = self._names(at)
            if part not in names:
                lower = self._lower.setdefault(at, {each.casefold(): each for each in names})
                if part.casefold() not in lower:
                    return Place(None)
                part, exact = lower[part.casefold()], False
            at = f"{at}/{part}" if at else part
            if names[part] and not self._is_inside(at):  # a link
                return Place(None, outside=True)
        return Place(at, exact)

    def has(self, name: str) -> bool:
        """Return whether there is something of exactly this name."""
        place = self.find(name)
        return place.path is not None and place.exact

    def folders(self, name: str) -> list[str]:
        """Return the names of the folders in a folder, sorted, hidden ones left out."""
        return sorted(each for each in self._names(name) if (self.root / name / each).is_dir())

    def files(self, name: str) -> Iterator[File]:
        """Yield the files in a folder and below, named relative to it."""
        return files_in(Folder(self.root / name))

    def read(self, name: str) -> bytes:
        """Return the bytes of a list.

        Raises:
            UserError: it is not there (``missing``), leads outside (``outside``), or is too long (``too-large``).
        """
        place = self.find(name)
        if place.outside:
            raise UserError(f"{name} leads out of {self.root}", code="outside", field="root")
        if place.path is None:
            raise UserError(f"{self.root} has no file {name}", code="missing", field="root")
        with (self.root / place.path).open("rb") as file:
            data = file.read(MAX_LIST_BYTES + 1)
        if len(data) > MAX_LIST_BYTES:
            raise UserError(f"{name} has more than {MAX_LIST_BYTES:,} bytes", code="too-large", field="root")
        return data

    def _names(self, folder: str) -> dict[str, bool]:
        """Return what lies in a folder, and whether each is a link."""
        if folder not in self._listed:
            try:
                with os.scandir(self.root / folder) as entries:
                    names = {each.name: each.is_symlink() for each in entries if not each.name.startswith(".")}
            except (FileNotFoundError, NotADirectoryError):
                names = {}
            self._listed[folder] = names
        return self._listed[folder]

    def _is_inside(self, name: str) -> bool:
        if name not in self._inside:
            try:
                self._inside[name] = (self.root / name).resolve(strict=True).is_relative_to(self._real)
            except (OSError, RuntimeError):  # a link to nothing, or in a circle: its reading will say so
                self._inside[name] = True
        return self._inside[name]
