"""The production pipelines of diffusers at reduced width: each is a generator that keeps what one promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from errors import refused
from tiny_pipelines import PIPELINES, safety_checker, write_pipeline

from cluster.loading import load_generator, load_query_encoder
from cluster.profile import Profile, load_profile
from retrieval.models.diffusion import PIPELINES as SUPPORTED
from retrieval.models.generator import Generator, Stopped

Folder = Callable[[str], Path]
SIDES = {"pixart-alpha": 256, "pixart-sigma": 256, "sana": 512, "flux-dev": 128, "flux-schnell": 128}
"""Pixels that a pipeline makes where no size is given; the others make 32."""
MADE = {name: 32 if name.startswith("flux") else None for name in PIPELINES}
"""Sizes at which each is quick; without one, Flux makes as many tokens as the real one."""
OTHER_GUIDANCE_SHOWS = [name for name in PIPELINES if name != "flux-schnell"]
LIMITS = {
    # Words of one token each that the longest of its encoders is given, beside its tokens of start and end.
    "stable-diffusion": 30,
    "turbo": 30,
    "lcm": 30,
    "sdxl": 30,
    "sd3": 255,
    "sd3-without-t5": 30,
    "pixart-alpha": 119,
    "pixart-sigma": 299,
    "sana": 149,  # two tokens a word
    "flux-dev": 511,
    "flux-schnell": 255,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Give the folder of one of PIPELINES, written once."""
    base = tmp_path_factory.mktemp("pipelines")
    return lambda name: base / name if (base / name).exists() else write_pipeline(name, base / name)


def load(folder: Path, name: str, *, steps: int = 2, guidance: float = 4.0) -> Generator:
    return Generator.load(str(folder), steps=steps, guidance=guidance, size=MADE[name], device="cpu")


def differ(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference in grey levels."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("name", PIPELINES)
def test_image_i_depends_on_text_and_seed_alone(folder: Folder, name: str) -> None:
    generator = load(folder(name), name)
    side = MADE[name] or SIDES.get(name, 32)
    star, word = generator.imagine(["a red star", "word"], 2, seed=5, batch=3)
    assert star.rejected == word.rejected == []
    assert star.pixels_KHWC.shape == word.pixels_KHWC.shape == (2, side, side, 3)
    assert len({image.tobytes() for one in (star, word) for image in one.pixels_KHWC}) == 4
    (alone,) = generator.imagine(["word"], 2, seed=5, batch=1)
    assert differ(alone.pixels_KHWC, word.pixels_KHWC) <= 1
    np.testing.assert_array_equal(alone.pixels_KHWC, generator.imagine(["word"], 2, seed=5, batch=1)[0].pixels_KHWC)
    assert differ(alone.pixels_KHWC, generator.imagine(["word"], 2, seed=6, batch=1)[0].pixels_KHWC) > 1


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_stops_after_a_step(folder: Folder, name: str) -> None:
    generator = load(folder(name), name, steps=4)
    asked = []

    def after_the_second_step() -> bool:
        asked.append(None)
        return len(asked) > 2

    with pytest.raises(Stopped):
        generator.imagine(["a red star"], 1, stop=after_the_second_step)
    assert len(asked) == 3


@pytest.mark.parametrize("name", PIPELINES)
def test_guidance_reaches_the_pipeline(folder: Folder, name: str) -> None:
    made = [
        load(folder(name), name, guidance=guidance).imagine(["a red star"], 1)[0].pixels_KHWC for guidance in (2.0, 9.0)
    ]
    assert (differ(*made) > 0) == (name in OTHER_GUIDANCE_SHOWS)


@pytest.mark.parametrize("name", LIMITS)
def test_a_text_is_cut_where_its_encoder_ends(folder: Folder, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.models.generator.image_seed", lambda *_: 1)  # else another text has other noise
    generator = load(folder(name), name)
    words = ["a"] * (LIMITS[name] + 5)

    def imagined(changed: int) -> np.ndarray:
        text = " ".join([*words[:changed], "word", *words[changed + 1 :]])
        return generator.imagine([text], 1)[0].pixels_KHWC

    beyond = imagined(LIMITS[name] + 2)
    assert differ(imagined(LIMITS[name] + 1), beyond) == 0
    assert differ(imagined(LIMITS[name] - 6), beyond) > 0


@pytest.mark.parametrize("name", PIPELINES)
def test_fast_with_another_generator(folder: Folder, profile: Profile, name: str) -> None:
    generator = load_profile("fast").models.generator.model_copy(update={"uri": str(folder(name))})
    models = profile.models.model_copy(update={"generator": generator, "device": "auto", "dtype": "auto"})
    fast = load_profile("fast").model_copy(update={"models": models})
    if name == "pixart-alpha":
        with refused("out-of-range", "steps"):
            load_generator(fast)
        return
    (query,) = load_query_encoder(fast).encode(["a red star"], 2)
    assert query.vision_KD2.shape == (2, 32)
    side = SIDES.get(name, 32)
    assert query.imagined.pixels_KHWC.shape == (2, side, side, 3)


@pytest.mark.parametrize("name", ["stable-diffusion", "lcm", "sdxl", "sd3-without-t5", "pixart-alpha"])
def test_paper_with_another_generator(folder: Folder, profile: Profile, name: str) -> None:
    paper = load_profile("paper")
    generator = paper.models.generator.model_copy(update={"uri": str(folder(name))})
    models = profile.models.model_copy(update={"generator": generator, "device": "auto", "dtype": "auto"})
    loaded = load_query_encoder(paper.model_copy(update={"models": models}))
    (query,) = loaded.encode(["a red star"], 2)
    assert query.vision_KD2.shape == (2, 32)


@pytest.mark.parametrize("name", ["stable-diffusion", "lcm"])
def test_what_a_safety_checker_blacks_out_is_reported(tmp_path: Path, name: str) -> None:
    folder = write_pipeline(name, tmp_path / name, safety_checker=safety_checker(prudish=True))
    (imagined,) = load(folder, name).imagine(["a red star"], 2)
    assert imagined.rejected == ["safety", "safety"]


def test_other_pipelines_are_refused_before_their_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyV22CombinedPipeline"}))
    with refused("not-loadable", "generator") as error:
        Generator.load(str(tmp_path), steps=1, guidance=0.0)
    for fact in ("KandinskyV22CombinedPipeline", "not supported", *SUPPORTED):
        assert fact in str(error.value)
