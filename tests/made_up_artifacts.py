"""Manifests and tables that tests of artifacts publish: made up, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tiny_artifacts import records

from retrieval.artifacts import Gallery
from retrieval.artifacts.columns import fixed_size_list
from retrieval.artifacts.gallery import gallery_schema
from retrieval.artifacts.manifests import GalleryManifest
from retrieval.folder import Folder

MODELS: Any = records(vlm="sha256:aa", vision="sha256:bb")


def gallery_manifest(**changes: Any) -> GalleryManifest:
    batch = {"name": "000001", "source": "/images", "inputs": 2, "rows": 2}
    return GalleryManifest(**{"rows": 2, "batches": [batch], "parts": [], "models": MODELS} | changes)


def publish_gallery(folder: Path, **changes: Any) -> Gallery:
    return Gallery.publish(Folder(folder), gallery_manifest(**changes))


def gallery_table(first: int, rows: int) -> pa.Table:
    numbers = np.arange(first, first + rows)
    vectors = {"vlm": np.stack([numbers] * 2, 1), "vision": np.stack([numbers] * 3, 1)}
    columns = {
        "id": [f"{i:03d}" for i in numbers],
        "path": [f"ü/{i}.jpg" for i in numbers],
        "label": [None if i % 2 else "red star" for i in numbers],
        "width": numbers,
        "height": numbers,
        "batch": ["000001"] * rows,
    }
    lists = {name: fixed_size_list(rows_ND.astype(np.float16)) for name, rows_ND in vectors.items()}
    return pa.table(columns | lists).cast(gallery_schema(2, 3))
