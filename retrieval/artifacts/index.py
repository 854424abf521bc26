"""The index: numbered, immutable versions of FAISS shards, and the state of each version of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.artifacts.artifact import Artifact
from retrieval.artifacts.manifests import MANIFEST, IndexManifest
from retrieval.folder import Folder
from retrieval.index.cache import open_copy
from retrieval.index.files import ROWS, verify
from retrieval.index.shard import Shard

PLAN, REFUSED = "plan.json", "refused.json"
"""What an unfinished version is built from, and the recall of one that was refused for finding too little."""
REMOVED_SCHEMA = pa.schema([("shard", pa.int32()), ("id", pa.string())])
VersionState = Literal["published", "refused", "unfinished", "superseded", "pruned"]


class Index(Artifact[IndexManifest]):
    """One immutable version of a sharded FAISS index: ``shard-00000/`` … with the files of ``retrieval.index.files``.

    A version that was made from another by adding or removing rows shares that one's shards.
    """

    kind = "index"
    manifest_type = IndexManifest
    REMOVED = "removed.parquet"
    """Tombstones, the rows that lie in shards and are never returned: ``shard`` (place in the manifest) and ``id``."""

    @classmethod
    def open(cls, uri: str | Path | Folder) -> Self:
        """Open the newest published version of the index at ``uri``, or the one version that ``uri`` names.

        Raises:
            UserError: as ``Artifact.open``.
        """
        folder = uri if isinstance(uri, Folder) else Folder(uri)
        if folder.exists(MANIFEST):
            return super().open(folder)
        published = published_versions(folder)
        return super().open(folder / published[-1] if published else folder)

    @property
    def version(self) -> str:
        return self.folder.name

    @property
    def root(self) -> Folder:
        """The folder that holds all versions."""
        return self.folder.parent

    def mean(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the means of c and d, float32 (D1,) and (D2,); None if an earlier version of mindseye wrote this one.

        Rows that were removed since their shard was built count in it.

        Raises:
            DamagedError: the manifest's is not a vector of these dimensions.
        """
        return self.halves_of_mean(self.manifest.mean)

    def shard_folder(self, number: int) -> Folder:
        """Return the folder of a shard, which may be another version's."""
        record = self.manifest.shards[number]
        return self.root / record.version / record.name

    def removed(self) -> pa.Table:
        """Return the removed rows: ``shard`` int32 and ``id`` string.

        Raises:
            DamagedError: their file is missing or not Parquet.
        """
        if not self.manifest.removed:
            return REMOVED_SCHEMA.empty_table()
        with self.reading(self.REMOVED):
            return self.folder.read_table(self.REMOVED)

    def removed_ids(self, number: int) -> pa.ChunkedArray:
        """Return the ids of the removed rows of one shard."""
        table = self.removed()
        return table.filter(pc.equal(table["shard"], number))["id"]

    def live_rows(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Return the rows of one shard that are not removed, by ascending id.

        Args:
            number: place of the shard in the manifest.
            columns: ``id`` and others of its row table.

        Raises:
            DamagedError: a file is missing or not Parquet.
        """
        folder = self.shard_folder(number)
        with self.reading(ROWS, folder):
            rows = folder.read_table(ROWS, columns)
        return rows.filter(pc.invert(pc.is_in(rows["id"], self.removed_ids(number).combine_chunks())))

    def shard(self, number: int, *, mmap: bool = True, verified: bool = False) -> Shard:
        """Open one shard; of a remote filesystem, this machine's copy of its files (``retrieval.index.cache``).

        Args:
            number: place in the manifest.
            mmap: as ``Shard.open``.
            verified: read its files whole, to compare their SHA-256 with the manifest's.

        Raises:
            DamagedError: as ``Shard.open``; or a file is not the one that the manifest records.
        """
        folder, files = self.shard_folder(number), self.manifest.shards[number].files

        def opened(place: Path) -> Shard:
            return Shard.open(place, mmap=mmap, removed=self.removed_ids(number))

        if folder.local_path is None:
            return open_copy(folder, files, opened, verified=verified)
        if verified:
            verify(folder.local_path, files)
        return opened(folder.local_path)

    def shards(self) -> list[Shard]:
        """Open all shards, in the manifest's order."""
        return [self.shard(i) for i in range(len(self.manifest.shards))]


def version_names(root: Folder) -> list[str]:
    """Return the names of an index's version folders, published or not, oldest first."""
    return [name for name in root.folders() if name.isdigit()]


def published_versions(root: Folder) -> list[str]:
    """Return the names of an index's published versions, oldest first."""
    return [name for name in version_names(root) if root.exists(f"{name}/{MANIFEST}")]


def version_states(root: Folder) -> dict[str, VersionState]:
    """Return the state of each version of an index by its name, oldest first.

    - published: it can be opened;
    - refused: it was built, and found too little to be published;
    - unfinished: newer than all published ones. One with a ``PLAN`` can be resumed;
    - superseded: it was not finished before a newer one was published, and is not used;
    - pruned: of what it had, only the shards are left that other versions share.
    """
    names, published = version_names(root), set(published_versions(root))
    newest = max(published, default="")

    def state(name: str) -> VersionState:
        if name in published:
            return "published"
        if root.exists(f"{name}/{REFUSED}"):
            return "refused"
        if name > newest:
            return "unfinished"
        return "superseded" if root.exists(f"{name}/{PLAN}") else "pruned"

    return {name: state(name) for name in names}


def new_version(root: Folder) -> Folder:
    """Return the folder of the next version; numbers of unpublished leftovers are not used again."""
    names = version_names(root)
    return root / f"{(int(names[-1]) if names else 0) + 1:06d}"
