"""A small gallery and index on disk, made in this process, without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cluster.loading import record_of
from demo.world import render, split
from retrieval.artifacts import Gallery, Index, ModelRecord, QuerySet
from retrieval.artifacts.columns import fixed_size_list
from retrieval.artifacts.gallery import gallery_schema
from retrieval.artifacts.index import new_version
from retrieval.artifacts.manifests import IndexManifest, QuerySetManifest, ShardRecord
from retrieval.artifacts.queryset import queryset_schema
from retrieval.folder import Folder
from retrieval.index.build import build_shard
from retrieval.models.vision import VisionEncoder
from retrieval.models.vlm import VLM
from retrieval.query import QueryEncoder


class Collection(NamedTuple):
    """What ``mindseye index`` leaves in ``folder``, and the vectors that it was made from, in the order of ``ids``."""

    folder: Path
    gallery: Gallery
    index: Index
    ids: list[str]
    vlm_ND1: np.ndarray
    vision_ND2: np.ndarray


def write_collection(
    folder: Path, vlm: VLM, vision: VisionEncoder, *, categories: int = 6, each: int = 4
) -> Collection:
    """Render ``categories`` · ``each`` images under ``folder/images``, embed them, and index them in two shards."""
    pictures, rows = [], []
    for category in split("unseen")[:categories]:
        (folder / "images" / category.name).mkdir(parents=True)
        for i in range(each):
            pictures.append(render(category, i))
            path = f"{category.name}/{i}.png"
            pictures[-1].save(folder / "images" / path)
            rows.append({"id": f"id-{len(rows):03d}", "path": path, "label": category.name, "width": 64, "height": 64})
    vectors = {
        name: encoder.encode_images(np.stack([encoder.preprocess.pixels(picture) for picture in pictures]))
        for name, encoder in (("vlm", vlm), ("vision", vision))
    }
    half = {name: values.astype(np.float16) for name, values in vectors.items()}
    models = {"vlm": record_of(vlm), "vision": record_of(vision)}
    described = pa.Table.from_pylist(rows)
    table = pa.table(
        {name: described[name] for name in described.column_names} | {k: fixed_size_list(v) for k, v in half.items()}
    )
    schema = pa.schema([field for field in gallery_schema(vlm.dim, vision.dim) if field.name != "batch"])
    source = str(folder / "images")
    gallery = Gallery.of_tables(folder / "gallery", [table.cast(schema)], source=source, models=models)  # type: ignore[arg-type]
    described = pa.concat_tables(gallery.tables(["id", "path", "label", "width", "height", "batch"]))
    index = write_index(folder / "index", gallery, described, half["vlm"], half["vision"])
    return Collection(folder, gallery, index, described["id"].to_pylist(), half["vlm"], half["vision"])


def write_index(
    folder: Path, gallery: Gallery, described: pa.Table, vlm_ND1: np.ndarray, vision_ND2: np.ndarray, *, shards: int = 2
) -> Index:
    """Build and publish the next version of the index at ``folder``; row i lies in shard i mod ``shards``."""
    version = new_version(Folder(folder))
    assert version.local_path is not None
    records = []
    for number in range(shards):
        chosen = np.arange(number, len(vlm_ND1), shards)
        table = described.take(pa.array(chosen))
        table = table.append_column("vlm", fixed_size_list(vlm_ND1[chosen]))
        table = table.append_column("vision", fixed_size_list(vision_ND2[chosen]))
        name = f"shard-{number:05d}"
        files = build_shard(
            version.local_path / name, [table], [table], vlm_dim=vlm_ND1.shape[1], factory="Flat", trained=None
        )
        records.append(ShardRecord(version=version.name, name=name, rows=len(chosen), factory="Flat", files=files))
    manifest = IndexManifest(
        gallery=gallery.uri,
        sources=gallery.manifest.sources,
        rows=len(vlm_ND1),
        factory="auto",
        shards=records,
        recall={},
        models=gallery.manifest.models,
    )
    return Index.publish(version, manifest)


def write_words(folder: Path, encoder: QueryEncoder) -> QuerySet:
    """Publish a dictionary of six words, imagined as one image each."""
    colours, patterns, shapes = ("red", "blue"), ("plain", "striped"), ("star", "fish")
    said = dict.fromkeys(colours, "colour") | dict.fromkeys(patterns, "pattern") | dict.fromkeys(shapes, "shape")
    rows: list[dict[str, Any]] = []
    for query, aspect in zip(encoder.encode(list(said), 1), said.values(), strict=True):
        vectors = {"vlm": query.vlm_D1, "vision": list(query.vision_KD2), "aspect": aspect, "value": query.text}
        rows.append({"id": f"{len(rows)}", "text": query.text, "kind": "name", "rejected": [], **vectors})
    place = Folder(folder)
    schema = queryset_schema(encoder.vlm.dim, encoder.vision.dim)
    place.write_table("queries/0.parquet", pa.Table.from_pylist(rows, schema=schema))
    models = {"vlm": record_of(encoder.vlm), "vision": record_of(encoder.vision)}
    manifest = QuerySetManifest(
        queries=len(rows),
        images=1,
        seed=0,
        templates=["{}"],
        models=models,  # type: ignore[arg-type]
        aspects=["pattern", "shape", "colour"],
    )
    return QuerySet.publish(place, manifest)


def records(**fingerprints: str) -> Mapping[str, ModelRecord]:
    """Records of models that need not exist, by role."""
    return {
        role: ModelRecord(uri=f"local-dir:{role}", fingerprint=value, dim=4) for role, value in fingerprints.items()
    }
