"""What a source lists: of which kind it is, which of its files have inputs, and the inputs of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.sources.files import File, files_in, suffix
from retrieval.sources.inputs import pieces, rejected
from retrieval.sources.kinds import IMAGES, KINDS, kind_of


def inputs_of(root: Folder, file: File) -> Iterator[pa.Table]:
    """Yield the inputs of a file that has such; if it cannot be read, or not to its end, a row that says so."""
    kind = kind_of(file.name)
    assert kind is not None, file.name
    try:
        # Not `yield from`: Ray sends values into a generator, which other iterators do not take.
        for table in KINDS[kind].inputs(root, [file]):  # noqa: UP028
            yield table
    except pa.ArrowException as error:
        yield rejected(file, "broken-file", f"{file.name} cannot be read as {suffix(file.name)}: {error}")
    except OSError as error:
        yield rejected(file, "unreadable", f"{file.name} cannot be read: {error}")


def single_file(root: Folder, name: str) -> File:
    """Return the file that a source is.

    Raises:
        UserError: such a file is no source.
    """
    kind = kind_of(name)
    if kind is None or not KINDS[kind].alone:
        expected = ", ".join(known.title for known in KINDS.values() if known.alone)
        raise UserError(
            f"{(root / name).uri} is a file; expected an image folder, or a file of one of these kinds: {expected}",
            code="unknown-kind",
            field="source",
        )
    info = root.filesystem.get_file_info(f"{root.path}/{name}")
    return File(name, info.size or 0, info.mtime_ns or 0)


class FolderWalk:
    """A walk over a folder, which finds out on its way which kind of source that is.

    Attributes:
        containers: the files that the inputs are in, if the folder is not one of images.
        unusable: files that cannot be read or named.
    """

    def __init__(self, root: Folder) -> None:
        self._root = root
        self._examples: dict[str, str] = {}
        self.containers: list[File] = []
        self.unusable: list[File] = []

    def files(self) -> Iterator[list[File]]:
        """Yield the files, many at a time, each time after the attributes have been brought up to date.

        Raises:
            UserError: the folder mixes kinds.
            OSError: it cannot be listed now.
        """
        for piece in pieces(files_in(self._root)):
            for file in piece:
                self._add(file)
            self._check()
            yield piece

    def _add(self, file: File) -> None:
        if file.reason:
            self.unusable.append(file)
            return
        kind = kind_of(file.name)
        if kind is None or not KINDS[kind].in_folders:
            return
        self._examples.setdefault(kind, file.name)
        if kind != IMAGES:
            self.containers.append(file)

    def _check(self) -> None:
        if len(self._examples) > 1:
            found = " and ".join(self._examples[kind] for kind in KINDS if kind in self._examples)
            raise UserError(
                f"{self._root.uri} mixes kinds of sources ({found}); give each kind a folder of its own, and index one"
                " after the other",
                code="mixed-kinds",
                field="source",
            )


def kind_of_folder(root: Folder) -> str:
    """Return the kind of a folder that is not mixed: that of its first file which is of one."""
    kinds = (kind_of(file.name) for file in files_in(root) if not file.reason)
    return next((kind for kind in kinds if kind is not None and KINDS[kind].in_folders), IMAGES)


def inputs_in_order(root: Folder, files: Iterable[File]) -> Iterator[pa.Table]:
    """Yield the inputs of several files, one file after the other."""
    for file in files:
        yield from inputs_of(root, file)
