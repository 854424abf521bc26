"""Pixels to vectors, and vectors to the parts of a gallery."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.loading import load_vision, load_vlm, record_of
from cluster.profile import Profile
from pipelines.embedder import Embedder
from pipelines.embedding import PartsSink
from pipelines.encoders import Encoders
from retrieval.artifacts import Gallery
from retrieval.artifacts.columns import fixed_size_list, matrix
from retrieval.artifacts.gallery import gallery_schema
from retrieval.errors import DamagedError
from retrieval.folder import Folder


def test_an_image_that_an_encoder_makes_no_vector_of_costs_one_row(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, vision = load_vlm(profile), load_vision(profile)
    expected = Encoders(record_of(vlm), record_of(vision), vlm.preprocess, vision.preprocess)
    embedder = Embedder(profile, expected)
    sound = embedder.vision.encode_images

    def failing(pixels: np.ndarray) -> np.ndarray:
        if (pixels[:, 0, 0, 0] == 7).any():
            raise DamagedError("a vector that is not finite")
        return sound(pixels)

    monkeypatch.setattr(embedder.vision, "encode_images", failing)
    pixels = np.random.default_rng(0).integers(10, 250, (4, 64, 64, 3), dtype=np.uint8)
    pixels[2, 0, 0, 0] = 7
    table = pa.table({"reason": pa.array([None, "empty", None, None], pa.string()), "detail": [None, "x", None, None]})
    table = table.append_column("vlm_pixels", pa.FixedShapeTensorArray.from_numpy_ndarray(pixels))
    rows = embedder(table)
    assert rows["reason"].to_pylist() == [None, "empty", "no-vector", None]
    assert "not finite, or zero" in rows["detail"][2].as_py()
    np.testing.assert_array_equal(np.linalg.norm(matrix(rows["vision"]).astype(np.float32), axis=1) > 0.9, [1, 0, 0, 1])


def test_sink_writes_embedded_and_rejected_rows_beside_each_other(tmp_path: Path) -> None:
    schema = gallery_schema(2, 3, [pa.field("taken", pa.int64())])
    sink = PartsSink(Folder(tmp_path / "parts"), schema)
    rows = pa.table(
        {
            "input": [0, 1],
            "id": ["a", None],
            "path": ["a.jpg", "b.jpg"],
            "label": pa.array([None, None], pa.string()),
            "width": [4, None],
            "height": [5, None],
            "batch": ["000001"] * 2,
            "taken": [2001, 2002],
            "reason": [None, "empty"],
            "detail": [None, "the file is empty (0 bytes)"],
            "vlm": fixed_size_list(np.ones((2, 2), np.float16)),
            "vision": fixed_size_list(np.ones((2, 3), np.float16)),
        }
    )
    sink.write(rows, "abc_000000")
    [embedded, rejected] = sorted((tmp_path / "parts").iterdir())
    assert embedded.name.endswith(Gallery.EMBEDDED)
    assert rejected.name == embedded.name.replace(Gallery.EMBEDDED, Gallery.REJECTED)
    assert pq.read_table(embedded).to_pylist() == [
        {"id": "a", "path": "a.jpg", "label": None, "width": 4, "height": 5, "batch": "000001", "taken": 2001}
        | {"vlm": [1, 1], "vision": [1, 1, 1]}
    ]
    assert pq.read_table(rejected)["reason"].to_pylist() == ["empty"]
    sink.write(rows.slice(1), "abc_000001")
    assert len(list((tmp_path / "parts").iterdir())) == 3
