"""The vectors of both encoders: those of the libraries, of unit norm, in any batch and dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from errors import refused
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import IMAGE_SIZE, VISION_DIM, VLM_DIM, write_vision

from retrieval.models.vision import VisionEncoder
from retrieval.models.vlm import VLM


def same_direction(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """The smallest cosine between rows that belong together."""
    return float((a_ND * b_ND).sum(axis=1).min())


def test_image_vectors_are_those_of_open_clip(vlm: VLM, models_folder: Path, images: list[Image.Image]) -> None:
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{models_folder / 'vlm'}")
    with torch.no_grad():
        expected = model.eval().encode_image(torch.stack([transform(image) for image in images]), normalize=True)
    found = vlm.encode_images(np.stack([vlm.preprocess.pixels(image) for image in images]))
    assert found.dtype == np.float32
    assert found.shape == (len(images), VLM_DIM) == (len(images), vlm.dim)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_image_vectors_are_those_of_timm(vision: VisionEncoder, models_folder: Path, images: list[Image.Image]) -> None:
    model = timm.create_model(f"local-dir:{models_folder / 'vision'}", pretrained=True, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(torch.stack([transform(image) for image in images])))
    found = vision.encode_images(np.stack([vision.preprocess.pixels(image) for image in images]))
    assert found.shape == (len(images), VISION_DIM) == (len(images), vision.dim)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_text_vectors_are_those_of_open_clip(vlm: VLM, models_folder: Path) -> None:
    texts = ["a red striped star", "x", "word " * 100, "🦆 مرحبا"]
    model = open_clip.create_model_from_pretrained(f"local-dir:{models_folder / 'vlm'}", return_transform=False).eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{models_folder / 'vlm'}")(texts)
    with torch.no_grad():
        expected = model.encode_text(tokens, normalize=True)
    np.testing.assert_allclose(vlm.encode_text(texts), expected.numpy(), atol=1e-6)


def test_rows_have_unit_norm_and_do_not_depend_on_their_batch(vlm: VLM, vision: VisionEncoder) -> None:
    pixels_BHWC = np.random.default_rng(1).integers(0, 256, (5, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    pixels_BHWC.flags.writeable = False  # as Ray hands them out
    texts = ["a star", "a blue dotted circle", "x"]
    cases: list[tuple[Any, Any]] = [
        (vlm.encode_images, pixels_BHWC),
        (vision.encode_images, pixels_BHWC),
        (vlm.encode_text, texts),
    ]
    for encode, items in cases:
        rows = encode(items)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        alone = np.concatenate([encode(items[i : i + 1]) for i in range(len(items))])
        np.testing.assert_allclose(rows, alone, atol=1e-5)


def test_nothing_gives_no_rows(vlm: VLM, vision: VisionEncoder) -> None:
    nothing = np.empty((0, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    assert vlm.encode_images(nothing).shape == (0, VLM_DIM)
    assert vision.encode_images(nothing).shape == (0, VISION_DIM)
    assert vlm.encode_text([]).shape == (0, VLM_DIM)


def test_bfloat16_gives_nearly_the_same_float32_rows(vlm: VLM, vision: VisionEncoder) -> None:
    pixels_BHWC = np.random.default_rng(2).integers(0, 256, (3, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    for encoder in (vlm, vision):
        half = type(encoder).load(encoder.uri, device="cpu", dtype="bfloat16")
        rows = half.encode_images(pixels_BHWC)
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        assert same_direction(rows, encoder.encode_images(pixels_BHWC)) > 0.99
    texts = ["a red striped star", "x"]
    assert (
        same_direction(VLM.load(vlm.uri, device="cpu", dtype="bfloat16").encode_text(texts), vlm.encode_text(texts))
        > 0.99
    )


def test_wrong_pixels_are_refused(vision: VisionEncoder) -> None:
    for wrong in (
        np.zeros((2, 64, 64, 3), np.float32),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((2, 3, 64, 64), np.uint8),
    ):
        with refused("wrong-shape", "pixels"):
            vision.encode_images(wrong)


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = write_vision(tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["conv1.0.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors")
    encoder = VisionEncoder.load(f"local-dir:{folder}", device="cpu")
    with refused("damaged", "dtype") as error:
        encoder.encode_images(np.zeros((2, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8))
    assert "row 0 of 2" in str(error.value)


def test_a_batch_that_does_not_fit_is_halved(vision: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels_BHWC = np.random.default_rng(3).integers(0, 256, (7, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    expected, tower, sizes = vision.encode_images(pixels_BHWC), vision._image_tower, []

    def small_gpu(images_BCHW: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images_BCHW))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tower(images_BCHW)

    monkeypatch.setattr(vision, "_image_tower", small_gpu)
    np.testing.assert_allclose(vision.encode_images(pixels_BHWC), expected, atol=1e-5)
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]


def test_a_gpus_batches_give_the_same_rows(vision: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels_BHWC = np.random.default_rng(4).integers(0, 256, (7, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    expected, tower, sizes = vision.encode_images(pixels_BHWC), vision._image_tower, []
    monkeypatch.setattr(vision, "_rows_at_once", 3)
    monkeypatch.setattr(
        vision, "_image_tower", lambda images_BCHW: sizes.append(len(images_BCHW)) or tower(images_BCHW)
    )
    np.testing.assert_allclose(vision.encode_images(pixels_BHWC), expected, atol=1e-5)
    assert sizes == [3, 3, 1]


def test_towers_are_given_what_is_channels_last(vision: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    tower, contiguous = vision._image_tower, []

    def watched(images_BCHW: torch.Tensor) -> torch.Tensor:
        contiguous.append(images_BCHW.is_contiguous(memory_format=torch.channels_last))
        return tower(images_BCHW)

    monkeypatch.setattr(vision, "_image_tower", watched)
    vision.encode_images(np.zeros((2, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8))
    assert contiguous == [True]
    kernel = next(parameter for parameter in tower.parameters() if parameter.ndim == 4 and parameter.shape[1] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_is_close_to_float32_in_a_transformer() -> None:
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    rows = [
        VisionEncoder.load("random:vit_tiny_patch16_224?img_size=64", device="cpu", dtype=dtype).encode_images(
            pixels_BHWC
        )
        for dtype in ("float32", "bfloat16")
    ]
    assert same_direction(*rows) > 0.999
