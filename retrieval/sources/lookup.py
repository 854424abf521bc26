"""The images that a gallery was made from, read again by the paths that its rows have."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.sources.kinds import IMAGES, KINDS, Lookup, kind_of
from retrieval.sources.listing import kind_of_folder
from retrieval.sources.places import open_source


class ImageLookup:
    """The images of a gallery's source, of any kind and at any URI. Several threads may read at once.

    Nothing is read before the first image is asked for. Parquet and lists of URIs cost one pass over their paths then,
    and 16 bytes of memory a row from then on; a tar costs one pass over its headers when the first of its members is
    asked for.

    Args:
        source: what the gallery was made from.
        links_out: follow symbolic links that lead out of a local folder. A gallery may have been made through some;
            but only those who may read this machine's files anyway should be shown what they lead to.
    """

    def __init__(self, source: str, *, links_out: bool = False) -> None:
        self._source = source
        self._links_out = links_out
        self._lookup: Lookup | None = None
        self._opening = threading.Lock()

    def bytes_of(self, path: str) -> bytes | None:
        """Return the file of one image, or None if the source has no image of this path.

        A path is one that a listing of the source could have given: for files and members of tars, relative, with
        forward slashes, no part of it empty or hidden (which ``.`` and ``..`` are); for Parquet and lists, one that
        stands in them. Any other path is no image's, and what a URI names that stands in no list is not asked for.

        Raises:
            OSError: there may be one, but it cannot be read now (permissions, network, damage, a store that is away).
        """
        return self.read([path]).get(path)

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the files of several images by path, without those that are not there; as ``bytes_of``."""
        with self._opening:
            if self._lookup is None:
                self._lookup = self._open()
        return self._lookup.read(set(paths))

    def _open(self) -> Lookup:
        try:
            root, name = open_source(self._source)
            kind = kind_of_folder(root) if name is None else kind_of(name)
        except UserError as error:
            if error.code != "missing":  # not the mistake of the caller who asks for an image
                raise OSError(f"{self._source} cannot be opened: {error}") from error
            root, name, kind = Folder(self._source), None, IMAGES
        return KINDS[kind or IMAGES].lookup(root, name, links_out=self._links_out)
