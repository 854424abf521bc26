"""The indexing job's first half: images to a Gallery, on Ray Data.

    list or read ─▶ decode, preprocess (tasks) ─▶ embed (pool of actors) ─▶ write

An image is decoded once and crosses to an actor once: each actor holds both encoders. A pool for each encoder would
send every image's pixels twice, and on a GPU the two take turns anyway. An input that can not be used becomes a row of
the rejected table.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor

from cluster.models import load_vision, load_vlm, record_of
from cluster.profile import Profile
from cluster.session import actor_pool, progress
from pipelines.sources import Source, open_source
from retrieval.artifacts import (
    MANIFEST,
    REJECTED_SCHEMA,
    Gallery,
    GalleryManifest,
    ModelRecord,
    fixed_size_list,
    gallery_schema,
)
from retrieval.encoders import Preprocess
from retrieval.folder import Folder
from retrieval.images import ImageRejected, decode

Batch = dict[str, np.ndarray]
MIN_ROWS_PER_PART = 4096


def gallery_of(source_uri: str, target: str, profile: Profile) -> Gallery:
    """Open the gallery at ``target`` if it was made of this source by these models; build it if there is none.

    Raises:
        ValueError: there is a gallery of something else at ``target``, or as ``build_gallery``.
    """
    if not Folder(target).exists(MANIFEST):
        return build_gallery(source_uri, target, profile)
    gallery = Gallery.open(target)
    made_of = {"source": gallery.manifest.source} | {role: model.uri for role, model in gallery.manifest.models.items()}
    asked = {"source": Folder(source_uri).uri, "vlm": profile.models.vlm, "vision": profile.models.vision}
    for what, value in asked.items():
        if made_of[what] != value:
            raise ValueError(
                f"{gallery.uri} already holds a gallery of another {what} ({made_of[what]}, now {value});"
                " give another target, or delete it first"
            )
    return gallery


def build_gallery(source_uri: str, target: str, profile: Profile) -> Gallery:
    """Embed every image of a source and publish the Gallery at ``target``.

    Raises:
        ValueError: the source can not be read as one, ``target`` already holds a gallery, or no image could be used.
    """
    folder = Folder(target)
    if folder.exists(MANIFEST):
        raise ValueError(f"{folder.uri} already holds a gallery; give another target, or delete it first")
    source = open_source(source_uri)
    for leftover in ("parts", "rejected"):
        folder.delete(leftover)
    folder.create()
    encoders = ray.get(
        _look_at_encoders.options(num_cpus=profile.embed.cpus, num_gpus=profile.embed.gpus).remote(profile)
    )
    sink = GallerySink(folder, encoders.vlm.dim, encoders.vision.dim)
    with progress("embedding images", source.rows) as counter:
        embedded_rows(source, profile, encoders, counter).write_datasink(sink)
    if not sink.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sink.rejected.items())
        raise ValueError(f"none of the images of {source_uri} could be used ({reasons}); see {folder.uri}/rejected")
    arrived = sink.rows + sink.rejected.total()
    if arrived != source.rows:
        raise RuntimeError(f"{arrived} inputs of {source.rows} in {source_uri} arrived in {folder.uri}")
    manifest = GalleryManifest(
        source=Folder(source_uri).uri,
        rows=sink.rows,
        rejected=dict(sink.rejected),
        models={"vlm": encoders.vlm, "vision": encoders.vision},
    )
    return Gallery.publish(folder, manifest)


class Encoders(NamedTuple):
    """What the driver needs to know of the two encoders without loading them."""

    vlm: ModelRecord
    vision: ModelRecord
    vlm_preprocess: Preprocess
    vision_preprocess: Preprocess


@ray.remote
def _look_at_encoders(profile: Profile) -> Encoders:
    vlm, vision = load_vlm(profile), load_vision(profile)
    return Encoders(record_of(vlm), record_of(vision), vlm.preprocess, vision.preprocess)


def embedded_rows(
    source: Source, profile: Profile, encoders: Encoders, counter: ActorHandle | None = None
) -> ray.data.Dataset:
    """Return the lazy dataset of embedded and rejected rows; consuming it does the work."""
    stage = profile.embed
    decoder = Decoder(source.root, encoders.vlm_preprocess, encoders.vision_preprocess)
    return source.dataset.map_batches(
        decoder, batch_size=stage.batch, batch_format="numpy", zero_copy_batch=True
    ).map_batches(
        Embedder,
        fn_constructor_args=(profile, counter),
        batch_size=stage.batch,
        batch_format="numpy",
        zero_copy_batch=True,
        compute=actor_pool(stage),
        num_cpus=stage.cpus,
        num_gpus=stage.gpus,
    )


class Decoder:
    """Batches of inputs to batches of pixels, ``vlm_pixels`` and ``vision_pixels`` (B, H, W, 3) uint8.

    Where both encoders want the same geometry, the second is left out. A rejected input has a ``reason``, and black
    pixels.
    """

    def __init__(self, root: Folder | None, vlm: Preprocess, vision: Preprocess) -> None:
        self.root = root
        self.preprocess = {"vlm_pixels": vlm}
        if vision.geometry != vlm.geometry:
            self.preprocess["vision_pixels"] = vision

    def __call__(self, batch: Batch) -> Batch:
        rows = [self._row(batch, i) for i in range(len(batch["path"]))]
        columns = {name: np.array([row[name] for row in rows]) for name in ("width", "height")}
        columns |= {
            name: np.array([row[name] for row in rows], dtype=object)
            for name in ("id", "path", "label", "reason", "detail")
        }
        for name, preprocess in self.preprocess.items():
            blank = preprocess.blank()
            columns[name] = np.stack([row.get(name, blank) for row in rows])
        return columns

    def _row(self, batch: Batch, i: int) -> dict[str, Any]:
        path, label = batch["path"][i], batch["label"][i]
        row = {"id": "", "path": path, "label": label, "reason": "", "detail": "", "width": 0, "height": 0}
        try:
            data = batch["data"][i] if "data" in batch else self.root.read_bytes(path)  # type: ignore[union-attr]
            image = decode(data)
        except OSError as error:
            return row | {"reason": "unreadable", "detail": str(error)}
        except ImageRejected as rejection:
            return row | {"reason": rejection.reason, "detail": str(rejection)}
        pixels = {name: preprocess.pixels(image) for name, preprocess in self.preprocess.items()}
        return row | {"id": image_id(data, path), "width": image.width, "height": image.height} | pixels


def image_id(data: bytes, path: str) -> str:
    """Return the id of an image: 16 hex digits of its content's hash, 8 of its path's. Equal content sorts together."""
    content, name = hashlib.blake2b(data, digest_size=8), hashlib.blake2b(path.encode(errors="replace"), digest_size=4)
    return f"{content.hexdigest()}-{name.hexdigest()}"


class Embedder:
    """Both encoders: batches of pixels to batches of vectors, ``vlm`` (B, D1) and ``vision`` (B, D2), float16 unit
    rows.
    """

    def __init__(self, profile: Profile, counter: ActorHandle | None) -> None:
        self.vlm = load_vlm(profile)
        self.vision = load_vision(profile)
        self.counter = counter

    def __call__(self, batch: Batch) -> Batch:
        vlm_pixels = batch.pop("vlm_pixels")
        vision_pixels = batch.pop("vision_pixels", vlm_pixels)
        good = batch["reason"] == ""
        for name, encoder, pixels in (("vlm", self.vlm, vlm_pixels), ("vision", self.vision, vision_pixels)):
            batch[name] = np.zeros((len(good), encoder.dim), np.float16)
            if good.any():
                batch[name][good] = encoder.encode_images(pixels if good.all() else pixels[good])
        if self.counter is not None:
            self.counter.add.remote(len(good))
        return batch


class GallerySink(Datasink[tuple[int, Counter]]):
    """Writes embedded rows to ``parts/`` and rejected ones to ``rejected/``; afterwards knows how many there are of
    each.

    A write task that is retried writes the same files again, so nothing is written twice.
    """

    def __init__(self, folder: Folder, vlm_dim: int, vision_dim: int) -> None:
        self.folder = folder
        self.schema = gallery_schema(vlm_dim, vision_dim)
        self.rows = 0
        self.rejected: Counter[str] = Counter()

    @property
    def min_rows_per_write(self) -> int:
        return MIN_ROWS_PER_PART

    def write(self, blocks: Iterable[Block], ctx: Any) -> tuple[int, Counter]:
        accessors = [BlockAccessor.for_block(block) for block in blocks]
        # An empty block may come without columns.
        batches = [accessor.to_numpy() for accessor in accessors if accessor.num_rows()]
        if not batches:
            return 0, Counter()
        columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        good = columns["reason"] == ""
        if good.any():
            self.folder.write_table(
                f"parts/{ctx.task_idx:06d}.parquet", self._part({k: v[good] for k, v in columns.items()})
            )
        bad = {name: columns[name][~good] for name in REJECTED_SCHEMA.names}
        if len(bad["path"]):
            self.folder.write_table(f"rejected/{ctx.task_idx:06d}.parquet", pa.table(bad, schema=REJECTED_SCHEMA))
        return int(good.sum()), Counter(bad["reason"].tolist())

    def _part(self, columns: Batch) -> pa.Table:
        arrays = {name: columns[name] for name in ("id", "path", "width", "height")}
        label = pa.array(columns["label"], pa.string(), mask=columns["label"] == "")
        vectors = {name: fixed_size_list(columns[name]) for name in ("vlm", "vision")}
        table = pa.table(arrays | {"label": label} | vectors)
        return table.select(self.schema.names).cast(self.schema)

    def on_write_complete(self, write_result: Any) -> None:
        for rows, rejected in write_result.write_returns:
            self.rows += rows
            self.rejected += rejected
