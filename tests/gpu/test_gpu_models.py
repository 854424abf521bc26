"""The models on a GPU give what they give on a CPU, within what other kernels and bfloat16 round differently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import IMAGE_SIZE
from tiny_pipelines import PIPELINES, write_pipeline

from retrieval.models.generator import Generator
from retrieval.models.image_encoder import GPU_ROWS
from retrieval.models.transfer import to_device
from retrieval.models.vision import VisionEncoder
from retrieval.models.vlm import VLM

COSINES = {"float32": 0.9999, "bfloat16": 0.99}
GREY_LEVELS = {"float32": 2.0, "bfloat16": 12.0}
"""Mean difference of the images; in bfloat16 a number has eight bits, and a random network does not even that out."""
ENCODERS: list[tuple[type[VLM] | type[VisionEncoder], str]] = [(VLM, "vlm"), (VisionEncoder, "vision")]


@pytest.mark.parametrize("dtype", COSINES)
@pytest.mark.parametrize(("kind", "name"), ENCODERS)
def test_image_vectors_are_those_of_a_cpu(
    models_folder: Path, kind: type[VLM] | type[VisionEncoder], name: str, dtype: str
) -> None:
    uri = f"local-dir:{models_folder / name}"
    on_cpu, on_gpu = kind.load(uri, device="cpu", dtype="float32"), kind.load(uri, device="cuda", dtype=dtype)
    assert on_gpu.fingerprint == on_cpu.fingerprint
    rng = np.random.default_rng(0)
    # Several calls, so that a block of pinned memory that was reused too early would be seen.
    for rows in (1, GPU_ROWS, 3 * GPU_ROWS + 5, 2 * GPU_ROWS):
        pixels_BHWC = rng.integers(0, 256, (rows, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        pixels_BHWC.flags.writeable = False  # as Ray hands them out
        found, expected = on_gpu.encode_images(pixels_BHWC), on_cpu.encode_images(pixels_BHWC)
        assert (found * expected).sum(axis=1).min() > COSINES[dtype]


@pytest.mark.parametrize("dtype", COSINES)
def test_text_vectors_are_those_of_a_cpu(models_folder: Path, dtype: str) -> None:
    uri, texts = f"local-dir:{models_folder / 'vlm'}", ["a red striped star", "x", "word " * 100]
    found = VLM.load(uri, device="cuda", dtype=dtype).encode_text(texts)
    expected = VLM.load(uri, device="cpu", dtype="float32").encode_text(texts)
    assert (found * expected).sum(axis=1).min() > COSINES[dtype]


def test_pixels_arrive_whole_while_the_gpu_is_busy() -> None:
    device, rng = torch.device("cuda"), np.random.default_rng(0)
    work = torch.randn(4096, 4096, device=device)
    arrays = [rng.integers(0, 256, (GPU_ROWS, 64, 64, 3), dtype=np.uint8) for _ in range(20)]
    arrived = []
    for array in arrays:
        work = work @ work / 4096
        arrived.append(to_device(array, device))
    for array, copy in zip(arrays, arrived, strict=True):
        np.testing.assert_array_equal(copy.cpu().numpy(), array)


@pytest.mark.parametrize("dtype", GREY_LEVELS)
@pytest.mark.parametrize("name", PIPELINES)
def test_images_are_nearly_those_of_a_cpu(tmp_path: Path, name: str, dtype: str) -> None:
    folder = str(write_pipeline(name, tmp_path / name))
    size = 32 if name.startswith("flux") else None
    made = [
        Generator.load(folder, steps=2, guidance=4.0, size=size, device=device, dtype=precision)
        for device, precision in (("cpu", "float32"), ("cuda", dtype))
    ]
    expected, found = (generator.imagine(["a red star"], 3, seed=7)[0] for generator in made)
    assert found.seeds.tolist() == expected.seeds.tolist()
    difference = np.abs(found.pixels_KHWC.astype(int) - expected.pixels_KHWC.astype(int))
    assert difference.mean() < GREY_LEVELS[dtype]
    alone = made[1].imagine(["a red star"], 3, seed=7, batch=1)[0]
    assert np.abs(alone.pixels_KHWC.astype(int) - found.pixels_KHWC.astype(int)).mean() < GREY_LEVELS[dtype]
