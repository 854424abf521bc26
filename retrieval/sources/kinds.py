"""The kinds of sources: what each must be able to do, and which there are.

A new kind is a file that has a class with what ``Kind`` asks for, and an entry in ``KINDS``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import pyarrow as pa

from retrieval.folder import Folder
from retrieval.sources.files import File
from retrieval.sources.image_folder import ImageFolder
from retrieval.sources.inputs import Row
from retrieval.sources.parquet import Parquet
from retrieval.sources.rows import RowReader
from retrieval.sources.tar import Tar
from retrieval.sources.uri_list import UriList


class Lookup(Protocol):
    """Finds images again by the paths of their rows. Several threads may ask at once."""

    def read(self, paths: set[str]) -> dict[str, bytes]:
        """Return the images that are there, by path; a path that is no input's is left out.

        Raises:
            OSError: one may be there, but cannot be read now.
        """


class Kind(Protocol):
    """A kind of file that holds images, or names them.

    Attributes:
        title: what such a source is called in messages.
        in_folders: whether a folder may be made of such files (of one kind only).
        alone: whether one such file is a source.
    """

    title: str
    in_folders: bool
    alone: bool

    def has(self, name: str) -> bool:
        """Return whether a file of this name is of this kind."""

    def inputs(self, root: Folder, files: Sequence[File]) -> Iterator[pa.Table]:
        """Yield the inputs of files of this kind, in order, as ``inputs_table`` makes them.

        What is wrong with something in a file is a row with a reason.

        Raises:
            OSError, ArrowException: a file cannot be read.
        """

    def reader(self) -> RowReader:
        """Return what reads inputs of such files. It may hold some of a file from one call to the next."""

    def lookup(self, root: Folder, name: str | None, *, links_out: bool) -> Lookup:
        """Return what finds images of a source of this kind again.

        Args:
            root: the source's folder.
            name: of the file, if the source is one.
            links_out: whether links that lead out of a local folder are followed.
        """


IMAGES: Final = "images"
"""The kind of what a folder holds that has no files of another kind."""
KINDS: Final[dict[str, Kind]] = {IMAGES: ImageFolder(), "parquet": Parquet(), "tar": Tar(), "list": UriList()}


def kind_of(name: str) -> str | None:
    """Return the kind of a file by its name, None if it is of none."""
    return next((kind for kind, known in KINDS.items() if known.has(name)), None)


def kind_of_row(row: Row) -> str:
    """Return the kind of file that reads an input."""
    return (kind_of(row.file) if row.is_part else None) or IMAGES
