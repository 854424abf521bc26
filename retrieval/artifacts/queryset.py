"""The query set: texts with their text vectors and imagined images. Q queries, K images, D1 VLM, D2 vision encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.artifacts.artifact import Artifact
from retrieval.artifacts.columns import matrix, whole
from retrieval.artifacts.manifests import QuerySetManifest
from retrieval.errors import DamagedError

OPTIONAL = pa.schema(
    [
        ("relevant", pa.list_(pa.string())),
        ("junk", pa.list_(pa.string())),
        ("aspect", pa.string()),
        ("value", pa.string()),
    ]
)
"""Null where a query has none, and in all queries of a set that an earlier version wrote: the ids of the gallery rows
that are relevant to a query, and of those that are left out of its ranking; what a word of a dictionary is a value of
(``retrieval.words``), such as colour, and which value."""


def queryset_schema(vlm_dim: int, vision_dim: int) -> pa.Schema:
    """Return the schema of a query set. The lists of one row are parallel: image i's seed, vision vector, thumbnail."""
    return pa.schema(
        [
            ("id", pa.string()),
            ("text", pa.string()),
            ("kind", pa.string()),
            ("label", pa.string()),
            ("vlm", pa.list_(pa.float32(), vlm_dim)),
            ("vision", pa.list_(pa.list_(pa.float32(), vision_dim))),
            ("seeds", pa.list_(pa.int64())),
            ("thumbnails", pa.list_(pa.binary())),
            ("rejected", pa.list_(pa.string())),
            *OPTIONAL,
        ]
    )


class QuerySet(Artifact[QuerySetManifest]):
    """Texts with their text vectors and imagined images: Parquet parts under ``queries/`` (``queryset_schema``)."""

    kind = "queryset"
    manifest_type = QuerySetManifest

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the queries, all columns or some, sorted by id; optional columns that a part lacks are null.

        Raises:
            DamagedError: a part is missing or not Parquet; the field is the file, or the folder of parts.
        """
        tables = list(self.parts(columns))
        found = sum(table.num_rows for table in tables)
        if found != self.manifest.queries:
            raise DamagedError(
                f"{self.uri} has {found:,} queries, and its manifest records {self.manifest.queries:,}: a file below"
                " queries/ is missing, or one too many; restore it, or make the queryset again",
                field=(self.folder / "queries").uri,
            )
        return pa.concat_tables(tables).sort_by("id")

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the queries part by part, as ``table`` has them but for their order.

        Raises:
            DamagedError: a part is not Parquet; the field is the file.
        """
        for name in self.folder.files("queries", ".parquet"):
            with self.reading(name):
                part = self._part(name, columns)
            yield part

    def chosen(self, ids: Sequence[str]) -> pa.Table:
        """Return some queries with all columns, in the order given; of the others, a part at a time is held.

        Raises:
            DamagedError: a part is not Parquet; the field is the file.
        """
        wanted = pa.array(ids, pa.string())
        found = pa.concat_tables([part.filter(pc.is_in(part["id"], wanted)) for part in self.parts()])
        return found.take(pc.index_in(wanted, found["id"].combine_chunks()))

    def mean(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the means of t and v, float32 (D1,) and (D2,), v averaged over images; None if an earlier version of
        mindseye wrote this set, or it was not imagined here.

        Raises:
            DamagedError: the manifest's is not a vector of these dimensions.
        """
        return self.halves_of_mean(self.manifest.mean)

    def _part(self, name: str, columns: Sequence[str] | None) -> pa.Table:
        table = self.folder.read_table(name, columns)
        for field in OPTIONAL:
            if field.name not in table.column_names and (columns is None or field.name in columns):
                table = table.append_column(field, pa.nulls(table.num_rows, field.type))
        return table


def text_vectors(queries: pa.Table) -> np.ndarray:
    """Return the text vectors of a query table, float32 (Q, D1)."""
    return matrix(queries["vlm"])


def vision_vectors(queries: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the image vectors of a query table.

    Returns:
        float32 (Q, K, D2), zero where an image is missing, with K the most that a query has, and at least 1; and the
        mask of present ones, bool (Q, K).
    """
    column = whole(queries["vision"])
    counts = np.diff(column.offsets.to_numpy())
    dim = column.type.value_type.list_size
    features = np.zeros((len(column), max(counts.max(initial=1), 1), dim), np.float32)
    mask = np.arange(features.shape[1]) < counts[:, None]
    features[mask] = matrix(column.flatten())
    return features, mask
