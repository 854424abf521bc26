"""A list of inputs to pixels."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pictures import saved
from PIL import Image

from cluster.loading import load_vision, load_vlm
from cluster.profile import Profile
from pipelines.decoder import Decoder, image_id
from retrieval.images import decode
from retrieval.sources.inputs import INPUTS
from retrieval.sources.reader import InputReader


def listed(folder: Path, *names: str) -> pa.Table:
    """What list_inputs writes of files in a folder."""
    rows = [
        {"input": i, "path": name, "label": None, "file": name, "size": (folder / name).stat().st_size}
        for i, name in enumerate(names)
    ]
    return pa.Table.from_pylist(rows, schema=INPUTS)


def test_decoder_shares_pixels_only_between_equal_geometries(profile: Profile, tmp_path: Path) -> None:
    from tiny_models import write_vision

    from retrieval.models.vision import VisionEncoder

    (tmp_path / "good.png").write_bytes(saved("PNG"))
    (tmp_path / "bad.png").write_bytes(b"")
    inputs = listed(tmp_path, "good.png", "bad.png").append_column("taken", pa.array([2001, 2002]))
    reader = InputReader(str(tmp_path))
    vlm, vision = load_vlm(profile).preprocess, load_vision(profile).preprocess
    narrower = VisionEncoder.load(f"local-dir:{write_vision(tmp_path / 'narrower', crop_pct=0.8)}").preprocess
    image = decode(saved("PNG"))
    shared = Decoder(reader, vlm, vision, batch="000007")(inputs)
    assert ("vision_pixels" in shared.column_names) == (vlm.geometry != vision.geometry)
    apart = Decoder(reader, vlm, narrower)(inputs)
    pixels = {name: apart[name].combine_chunks().to_numpy_ndarray() for name in ("vlm_pixels", "vision_pixels")}
    np.testing.assert_array_equal(pixels["vlm_pixels"][0], vlm.pixels(image))
    np.testing.assert_array_equal(pixels["vision_pixels"][0], narrower.pixels(image))
    assert not pixels["vision_pixels"][1].any()
    assert apart["reason"].to_pylist() == [None, "empty"]
    assert apart["id"].to_pylist() == [image_id(saved("PNG"), "good.png"), None]
    assert (shared["batch"].to_pylist(), shared["taken"].to_pylist()) == (["000007"] * 2, [2001, 2002])
    (tmp_path / "good.png").unlink()
    assert Decoder(reader, vlm, vision)(inputs)["reason"].to_pylist() == ["unreadable", "empty"]
    tmp_path.rename(tmp_path.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError):
        Decoder(reader, vlm, vision)(inputs)
    tmp_path.with_name("elsewhere").rename(tmp_path)


def test_several_threads_decode_what_one_does_and_in_order(profile: Profile, tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(9)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(saved("PNG", Image.new("RGB", (40 + i, 40))) if i % 3 else b"not an image")
    inputs = listed(tmp_path, *names)
    encoders = load_vlm(profile).preprocess, load_vision(profile).preprocess
    reader = InputReader(str(tmp_path))
    seen: set[str] = set()

    class Watched(Decoder):
        def _decoded(self, *given: Any) -> Any:
            seen.add(threading.current_thread().name)
            return super()._decoded(*given)

    together = Watched(reader, *encoders, threads=3)(inputs)
    assert threading.current_thread().name not in seen
    assert together.equals(Decoder(reader, *encoders)(inputs))
    assert together["width"].to_pylist() == [None if i % 3 == 0 else 40 + i for i in range(9)]
