"""The generator adapter, on a random tiny StableDiffusionPipeline."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from errors import refused
from safetensors.torch import load_file, save_file
from tiny_models import IMAGE_SIZE, write_generator

from retrieval.models.generator import Generator, Stopped, image_seed

PROMPTS = ["a red striped star", "something round, with green checks"]


@pytest.fixture(scope="session")
def folder(models_folder: Path) -> Path:
    return models_folder / "generator"


def paint_with(generator: Generator, monkeypatch: pytest.MonkeyPatch, pipeline) -> None:
    monkeypatch.setattr(generator, "_pipeline", pipeline)


def as_tensor(images_HWC: list[np.ndarray]) -> torch.Tensor:
    """As pipelines return them: (B, C, H, W)."""
    return torch.from_numpy(np.stack(images_HWC)).permute(0, 3, 1, 2)


def differ(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference in grey levels."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_imagines_so_many_images_of_each_prompt(generator: Generator) -> None:
    found = generator.imagine(PROMPTS, 3)
    assert len(found) == 2
    for imagined in found:
        assert imagined.pixels_KHWC.shape == (3, IMAGE_SIZE, IMAGE_SIZE, 3)
        assert imagined.pixels_KHWC.dtype == np.uint8
        assert imagined.seeds.dtype == np.int64
        assert imagined.rejected == []
    everything = [image for imagined in found for image in imagined.pixels_KHWC]
    assert len({image.tobytes() for image in everything}) == 6


def test_image_i_is_the_same_in_any_batch(generator: Generator) -> None:
    alone = [generator.imagine([prompt], 3, seed=5, batch=1)[0] for prompt in PROMPTS]
    for batch in (2, 4, 6):
        together = generator.imagine(PROMPTS, 3, seed=5, batch=batch)
        for one, other in zip(alone, together, strict=True):
            assert differ(one.pixels_KHWC, other.pixels_KHWC) <= 1
            assert one.seeds.tolist() == other.seeds.tolist()
    fewer = generator.imagine(PROMPTS[:1], 2, seed=5)[0]
    assert differ(fewer.pixels_KHWC, alone[0].pixels_KHWC[:2]) <= 1
    assert differ(generator.imagine(PROMPTS[:1], 2, seed=6)[0].pixels_KHWC, fewer.pixels_KHWC) > 1


def test_seeds_are_the_same_on_every_machine() -> None:
    assert image_seed("a red striped star", 0, 0) == 7471755000052166966
    assert image_seed("a red striped star", 0, 1) != image_seed("a red striped star", 1, 0)
    assert all(0 <= image_seed(text, 0, 0) < 2**63 for text in ("", "é", "\ud800", "x" * 1000))


@pytest.mark.parametrize(("steps", "guidance"), [(1, 0.0), (1, 1.0), (3, 7.5)])
def test_distilled_models_run_with_one_step_and_no_guidance(folder: Path, steps: int, guidance: float) -> None:
    generator = Generator.load(str(folder), steps=steps, guidance=guidance, device="cpu")
    assert generator.imagine(PROMPTS[:1], 1)[0].pixels_KHWC.shape == (1, IMAGE_SIZE, IMAGE_SIZE, 3)


def test_size_is_the_side_of_the_images(folder: Path) -> None:
    generator = Generator.load(str(folder), steps=1, guidance=0.0, size=32, device="cpu")
    assert generator.imagine(PROMPTS[:1], 2)[0].pixels_KHWC.shape == (2, 32, 32, 3)


def test_float16_files_run_in_float32(tmp_path: Path) -> None:
    folder = write_generator(tmp_path / "half", half=True)
    assert load_file(folder / "unet/diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == torch.float16
    generator = Generator.load(str(folder), steps=1, guidance=4.0, device="cpu")
    assert generator._pipeline.text_encoder.dtype == generator._pipeline.unet.dtype == torch.float32
    assert len(generator.imagine(PROMPTS[:1], 1)[0].seeds) == 1


def test_faulty_images_are_left_out_with_the_reason(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    good = np.linspace(0, 1, 8 * 8 * 3, dtype=np.float32).reshape(8, 8, 3)
    flat = np.array([1, 0, 0.5], dtype=np.float32) + np.linspace(0, 0.01, 64, dtype=np.float32).reshape(8, 8, 1)
    broken = good.copy()
    broken[3, 3, 1] = np.nan
    black = np.zeros((8, 8, 3), dtype=np.float32)
    output = SimpleNamespace(
        images=as_tensor([flat.clip(0, 1), good, broken, black]),
        nsfw_content_detected=[False, False, False, True],
    )
    paint_with(generator, monkeypatch, lambda **_: output)
    (imagined,) = generator.imagine(["a duck"], 4, seed=3)
    assert imagined.rejected == ["constant", "nan", "safety"]
    assert imagined.seeds.tolist() == [image_seed("a duck", 3, 1)]
    np.testing.assert_array_equal(imagined.pixels_KHWC, (good[None] * 255).round().astype(np.uint8))


def test_all_images_may_be_faulty(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    paint_with(generator, monkeypatch, lambda **_: SimpleNamespace(images=torch.zeros(2, 3, 8, 8)))
    (imagined,) = generator.imagine(["a duck"], 2)
    assert imagined.pixels_KHWC.shape == (0, 8, 8, 3)
    assert imagined.seeds.shape == (0,)
    assert imagined.rejected == ["constant", "constant"]


def test_what_the_safety_checker_blacked_out_is_reported(tmp_path: Path) -> None:
    folder = write_generator(tmp_path / "prudish", prudish=True)
    (imagined,) = Generator.load(str(folder), steps=1, guidance=0.0, device="cpu").imagine(["a duck"], 2)
    assert imagined.rejected == ["safety", "safety"]
    assert imagined.pixels_KHWC.shape == (0, IMAGE_SIZE, IMAGE_SIZE, 3)


def test_broken_weights_are_rejected_as_nan(tmp_path: Path) -> None:
    folder = write_generator(tmp_path / "broken")
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.weight"].fill_(float("nan"))
    save_file(weights, file)
    (imagined,) = Generator.load(str(folder), steps=1, guidance=0.0, device="cpu").imagine(["a duck"], 2)
    assert imagined.rejected == ["nan", "nan"]


def test_a_batch_that_does_not_fit_is_halved(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generator.imagine(PROMPTS, 4)
    pipeline, sizes = generator._pipeline, []

    def small_gpu(**arguments):
        sizes.append(len(arguments["prompt"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pipeline(**arguments)

    paint_with(generator, monkeypatch, small_gpu)
    found = generator.imagine(PROMPTS, 4, batch=8)
    assert sizes == [8, 4, 2, 2, 2, 2]
    for one, other in zip(expected, found, strict=True):
        assert differ(one.pixels_KHWC, other.pixels_KHWC) <= 1


def test_an_image_that_never_fits_is_an_error(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu(**_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    paint_with(generator, monkeypatch, no_gpu)
    with pytest.raises(torch.OutOfMemoryError):
        generator.imagine(["a duck"], 3)


def test_a_generation_stops_at_the_next_step(folder: Path) -> None:
    generator = Generator.load(str(folder), steps=4, guidance=4.0, device="cpu")
    expected = generator.imagine(PROMPTS[:1], 2)[0]
    asked = 0

    def after(limit: int) -> bool:
        nonlocal asked
        asked += 1
        return asked > limit

    for limit in (0, 1, 3):  # before the first step, after it, and after the third
        asked = 0
        with pytest.raises(Stopped):
            generator.imagine(PROMPTS, 2, stop=lambda limit=limit: after(limit))
        assert asked == limit + 1
    asked = 0
    again = generator.imagine(PROMPTS[:1], 2, stop=lambda: after(100))[0]
    np.testing.assert_array_equal(again.pixels_KHWC, expected.pixels_KHWC)
    assert asked == 5


def test_a_generation_stops_between_batches(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def paint(**arguments: Any) -> SimpleNamespace:
        made.append(len(arguments["prompt"]))
        return SimpleNamespace(images=torch.zeros(made[-1], 3, 8, 8))

    paint_with(generator, monkeypatch, paint)
    with pytest.raises(Stopped):
        generator.imagine(PROMPTS, 4, batch=2, stop=lambda: len(made) == 3)
    assert made == [2, 2, 2]


def test_threads_do_not_mix_up_their_images(generator: Generator) -> None:
    expected = [generator.imagine([prompt], 2, batch=1)[0] for prompt in PROMPTS]
    found: dict[str, np.ndarray] = {}

    def imagine(prompt: str) -> None:
        found[prompt] = generator.imagine([prompt], 2, batch=1)[0].pixels_KHWC

    threads = [threading.Thread(target=imagine, args=(prompt,)) for prompt in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prompt, imagined in zip(PROMPTS, expected, strict=True):
        np.testing.assert_array_equal(found[prompt], imagined.pixels_KHWC)


@pytest.mark.parametrize(
    "prompt",
    [
        "x",
        "word " * 200,
        "nul \x00 and \x1b[31m",
        "مرحبا",
        "🦆 (duck:1.4) [bird]",
        "{} {name} %s",
        "\ud800 alone",
    ],
)
def test_any_prompt_is_imagined(generator: Generator, prompt: str) -> None:
    assert len(generator.imagine([prompt], 1)[0].seeds) == 1


def test_wrong_requests_are_refused(generator: Generator) -> None:
    for images, batch, field in ((0, 1, "images"), (-1, 1, "images"), (1, 0, "batch")):
        with refused("out-of-range", field):
            generator.imagine(PROMPTS, images, batch=batch)
    with refused("blank", "text"):
        generator.imagine(["a duck", " "], 1)
    with refused("wrong-type", "prompts"):
        generator.imagine("a duck", 1)
    assert generator.imagine([], 1) == []


def test_fingerprint_follows_all_that_changes_the_images(folder: Path, tmp_path: Path) -> None:
    def load(path: Path, *, steps: int = 2, guidance: float = 4.0, size: int | None = None, **options: str) -> str:
        return Generator.load(str(path), steps=steps, guidance=guidance, size=size, **options).fingerprint

    same = load(folder)
    assert same.startswith("sha256:")
    assert load(folder, dtype="bfloat16") == same
    # Copies, since the tokenizer's training breaks ties at random.
    assert load(shutil.copytree(folder, tmp_path / "copy")) == same
    rescheduled = shutil.copytree(folder, tmp_path / "rescheduled")
    file = rescheduled / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"solver_order": 1}))
    others = [
        load(folder, steps=3),
        load(folder, guidance=4.5),
        load(folder, size=32),
        load(write_generator(tmp_path / "other", seed=1)),
        load(rescheduled),
    ]
    assert len({same, *others}) == 6


def test_what_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with refused("not-loadable", "generator") as error:
        Generator.load("models/nothing", steps=1, guidance=0.0)
    for fact in ("'models/nothing' from the hub, as there is no folder", "model_index"):
        assert fact in str(error.value)
    (tmp_path / "empty").mkdir()
    with refused("not-loadable", "generator") as error:
        Generator.load(str(tmp_path / "empty"), steps=1, guidance=0.0)
    assert "model_index.json" in str(error.value)
    with refused("out-of-range", "steps"):
        Generator.load(str(tmp_path), steps=0, guidance=0.0)
    with refused("out-of-range", "guidance"):
        Generator.load(str(tmp_path), steps=1, guidance=float("nan"))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = write_generator(tmp_path / "pickled")
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with refused("not-loadable", "generator") as error:
        Generator.load(str(folder), steps=1, guidance=0.0)
    assert "safetensors" in str(error.value)
