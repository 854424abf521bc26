"""The gallery: embedded images as Parquet parts, and tables of rejected inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from retrieval.artifacts.artifact import Artifact
from retrieval.artifacts.manifests import BatchRecord, GalleryManifest, ModelRecord, PartRecord, Role
from retrieval.folder import Folder

REJECTED_SCHEMA = pa.schema([("path", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


def gallery_schema(vlm_dim: int, vision_dim: int, metadata: Iterable[pa.Field] = ()) -> pa.Schema:
    """Return the schema of a gallery's parts; ``metadata`` are the columns that its source has beside ours."""
    return pa.schema(
        [
            ("id", pa.string()),
            ("path", pa.string()),
            ("label", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("batch", pa.string()),
            *metadata,
            ("vlm", pa.list_(pa.float16(), vlm_dim)),
            ("vision", pa.list_(pa.float16(), vision_dim)),
        ]
    )


class Gallery(Artifact[GalleryManifest]):
    """Embedded images: Parquet parts (``gallery_schema``) and tables of rejected inputs, in a folder for each batch."""

    kind = "gallery"
    manifest_type = GalleryManifest
    EMBEDDED, REJECTED = "-embedded.parquet", "-rejected.parquet"
    """How the names of the two tables end that one task writes."""

    @classmethod
    def of_tables(
        cls, uri: str | Path, tables: Iterable[pa.Table], *, source: str, models: Mapping[Role, ModelRecord]
    ) -> Self:
        """Publish a gallery of vectors that were made elsewhere, as one batch.

        Args:
            uri: the folder to write to.
            tables: a part for each; their columns are those of ``gallery_schema`` but ``batch``.
            source: what the paths are relative to.
            models: which made the vectors.
        """
        folder, name = Folder(uri), "000001"
        parts = []
        for number, table in enumerate(tables):
            of_batch = pa.array([name] * table.num_rows, pa.string())
            file = f"{cls.batch(name, 'parts')}/{number:06d}{cls.EMBEDDED}"
            folder.write_table(file, table.add_column(5, "batch", of_batch))
            parts.append(PartRecord(name=file, rows=table.num_rows))
        rows = sum(part.rows for part in parts)
        batch = BatchRecord(name=name, source=source, inputs=rows, rows=rows)
        return cls.publish(folder, GalleryManifest(rows=rows, batches=[batch], parts=parts, models=dict(models)))

    @staticmethod
    def batch(name: str, inside: str = "") -> str:
        """Return the folder of a batch, or a folder in it, relative to the gallery."""
        return f"batches/{name}/{inside}".rstrip("/")

    def parts(self) -> list[str]:
        """Return the names of the Parquet parts, relative to the folder."""
        return [part.name for part in self.manifest.parts]

    def tables(self, columns: Sequence[str] | None = None, *, rows: int = 65_536) -> Iterator[pa.Table]:
        """Yield the gallery as tables of at most ``rows`` rows, part by part, so that it is never whole in memory.

        Raises:
            DamagedError: a part is missing or not Parquet.
        """
        for part in self.parts():
            yield from self.part_tables(part, columns, rows=rows)

    def part_tables(
        self, part: str, columns: Sequence[str] | None = None, *, without: Sequence[str] = (), rows: int = 65_536
    ) -> Iterator[pa.Table]:
        """Yield a part as tables of at most ``rows`` rows; columns as of ``Folder.tables``.

        Raises:
            DamagedError: it is missing or not Parquet.
        """
        with self.reading(part):
            yield from self.folder.tables(part, columns, without=without, rows=rows)

    def rejected(self) -> pa.Table:
        """Return the rejected inputs: ``path``, ``reason`` (a short fixed word) and ``detail`` (a sentence).

        Where a later batch of the same source met an input again, what that batch made of it counts.
        """
        of_source: dict[str, pa.Table] = {}
        for batch in self.manifest.batches:
            found = of_source.get(batch.source, REJECTED_SCHEMA.empty_table())
            for name in self.folder.files(self.batch(batch.name, "inputs"), ".parquet") if found.num_rows else ():
                again = self.folder.read_table(name, ["path"])["path"]
                found = found.filter(pc.invert(pc.is_in(found["path"], again)))
            files = self.folder.files(self.batch(batch.name, "parts"), self.REJECTED)
            of_source[batch.source] = pa.concat_tables([found, *(self.folder.read_table(name) for name in files)])
        return pa.concat_tables([REJECTED_SCHEMA.empty_table(), *of_source.values()])
