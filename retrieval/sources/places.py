"""Where what a row names lies: in the source's own folder, at an absolute path, or at a URI of its own."""

from __future__ import annotations

import errno
import threading
from typing import Final
from urllib.parse import unquote

from pyarrow import fs

from retrieval.errors import UserError
from retrieval.folder import Folder

SCHEMES: Final = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""Of URIs that a list may have: what ``pyarrow.fs`` reads."""


def open_source(source: str) -> tuple[Folder, str | None]:
    """Return the folder that a source's files are relative to, and the file's name in it if the source is one file.

    Raises:
        UserError: there is nothing there.
        OSError: it cannot be seen whether there is; a PermissionError says what to do about credentials.
    """
    root = Folder(source)
    if not root.exists():
        check = "its path" if root.local_path else "its URI, and the bucket's name and region"
        raise UserError(f"there is nothing at {root.uri}; check {check}", code="missing", field="source")
    if root.filesystem.get_file_info(root.path).type == fs.FileType.File:
        return root.parent, root.name
    return root, None


def is_relative(file: str) -> bool:
    """Return whether what a row names lies in the source itself, and not at a path or URI of its own."""
    return not file.startswith("/") and "://" not in file


def split_uri(uri: str) -> tuple[str, str, str, str]:
    """Return scheme, authority, path (with its leading slash, percent signs decoded) and options of a URI."""
    scheme, _, rest = uri.partition("://")
    place, _, options = rest.partition("?")
    authority, slash, path = place.partition("/")
    return scheme.lower(), authority, slash + unquote(path), options


def lies_inside(root: Folder, path: str, *, links_out: bool) -> bool:
    """Return whether a relative path names something in a folder.

    Args:
        links_out: whether symbolic links that lead out of a local folder count as inside.

    Raises:
        OSError: it cannot be seen now.
    """
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


class Places:
    """Finds filesystem and path of what rows of a source name. Several threads may ask at once.

    Args:
        source: what was listed, which is opened when the first place needs it; or its folder.
    """

    def __init__(self, source: str | Folder) -> None:
        self._source = source
        self._opening = threading.Lock()
        self._root = source if isinstance(source, Folder) else None
        self._stores: dict[tuple[str, str], fs.FileSystem] = {}

    @property
    def root(self) -> Folder:
        """What relative names are relative to.

        Raises:
            UserError, OSError: as ``open_source``.
        """
        with self._opening:
            if self._root is None:
                self._root = open_source(str(self._source))[0]
            return self._root

    def locate(self, file: str) -> tuple[fs.FileSystem, str]:
        """Return filesystem and path of what a row names.

        Raises:
            UserError: the URI is of a scheme that is not read (``unknown-scheme``), or cannot be opened (``bad-uri``).
            OSError: as ``open_source``.
        """
        if file.startswith("/"):
            return fs.LocalFileSystem(), file
        root = self.root
        if "://" not in file:
            return root.filesystem, f"{root.path}/{file}"
        scheme, authority, path, options = split_uri(file)
        if scheme not in SCHEMES:
            raise UserError(f"{scheme}:// is not read, only {', '.join(SCHEMES)}", code="unknown-scheme", field="uri")
        if "\0" in path:
            raise UserError(f"{file} has a null character in its path", code="bad-uri", field="uri")
        if not options and root.uri.startswith(f"{scheme}://"):  # of the same store as the list itself
            options = root.uri.partition("?")[2]
        key = (f"{scheme}://{authority}", options)
        if key not in self._stores:
            self._stores[key] = Folder(key[0] + ("?" + options if options else "/")).filesystem
        return self._stores[key], path if scheme in ("file", "hdfs", "viewfs") else f"{authority}{path}"

    def is_remote(self, files: list[str]) -> bool:
        """Return whether any of these lies, or may lie, in an object store."""
        if any("://" in file for file in files):
            return True
        try:
            return self.root.local_path is None
        except (OSError, UserError):
            return False
