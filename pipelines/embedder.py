"""The second stage of embedding: pixels to the vectors of both encoders. Shapes: B inputs of a batch."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.util.metrics import Counter

from cluster.profile import Profile
from cluster.progress import ProgressCounter
from pipelines.encoders import Encoders, load_encoders
from retrieval.artifacts.columns import fixed_size_list
from retrieval.errors import DamagedError, UserError

if TYPE_CHECKING:  # takes seconds to import
    from retrieval.models.image_encoder import ImageEncoder


class Embedder:
    """Both encoders: tables of pixels to tables of vectors, ``vlm`` (B, D1) and ``vision`` (B, D2), float16 unit
    rows.

    Raises:
        UserError: this machine has other weights under a model's URI than the job began with (``other-model``).
    """

    def __init__(self, profile: Profile, expected: Encoders, counter: ProgressCounter | None = None) -> None:
        self.vlm, self.vision = load_encoders(profile)
        for role, model, record in (("vlm", self.vlm, expected.vlm), ("vision", self.vision, expected.vision)):
            if model.fingerprint != record.fingerprint:
                raise UserError(
                    f"{platform.node()} has another model at {model.uri} ({model.fingerprint}) than the job began with"
                    f" ({record.fingerprint}); give all machines the same weights, and run it again",
                    code="other-model",
                    field=role,
                )
        self.counter = counter
        self.idle_since = time.perf_counter()
        self.embedded = Counter(
            "mindseye_index_rows", "Inputs that were embedded or rejected.", tag_keys=("batch", "outcome")
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        started = time.perf_counter()
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
        self._count(table, started)
        return table

    def _count(self, table: pa.Table, started: float) -> None:
        if self.counter is None:
            return
        batch = table["batch"][0].as_py() if table.num_rows else ""
        rejected = table.num_rows - table["reason"].null_count
        for outcome, count in (("embedded", table.num_rows - rejected), ("rejected", rejected)):
            if count:
                self.embedded.inc(count, {"batch": batch, "outcome": outcome})
        now = time.perf_counter()
        self.counter.add(table.num_rows, embed=now - started, wait=started - self.idle_since)
        self.idle_since = now


def _pixels(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    return (array.chunk(0) if isinstance(array, pa.ChunkedArray) else array).to_numpy_ndarray()


def _unit_vectors(encoder: ImageEncoder, pixels_BHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (B, D) of a batch, and which rows of them are unit vectors (B,): an encoder can fail at one image."""
    try:
        rows_BD = encoder.encode_images(pixels_BHWC)
    except DamagedError:
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
