"""The embedding stage on Ray Data: a list of inputs to parts of a Gallery.

    list of inputs ─▶ read, decode, preprocess (tasks) ─▶ embed (pool of actors) ─▶ write

An image is decoded once and crosses to an actor once: each actor holds both encoders. A pool for each encoder would
send every image's pixels twice, and on a GPU the two take turns anyway. An input that can not be used becomes a row of
the rejected table. Ray Data's checkpoint notes which inputs are written, so that a job that is run again goes on there.
Shapes: B inputs of a batch.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data.block import BlockAccessor
from ray.data.checkpoint import CheckpointConfig
from ray.data.checkpoint.checkpoint_filter import CheckpointManager
from ray.data.datasource import BlockBasedFileDatasink
from ray.util.metrics import Counter

from cluster.loading import load_vision, load_vlm
from cluster.profile import Profile
from cluster.progress import ProgressCounter
from pipelines.ray_executor import actor_pool
from pipelines.tables import read_tables
from retrieval.artifacts import Gallery, ModelRecord
from retrieval.artifacts.columns import fixed_size_list
from retrieval.artifacts.gallery import REJECTED_SCHEMA
from retrieval.folder import Folder
from retrieval.images import ImageRejected, decode_reduced
from retrieval.sources.places import is_relative
from retrieval.sources.reader import InputReader

if TYPE_CHECKING:  # the first takes seconds, which the many tasks that never see a model should not
    from retrieval.models.image_encoder import ImageEncoder
    from retrieval.models.preprocess import Preprocess

BLOCKS, ROWS_PER_BLOCK = 1024, (64, 16_384)
_OF_LIST = ("file", "offset", "length", "row_group", "row", "size", "mtime_ns")
"""Columns of the list of inputs that say where an input lies, and end with its reading."""


class Encoders(NamedTuple):
    """What the driver needs to know of the two encoders without loading them."""

    vlm: ModelRecord
    vision: ModelRecord
    vlm_preprocess: Preprocess
    vision_preprocess: Preprocess


def rows_per_block(rows: int) -> int:
    """Return how many inputs make a block, and a part: about a thousand of them, each neither tiny nor too long to be
    lost.
    """
    return min(max(rows // BLOCKS, ROWS_PER_BLOCK[0]), ROWS_PER_BLOCK[1])


def embed(
    batch: Folder,
    inputs: int,
    source: str,
    profile: Profile,
    encoders: Encoders,
    schema: pa.Schema,
    counter: ProgressCounter,
) -> None:
    """Embed the inputs that are listed in ``batch`` and not yet written there.

    Args:
        batch: holds ``inputs/``; is given ``parts/`` and ``checkpoint/``.
        inputs: how many there are in all.
        schema: of the parts.
    """
    context = ray.data.DataContext.get_current()
    stage = profile.embed
    block = max(rows_per_block(inputs), stage.batch)
    files = batch.files("inputs", ".parquet")
    # A dataset takes the context that there is when it is made.
    context.checkpoint_config = CheckpointConfig(
        id_column="input",
        checkpoint_path=f"{batch.path}/checkpoint",
        override_filesystem=batch.filesystem,
        checkpoint_manager_cls=_OnlyCleaning,
        delete_checkpoint_on_success=False,
    )
    try:
        # Else there are more blocks than files, of as few rows as there are CPUs for, which make uneven batches.
        listed = read_tables(batch, files, override_num_blocks=len(files))
    finally:
        context.checkpoint_config = None
    decoder = Decoder(
        InputReader(source), encoders.vlm_preprocess, encoders.vision_preprocess, batch=batch.name, counter=counter
    )
    if len(done := written(batch)):
        listed = listed.map_batches(_not_in, fn_kwargs={"done": [ray.put(done)]}, batch_format="pyarrow")
    embedded = (
        listed.repartition(target_num_rows_per_block=block)
        .map_batches(decoder, batch_size=stage.batch, batch_format="pyarrow")
        .map_batches(
            Embedder,
            fn_constructor_args=(profile, encoders, counter),
            batch_size=stage.batch,
            batch_format="pyarrow",
            compute=actor_pool(stage),
            num_cpus=stage.cpus,
            num_gpus=stage.gpus,
        )
    )
    embedded.write_datasink(GallerySink(batch / "parts", schema, block, counter))


class _OnlyCleaning(CheckpointManager):
    """Deletes what killed tasks have half written, as Ray Data's own does, and leaves it to ``_not_in`` to pass over
    what is done: Ray Data's filter is a pool of actors, which together with ours can hold every CPU of a small machine,
    so that nothing is left to read with.
    """

    def load_checkpoint(self, data_file_dir: str | None = None, data_file_filesystem: Any = None) -> tuple[None, int]:
        self._clean_pending_checkpoints(data_file_dir, data_file_filesystem)
        return None, 0


def written(batch: Folder) -> np.ndarray:
    """Return the inputs of a batch that are written for good, int64, sorted: 8 bytes of memory for each."""
    files = [name for name in batch.files("checkpoint", ".parquet") if not name.endswith(".pending.parquet")]
    with ThreadPoolExecutor(16) as pool:  # on an object store, what costs time is waiting
        tables = list(pool.map(batch.read_table, files))
    return np.sort(np.concatenate([np.empty(0, np.int64), *(table["input"].to_numpy() for table in tables)]))


def _not_in(inputs: pa.Table, done: list[ray.ObjectRef]) -> pa.Table:
    known: np.ndarray = ray.get(done[0])
    numbers = inputs["input"].to_numpy()
    places = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
    return inputs.filter(pa.array(known[places] != numbers))


def decoded_side(preprocesses: Iterable[Preprocess]) -> int | None:
    """Return the side in pixels that an image may be reduced to as it is decoded: what the largest of them resizes to;
    None if one of them has no such size.
    """
    sides = [preprocess.side for preprocess in preprocesses]
    return None if None in sides else max(side for side in sides if side)


class Decoder:
    """Tables of inputs to tables of pixels, ``vlm_pixels`` and ``vision_pixels`` (B, H, W, 3) uint8 tensors.

    Where both encoders want the same geometry, the second is left out. A rejected input has a ``reason``, and black
    pixels.

    Raises:
        OSError: an input can not be read because its whole source is away, which ends the job.
    """

    def __init__(
        self,
        reader: InputReader,
        vlm: Preprocess,
        vision: Preprocess,
        *,
        batch: str = "",
        counter: ProgressCounter | None = None,
    ) -> None:
        self.reader = reader
        self.batch = batch
        self.counter = counter
        self.preprocess = {"vlm_pixels": vlm}
        if vision.geometry != vlm.geometry:
            self.preprocess["vision_pixels"] = vision
        self.side = decoded_side(self.preprocess.values())

    def __call__(self, inputs: pa.Table) -> pa.Table:
        begun = time.perf_counter()
        contents = self.reader.read(inputs)
        files = inputs["file"].to_pylist()
        if any(isinstance(each, OSError) and is_relative(file) for each, file in zip(contents, files, strict=True)):
            self.reader.check_source()
        read = time.perf_counter()
        paths, reasons, details = (inputs[name].to_pylist() for name in ("path", "reason", "detail"))
        made: dict[str, list[Any]] = {name: [] for name in ("id", "width", "height", "reason", "detail")}
        pixels: dict[str, list[np.ndarray]] = {name: [] for name in self.preprocess}
        blank = {name: preprocess.blank() for name, preprocess in self.preprocess.items()}
        for path, reason, detail, content in zip(paths, reasons, details, contents, strict=True):
            row = {"id": None, "width": None, "height": None, "reason": reason, "detail": detail}
            views = blank
            if reason is None:
                try:
                    if isinstance(content, Exception):
                        raise content
                    image = decode_reduced(content, self.side)
                    views = {name: preprocess.pixels(image) for name, preprocess in self.preprocess.items()}
                    row |= {"id": image_id(content, path), "width": image.width, "height": image.height}
                except ImageRejected as rejection:
                    row |= {"reason": rejection.reason, "detail": str(rejection)}
                except OSError as error:
                    row |= {"reason": "unreadable", "detail": str(error)}
            for name, value in row.items():
                made[name].append(value)
            for name, view in views.items():
                pixels[name].append(view)
        table = inputs.drop_columns([*_OF_LIST, "reason", "detail"])
        for name, values in made.items():
            kind = pa.int32() if name in ("width", "height") else pa.string()
            table = table.append_column(name, pa.array(values, kind))
        table = table.append_column("batch", pa.array([self.batch] * table.num_rows, pa.string()))
        for name, views_BHWC in pixels.items():
            table = table.append_column(name, pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(views_BHWC)))
        if self.counter is not None:
            self.counter.add(read=read - begun, decode=time.perf_counter() - read)
        return table


def image_id(data: bytes, path: str) -> str:
    """Return the id of an image: 16 hex digits of its content's hash, 8 of its path's. Equal content sorts together."""
    content, name = hashlib.blake2b(data, digest_size=8), hashlib.blake2b(path.encode(errors="replace"), digest_size=4)
    return f"{content.hexdigest()}-{name.hexdigest()}"


class Embedder:
    """Both encoders: tables of pixels to tables of vectors, ``vlm`` (B, D1) and ``vision`` (B, D2), float16 unit
    rows.

    Raises:
        ValueError: this machine has other weights under a model's URI than the job began with.
    """

    def __init__(self, profile: Profile, expected: Encoders, counter: ProgressCounter | None = None) -> None:
        self.vlm = load_vlm(profile)
        self.vision = load_vision(profile)
        for model, record in ((self.vlm, expected.vlm), (self.vision, expected.vision)):
            if model.fingerprint != record.fingerprint:
                raise ValueError(
                    f"{platform.node()} has another model at {model.uri} ({model.fingerprint}) than the job began with"
                    f" ({record.fingerprint}); give all machines the same weights, and run it again"
                )
        self.counter = counter
        self.idle_since = time.perf_counter()
        self.embedded = Counter(
            "mindseye_index_rows", "Inputs that were embedded or rejected.", tag_keys=("batch", "outcome")
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        begun = time.perf_counter()
        pixels = {name: _pixels(table[name]) for name in ("vlm_pixels", "vision_pixels") if name in table.column_names}
        table = table.drop_columns(list(pixels))
        good = table["reason"].is_null().to_numpy(zero_copy_only=False)
        good = np.array(good)  # writable
        vectors = {}
        for name, encoder in (("vlm", self.vlm), ("vision", self.vision)):
            of_encoder = pixels.get(f"{name}_pixels", pixels["vlm_pixels"])
            vectors[name] = np.zeros((len(good), encoder.dim), np.float16)
            if good.any():
                made, sound = _unit_vectors(encoder, of_encoder if good.all() else of_encoder[good])
                vectors[name][good] = made
                good[np.flatnonzero(good)[~sound]] = False
        table = _rejected(table, ~good & table["reason"].is_null().to_numpy(zero_copy_only=False))
        for name, rows in vectors.items():
            table = table.append_column(name, fixed_size_list(rows))
        self._count(table, begun)
        return table

    def _count(self, table: pa.Table, begun: float) -> None:
        if self.counter is None:
            return
        batch = table["batch"][0].as_py() if table.num_rows else ""
        rejected = table.num_rows - table["reason"].null_count
        for outcome, count in (("embedded", table.num_rows - rejected), ("rejected", rejected)):
            if count:
                self.embedded.inc(count, {"batch": batch, "outcome": outcome})
        now = time.perf_counter()
        self.counter.add(table.num_rows, embed=now - begun, wait=begun - self.idle_since)
        self.idle_since = now


def _pixels(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    return (array.chunk(0) if isinstance(array, pa.ChunkedArray) else array).to_numpy_ndarray()


def _unit_vectors(encoder: ImageEncoder, pixels_BHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (B, D) of a batch, and which rows of them are unit vectors (B,): an encoder can fail at one image."""
    try:
        rows_BD = encoder.encode_images(pixels_BHWC)
    except ValueError:
        if len(pixels_BHWC) == 1:
            return np.zeros((1, encoder.dim), np.float32), np.zeros(1, bool)
        found = [_unit_vectors(encoder, pixels_BHWC[i : i + 1]) for i in range(len(pixels_BHWC))]
        return np.concatenate([rows for rows, _ in found]), np.concatenate([sound for _, sound in found])
    return rows_BD, np.abs(np.linalg.norm(rows_BD, axis=1) - 1) < 0.01


def _rejected(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """The table with the given rows rejected, since an encoder made no vector of them."""
    if not rows.any():
        return table
    for name, text in (
        ("reason", "no-vector"),
        ("detail", "an encoder makes a vector of this image that is not finite, or zero"),
    ):
        column = pc.if_else(pa.array(rows), text, table[name])
        table = table.set_column(table.column_names.index(name), name, column)
    return table


class GallerySink(BlockBasedFileDatasink):
    """Writes embedded and rejected rows to two Parquet files of one name each (``Gallery.EMBEDDED``, ``REJECTED``).

    Ray Data's checkpoint deletes what a task has written that was killed, by the beginning of the name: nothing is
    there twice.
    """

    def __init__(self, folder: Folder, schema: pa.Schema, rows: int, counter: ProgressCounter | None = None) -> None:
        super().__init__(folder.path, filesystem=folder.filesystem, min_rows_per_file=rows, file_format="parquet")
        self.folder = folder
        self.schema = schema
        self.counter = counter

    def write_block(self, block: BlockAccessor, block_index: int, ctx: Any) -> None:
        begun = time.perf_counter()
        name = self.filename_provider.get_filename_for_task(ctx.kwargs["write_uuid"], ctx.task_idx)
        rows = block.to_arrow()
        usable = rows["reason"].is_null()
        for ending, table in (
            (Gallery.EMBEDDED, rows.filter(usable).select(self.schema.names).cast(self.schema)),
            (Gallery.REJECTED, rows.filter(pc.invert(usable)).select(REJECTED_SCHEMA.names)),
        ):
            if table.num_rows:
                self.folder.write_table(name.removesuffix(".parquet") + ending, table)
        if self.counter is not None:
            self.counter.add(write=time.perf_counter() - begun)
