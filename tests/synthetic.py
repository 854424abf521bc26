"""Galleries and query sets of made-up vectors, on disk, without a model and without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrieval.artifacts import Gallery, ModelRecord, QuerySet, Role
from retrieval.artifacts.columns import fixed_size_list
from retrieval.artifacts.gallery import gallery_schema
from retrieval.artifacts.manifests import QuerySetManifest
from retrieval.artifacts.queryset import queryset_schema
from retrieval.folder import Folder
from retrieval.fusion import unit

D1, D2 = 8, 12
"""Dimensions of the VLM's and the vision encoder's vectors."""


def models(vlm: str = "sha256:v", vision: str = "sha256:d") -> dict[Role, ModelRecord]:
    """Records of two models, of these fingerprints."""
    return {
        "vlm": ModelRecord(uri="local-dir:vlm", fingerprint=vlm, dim=D1),
        "vision": ModelRecord(uri="local-dir:vision", fingerprint=vision, dim=D2),
    }


def directions(rows: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Random unit vectors, float32 (rows, dim)."""
    return unit(rng.standard_normal((rows, dim)))


def write_gallery(
    folder: Path,
    vlm_ND1: np.ndarray,
    vision_ND2: np.ndarray,
    *,
    ids: Sequence[str] | None = None,
    labels: Sequence[str | None] | None = None,
    parts: int = 3,
    rows: int | None = None,
    source: str = "nowhere",
) -> Gallery:
    """Publish a gallery of these vectors. ``rows`` is what its manifest says, by default the truth."""
    count = len(vlm_ND1)
    ids = ids or [f"row-{i:05d}" for i in range(count)]
    table = pa.table(
        {
            "id": ids,
            "path": [f"{i}.jpg" for i in ids],
            "label": pa.array(labels or [None] * count, pa.string()),
            "width": [64] * count,
            "height": [64] * count,
            "vlm": fixed_size_list(vlm_ND1.astype(np.float16)),
            "vision": fixed_size_list(vision_ND2.astype(np.float16)),
        }
    )
    schema = gallery_schema(vlm_ND1.shape[1], vision_ND2.shape[1])
    table = table.cast(pa.schema([field for field in schema if field.name != "batch"]))
    records = models()
    records["vlm"].dim, records["vision"].dim = vlm_ND1.shape[1], vision_ND2.shape[1]
    tables = [table.take(pa.array(chosen)) for chosen in np.array_split(np.arange(count), parts)]
    gallery = Gallery.of_tables(folder, tables, source=source, models=records)
    if rows is not None:
        gallery = Gallery.publish(gallery.folder, gallery.manifest.model_copy(update={"rows": rows}))
    return gallery


def write_queries(
    folder: Path,
    text_QD1: np.ndarray,
    images: Sequence[np.ndarray],
    *,
    labels: Sequence[str | None],
    kinds: Sequence[str] | None = None,
    thumbnail: bytes = b"",
    records: dict[Role, ModelRecord] | None = None,
    relevant: Sequence[Sequence[str] | None] | None = None,
    junk: Sequence[Sequence[str] | None] | None = None,
) -> QuerySet:
    """Publish a query set of these vectors; ``images`` has for each query its float32 (K, D2), where K may be 0."""
    rows = [
        {
            "id": f"query-{q:03d}",
            "text": f"text {q}",
            "kind": kinds[q] if kinds else "name",
            "label": label,
            "vlm": text,
            "vision": list(vectors_KD2),
            "seeds": list(range(len(vectors_KD2))),
            "thumbnails": [thumbnail] * len(vectors_KD2),
            "rejected": [],
            "relevant": relevant[q] if relevant else None,
            "junk": junk[q] if junk else None,
        }
        for q, (text, vectors_KD2, label) in enumerate(zip(text_QD1, images, labels, strict=True))
    ]
    schema = queryset_schema(text_QD1.shape[1], images[0].shape[1])
    place = Folder(folder)
    place.write_table("queries/000000.parquet", pa.Table.from_pylist(rows, schema=schema))
    manifest = QuerySetManifest(queries=len(rows), images=4, seed=0, templates=["{}"], models=records or models())
    return QuerySet.publish(place, manifest)
