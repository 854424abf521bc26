"""The benchmark's models of true size have the shapes of the real ones: as many parameters, to the last."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.gpu.models import components_of, vision_of, vlm_of
from benchmarks.gpu.sizes import size_of

ENCODERS = {
    # timm's DINOv2 has no mask token, of 768 and 1,024 numbers, that the authors' count has.
    "SigLIP 2 ViT-B/16 and DINOv2 B/14": (375_187_970, 86_579_712),
    "CLIP ViT-L/14 and DINOv2 L/14": (427_616_513, 304_367_616),
}
DIFFUSIONS = {
    "Stable Diffusion 1.5": {"text_encoder": 123_060_480, "unet": 859_520_964, "vae": 83_653_863},
    "SD-Turbo": {"text_encoder": 340_387_840, "unet": 865_910_724, "vae": 83_653_863},
}


@pytest.fixture(autouse=True)
def _without_memory() -> Iterator[None]:
    with torch.device("meta"):
        yield


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_encoders_have_the_shapes_of_the_real_ones() -> None:
    found = size_of("true").encoders.items()
    assert {name: (count(vlm_of(vlm)), count(vision_of(vision))) for name, (vlm, vision, _) in found} == ENCODERS


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_diffusion_models_have_the_shapes_of_the_real_ones(name: str) -> None:
    shape = size_of("true").diffusions[name]
    components = components_of(shape, 49_408, {"bos_token_id": 49_406, "eos_token_id": 49_407})
    assert {part: count(components[part]) for part in DIFFUSIONS[name]} == DIFFUSIONS[name]
    assert (components["safety_checker"] is not None) == (name == "Stable Diffusion 1.5")


def test_all_are_counted() -> None:
    size = size_of("true")
    assert (size.encoders.keys(), size.diffusions.keys()) == (ENCODERS.keys(), DIFFUSIONS.keys())
