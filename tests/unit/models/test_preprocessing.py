"""Preprocessing: the libraries' own to the bit, of whole images and of reduced ones."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import time
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from errors import refused
from PIL import Image
from torchvision import transforms

from retrieval.images import decode, decode_reduced
from retrieval.models.transforms import Normalise, preprocess_of
from retrieval.models.vision import VisionEncoder
from retrieval.models.vlm import VLM

LIBRARY_TRANSFORMS = {
    "open_clip shortest": open_clip.image_transform(224, is_train=False),
    "open_clip squash": open_clip.image_transform(96, is_train=False, resize_mode="squash", interpolation="bilinear"),
    "open_clip longest": open_clip.image_transform(96, is_train=False, resize_mode="longest", fill_color=127),
    "timm center": timm.data.create_transform((3, 96, 96), crop_pct=0.875, interpolation="bilinear"),
    "timm squash": timm.data.create_transform((3, 96, 64), crop_pct=1.0, crop_mode="squash"),
    "timm border": timm.data.create_transform((3, 96, 96), crop_pct=0.9, crop_mode="border"),
}
TO_TENSOR = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
LARGER_CROP = transforms.Compose([transforms.Resize(90), transforms.CenterCrop((97, 64)), *TO_TENSOR])
REDUCIBLE = ["open_clip shortest", "open_clip squash", "timm center", "timm squash"]


@pytest.mark.parametrize(
    "transform", [*LIBRARY_TRANSFORMS.values(), LARGER_CROP], ids=[*LIBRARY_TRANSFORMS, "a crop that pads"]
)
def test_preprocessing_equals_the_librarys_to_the_bit(transform: Any, images: list[Image.Image]) -> None:
    preprocess = preprocess_of(transform)
    for image in images:
        pixels_HWC = preprocess.pixels(image)
        assert pixels_HWC.dtype == np.uint8
        assert pixels_HWC.flags.c_contiguous
        found = Normalise(preprocess, torch.device("cpu"))(pixels_HWC[None])[0]
        assert torch.equal(found, transform(image)), image.size


def test_equal_geometry_is_said_alike_by_both_libraries(vlm: VLM, vision: VisionEncoder) -> None:
    assert vlm.preprocess.geometry == vision.preprocess.geometry == ("resize 64 bicubic", "crop (64, 64)")
    assert vlm.preprocess.describe() != vision.preprocess.describe()
    geometries = {preprocess_of(transform).geometry for transform in LIBRARY_TRANSFORMS.values()}
    assert len(geometries) == len(LIBRARY_TRANSFORMS)
    other_fill = open_clip.image_transform(96, is_train=False, resize_mode="longest", fill_color=0)
    assert preprocess_of(other_fill).geometry not in geometries


def test_description_is_json_of_short_numbers(vision: VisionEncoder) -> None:
    assert json.loads(json.dumps(vision.preprocess.describe())) == {
        "geometry": ["resize 64 bicubic", "crop (64, 64)"],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }


def test_preprocessing_travels_to_other_processes(vlm: VLM, images: list[Image.Image]) -> None:
    copy = pickle.loads(pickle.dumps(vlm.preprocess))
    assert copy.describe() == vlm.preprocess.describe()
    np.testing.assert_array_equal(copy.pixels(images[1]), vlm.preprocess.pixels(images[1]))


@pytest.mark.parametrize("name", REDUCIBLE)
def test_who_only_decodes_does_not_load_pytorch(name: str) -> None:
    script = "import pickle, sys; pickle.loads(sys.stdin.buffer.read()).blank(); sys.exit('torch' in sys.modules)"
    sent = pickle.dumps(preprocess_of(LIBRARY_TRANSFORMS[name]))
    assert not subprocess.run([sys.executable, "-c", script], input=sent, check=False).returncode


@pytest.mark.parametrize("name", LIBRARY_TRANSFORMS)
@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (40_000, 2)])
def test_extremely_long_images_stay_small(name: str, size: tuple[int, int]) -> None:
    preprocess = preprocess_of(LIBRARY_TRANSFORMS[name])
    started = time.perf_counter()
    assert preprocess.pixels(Image.new("RGB", size, (200, 100, 50))).max() == 200
    assert time.perf_counter() - started < 20


def test_the_side_that_an_image_is_resized_to() -> None:
    sides = {name: preprocess_of(transform).side for name, transform in LIBRARY_TRANSFORMS.items()}
    assert sides == {
        "open_clip shortest": 224,
        "open_clip squash": 96,
        "open_clip longest": None,
        "timm center": 109,  # the crop of 96 is 0.875 of it
        "timm squash": 96,
        "timm border": None,
    }
    nearest = transforms.Resize(96, transforms.InterpolationMode.NEAREST)
    bounded = transforms.Resize(96, max_size=200)
    for resize in (nearest, bounded):
        assert preprocess_of(transforms.Compose([resize, transforms.CenterCrop(96), *TO_TENSOR])).side is None


def smooth_jpeg(width: int, height: int, orientation: int = 1) -> bytes:
    """Random soft blobs, at a quality that leaves nothing else to differ."""
    small = np.random.default_rng(width).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(buffer, "JPEG", quality=98, subsampling=0, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("name", REDUCIBLE)
@pytest.mark.parametrize("size", [(2000, 1501), (1501, 2000), (1999, 1347), (1347, 1347)])
def test_pixels_of_a_reduced_image_lie_where_those_of_the_whole_one_do(name: str, size: tuple[int, int]) -> None:
    preprocess = preprocess_of(LIBRARY_TRANSFORMS[name])
    data = smooth_jpeg(*size)
    reduced = decode_reduced(data, preprocess.side)
    assert not reduced.is_whole
    found, expected = preprocess.pixels(reduced), preprocess.pixels(decode(data))
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 4


@pytest.mark.parametrize("name", ["timm center", "timm squash"])
@pytest.mark.parametrize("size", [(24_003, 700), (700, 24_003)])
def test_the_middle_of_a_long_reduced_image_is_that_of_the_whole_one(name: str, size: tuple[int, int]) -> None:
    test_pixels_of_a_reduced_image_lie_where_those_of_the_whole_one_do(name, size)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_photos_of_every_orientation_are_embedded_alike(vision: VisionEncoder, orientation: int) -> None:
    data, preprocess = smooth_jpeg(1003, 801, orientation), vision.preprocess
    views = [decode(data), decode_reduced(data, preprocess.side)]
    rows = vision.encode_images(np.stack([preprocess.pixels(view) for view in views]))
    assert float(rows[0] @ rows[1]) > 0.9999


def test_an_image_that_was_not_reduced_keeps_its_pixels_to_the_bit(vlm: VLM) -> None:
    data = smooth_jpeg(150, 100)
    reduced = decode_reduced(data, vlm.preprocess.side)
    assert reduced.is_whole
    np.testing.assert_array_equal(vlm.preprocess.pixels(reduced), vlm.preprocess.pixels(decode(data)))


def test_a_reduced_image_is_refused_where_the_whole_one_is_needed() -> None:
    preprocess = preprocess_of(LIBRARY_TRANSFORMS["timm border"])
    with refused("reduced", "image"):
        preprocess.pixels(decode_reduced(smooth_jpeg(1000, 800), 20))


def test_other_modes_and_transforms_are_refused(vlm: VLM) -> None:
    with refused("wrong-mode", "image"):
        vlm.preprocess.pixels(Image.new("L", (64, 64)))
    with refused("unsupported", "preprocessing"):
        preprocess_of(transforms.Compose(open_clip.image_transform(96, is_train=False).transforms[:2]))
