"""The encoder adapters, on random tiny models in the formats of the real ones."""

from __future__ import annotations

import io
import json
import logging
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import CONTEXT, IMAGE_SIZE, VISION_DIM, VLM_DIM, write_vision, write_vlm
from torchvision import transforms

from retrieval.images import decode, decode_reduced
from retrieval.models import devices, encoders
from retrieval.models.transforms import normalise, preprocess_of
from retrieval.models.vision import VisionEncoder
from retrieval.models.vlm import VLM
from retrieval.prompts import MAX_CHARACTERS

SIZES = [(64, 64), (100, 70), (31, 200), (5, 3), (1, 1), (640, 480), (64, 1900)]


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vlm(tmp_path_factory.mktemp("models") / "vlm")


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vision(tmp_path_factory.mktemp("models") / "vision")


@pytest.fixture(scope="module")
def vlm(vlm_folder: Path) -> VLM:
    return VLM.load(f"local-dir:{vlm_folder}", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def vision(vision_folder: Path) -> VisionEncoder:
    return VisionEncoder.load(f"local-dir:{vision_folder}", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


def same_direction(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """The smallest cosine between rows that belong together."""
    return float((a_ND * b_ND).sum(axis=1).min())


# What the vectors are


def test_image_vectors_are_those_of_open_clip(vlm: VLM, vlm_folder: Path, images: list[Image.Image]) -> None:
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{vlm_folder}")
    with torch.no_grad():
        expected = model.eval().encode_image(torch.stack([transform(image) for image in images]), normalize=True)
    found = vlm.encode_images(np.stack([vlm.preprocess.pixels(image) for image in images]))
    assert found.dtype == np.float32
    assert found.shape == (len(images), VLM_DIM) == (len(images), vlm.dim)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_image_vectors_are_those_of_timm(vision: VisionEncoder, vision_folder: Path, images: list[Image.Image]) -> None:
    model = timm.create_model(f"local-dir:{vision_folder}", pretrained=True, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(torch.stack([transform(image) for image in images])))
    found = vision.encode_images(np.stack([vision.preprocess.pixels(image) for image in images]))
    assert found.shape == (len(images), VISION_DIM) == (len(images), vision.dim)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_text_vectors_are_those_of_open_clip(vlm: VLM, vlm_folder: Path) -> None:
    texts = ["a red striped star", "x", "word " * 100, "🦆 مرحبا"]
    model = open_clip.create_model_from_pretrained(f"local-dir:{vlm_folder}", return_transform=False).eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{vlm_folder}")(texts)
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
        with pytest.raises(ValueError, match=r"uint8 of shape \(B, H, W, 3\)"):
            vision.encode_images(wrong)


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = write_vision(tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["conv1.0.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors")
    encoder = VisionEncoder.load(f"local-dir:{folder}", device="cpu")
    with pytest.raises(ValueError, match="not finite, row 0 of 2"):
        encoder.encode_images(np.zeros((2, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8))


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


# Preprocessing

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
        found = normalise(preprocess, pixels_HWC[None], torch.device("cpu"))[0]
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
    assert same_direction(rows[:1], rows[1:]) > 0.9999


def test_an_image_that_was_not_reduced_keeps_its_pixels_to_the_bit(vlm: VLM) -> None:
    data = smooth_jpeg(150, 100)
    reduced = decode_reduced(data, vlm.preprocess.side)
    assert reduced.is_whole
    np.testing.assert_array_equal(vlm.preprocess.pixels(reduced), vlm.preprocess.pixels(decode(data)))


def test_a_reduced_image_is_refused_where_the_whole_one_is_needed() -> None:
    preprocess = preprocess_of(LIBRARY_TRANSFORMS["timm border"])
    with pytest.raises(ValueError, match="needs it whole; decode it with side None"):
        preprocess.pixels(decode_reduced(smooth_jpeg(1000, 800), 20))


def test_other_modes_and_transforms_are_refused(vlm: VLM) -> None:
    with pytest.raises(ValueError, match="mode L"):
        vlm.preprocess.pixels(Image.new("L", (64, 64)))
    with pytest.raises(ValueError, match="geometry, to tensor, normalise"):
        preprocess_of(transforms.Compose(open_clip.image_transform(96, is_train=False).transforms[:2]))


# Texts


def test_token_count_is_that_of_the_uncut_text(vlm: VLM) -> None:
    assert vlm.context_length == CONTEXT
    assert vlm.token_count("a red striped star") == 6
    assert vlm.token_count("star " * 100) == 102
    assert vlm.token_count("star " * (CONTEXT - 2)) == CONTEXT


def test_token_count_of_open_clips_own_tokenizer() -> None:
    vlm = VLM.load("random:RN50", device="cpu", dtype="float32")
    assert vlm.context_length == 77
    assert vlm.token_count("a photo of a duck") == 7
    assert vlm.token_count("duck " * 100) == 102
    for text in ("x" * MAX_CHARACTERS, "é" * MAX_CHARACTERS):
        started = time.perf_counter()
        assert vlm.token_count(text) > 77
        assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    "text", ["x", "\x00", "a\x00b\x1b[0m\x7f", "\ud800", "مرحبا", "🦆", "{} {0}", "!!!", "'" * 300]
)
def test_any_text_is_embedded(vlm: VLM, text: str) -> None:
    assert vlm.encode_text([text]).shape == (1, VLM_DIM)
    assert vlm.token_count(text) >= 2


@pytest.mark.parametrize("text", ["", "   ", "\n", "x" * 2**20])
def test_unusable_text_is_refused_at_once(vlm: VLM, text: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"blank|characters"):
        vlm.encode_text(["a star", text])
    with pytest.raises(ValueError, match=r"blank|characters"):
        vlm.token_count(text)
    assert time.perf_counter() - started < 20


def test_many_texts_go_through_in_batches(vlm: VLM) -> None:
    texts = ["a star" if i % 2 else "a photo of a blue dotted circle" for i in range(encoders.TEXT_BATCH + 3)]
    np.testing.assert_allclose(vlm.encode_text(texts)[-2:], vlm.encode_text(texts[-2:]), atol=1e-5)


def test_one_string_is_not_a_list_of_letters(vlm: VLM) -> None:
    with pytest.raises(ValueError, match="one string"):
        vlm.encode_text("a star")


def test_threads_may_share_a_tokenizer(vlm: VLM) -> None:
    errors: list[Exception] = []

    def use() -> None:
        try:
            for _ in range(20):
                vlm.token_count("star " * 60)
                vlm.encode_text(["a star", "a photo of a blue dotted circle"])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# Fingerprints


def test_vlm_fingerprint_follows_weights_preprocessing_and_tokenizer(vlm: VLM, tmp_path: Path) -> None:
    def load(folder: Path, dtype: str = "float32") -> str:
        return VLM.load(f"local-dir:{folder}", device="cpu", dtype=dtype).fingerprint

    copy = write_vlm(tmp_path / "copy")
    assert vlm.fingerprint.startswith("sha256:")
    assert load(copy) == load(copy, "bfloat16") == vlm.fingerprint
    other = load(write_vlm(tmp_path / "other", seed=1))
    config = copy / "open_clip_config.json"
    changed = json.loads(config.read_text())
    changed["preprocess_cfg"]["interpolation"] = "bilinear"
    config.write_text(json.dumps(changed))
    resized = load(copy)
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert len({vlm.fingerprint, other, resized, load(copy)}) == 4


def test_vision_fingerprint_is_of_what_is_used(vision: VisionEncoder, tmp_path: Path) -> None:
    def load(folder: Path, dtype: str = "float32") -> str:
        return VisionEncoder.load(f"local-dir:{folder}", device="cpu", dtype=dtype).fingerprint

    assert load(write_vision(tmp_path / "copy"), "bfloat16") == vision.fingerprint
    assert load(write_vision(tmp_path / "other", seed=1)) != vision.fingerprint
    assert load(write_vision(tmp_path / "cropped", crop_pct=0.9)) != vision.fingerprint


def test_float16_files_have_the_fingerprint_of_the_same_numbers_in_float32(tmp_path: Path) -> None:
    folder = write_vision(tmp_path / "vision")
    file = folder / "model.safetensors"
    half = {name: t.half() if t.is_floating_point() else t for name, t in load_file(file).items()}
    prints = []
    for weights in (half, {name: t.float() if t.is_floating_point() else t for name, t in half.items()}):
        save_file(weights, file)
        prints.append(VisionEncoder.load(f"local-dir:{folder}", device="cpu").fingerprint)
    assert prints[0] == prints[1]


# Loading


def test_relative_folders_are_relative_to_the_current_directory(
    vlm_folder: Path, vision_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(vlm_folder.parent)
    assert VLM.load("local-dir:vlm", device="cpu").dim == VLM_DIM
    monkeypatch.chdir(vision_folder)
    assert VisionEncoder.load("local-dir:.", device="cpu").dim == VISION_DIM


@pytest.mark.parametrize("missing", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_a_missing_vlm_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = write_vlm(tmp_path / "vlm")
    if missing.endswith(".safetensors"):
        torch.save(load_file(folder / missing), folder / "open_clip_pytorch_model.bin")
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=rf"no file {missing} in .*vlm.*\n.*hf-hub:ORG/NAME"):
        VLM.load(f"local-dir:{folder}")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_vision_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = write_vision(tmp_path / "vision")
    if missing.endswith(".safetensors"):
        torch.save(load_file(folder / missing), folder / "pytorch_model.bin")
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=rf"no file {missing} in .*vision.*\n.*hf-hub:ORG/NAME"):
        VisionEncoder.load(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("local-dir:nowhere", "no folder .*nowhere"),
        ("ViT-L-14/opnai", "no weights 'opnai' for ViT-L-14; it has openai"),
        ("ViT-L-99/openai", "no architecture 'ViT-L-99'.*did you mean .*ViT-L-14"),
        ("ViT-L-14", "no weights '' for ViT-L-14; it has openai"),
        ("random:nothing", "no architecture 'nothing'"),
        ("", "no architecture ''"),
    ],
)
def test_a_vlm_that_cannot_be_loaded(uri: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s)cannot load the VLM '{uri}'.*{reason}.*ViT-L-14/openai"):
        VLM.load(uri)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("local-dir:nowhere", "no folder .*nowhere"),
        ("vit_nothing", "vit_nothing"),
        ("timm/resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k"),
        ("random:resnet18?size=64", "only option is"),
        ("random:resnet18?img_size=big", "only option is"),
    ],
)
def test_a_vision_encoder_that_cannot_be_loaded(uri: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s)cannot load the vision encoder.*{reason}.*random:NAME"):
        VisionEncoder.load(uri)


def test_wrong_devices_and_dtypes_are_named(vlm_folder: Path) -> None:
    uri = f"local-dir:{vlm_folder}"
    with pytest.raises(ValueError, match="device 'gpu'"):
        VLM.load(uri, device="gpu")
    with pytest.raises(ValueError, match="device 'cuda:99'"):
        VLM.load(uri, device="cuda:99")
    with pytest.raises(ValueError, match="dtype 'int8'"):
        VLM.load(uri, dtype="int8")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_multiplies_it(
    capabilities: dict[str, bool], expected: torch.dtype, vision_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert devices.pick_dtype("auto", torch.device("cpu")) == expected
    encoder = VisionEncoder.load(f"local-dir:{vision_folder}", device="cpu")
    assert encoder.dtype == expected


def test_auto_is_bfloat16_on_gpus_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert devices.pick_dtype("auto", gpu) == (torch.bfloat16 if native else torch.float32)
    assert devices.pick_dtype("auto", torch.device("mps")) == torch.float32


def test_bfloat16_is_close_to_float32_in_a_transformer() -> None:
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    rows = [
        VisionEncoder.load("random:vit_tiny_patch16_224?img_size=64", device="cpu", dtype=dtype).encode_images(
            pixels_BHWC
        )
        for dtype in ("float32", "bfloat16")
    ]
    assert same_direction(*rows) > 0.999


def test_openai_weights_get_the_activation_they_were_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def create(name: str, tag: str, **options: bool) -> tuple[None, None]:
        asked[f"{name}/{tag}"] = options
        return None, None

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", create)
    for uri in ("ViT-L-14/openai", "ViT-L-14-quickgelu/openai", "ViT-B-32/laion2b_s34b_b79k"):
        encoders._create_open_clip(uri)
    assert [options["force_quick_gelu"] for options in asked.values()] == [True, True, False]


def test_random_models_are_the_same_every_time() -> None:
    state = torch.random.get_rng_state()
    first, second = (VisionEncoder.load("random:resnet18?img_size=96", device="cpu") for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.preprocess.geometry[-1] == "crop (96, 96)"
    assert torch.equal(state, torch.random.get_rng_state())


def test_image_size_changes_the_grid_of_a_transformer() -> None:
    encoder = VisionEncoder.load("random:vit_tiny_patch16_224?img_size=64", device="cpu")
    assert encoder.encode_images(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 192)


def test_loading_leaves_the_root_logger_alone(vlm_folder: Path) -> None:
    before = list(logging.getLogger().handlers)
    VLM.load(f"local-dir:{vlm_folder}", device="cpu")
    assert logging.getLogger().handlers == before
