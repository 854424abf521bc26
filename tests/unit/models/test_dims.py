"""Dimensions of models, told from their URIs: those of the models themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.loading import load_vision, load_vlm
from cluster.profile import Profile, load_profile
from retrieval.models.dims import vision_dim, vlm_dim


def test_of_local_models_they_are_those_of_the_loaded_ones(profile: Profile) -> None:
    assert vlm_dim(profile.models.vlm) == load_vlm(profile).dim
    assert vision_dim(profile.models.vision) == load_vision(profile).dim


@pytest.mark.parametrize(("name", "dims"), [("tiny", (128, 192)), ("fast", (768, 768)), ("paper", (768, 1024))])
def test_of_shipped_profiles_they_are_known(name: str, dims: tuple[int, int]) -> None:
    models = load_profile(name).models
    assert (vlm_dim(models.vlm), vision_dim(models.vision)) == dims


def test_of_an_untrained_model_they_are_those_of_its_architecture() -> None:
    assert (vlm_dim("random:ViT-B-32"), vision_dim("random:vit_small_patch14_dinov2")) == (512, 384)


def test_what_no_name_says_is_not_known(tmp_path: Path) -> None:
    assert vlm_dim("hf-hub:somebody/model") is None
    assert vision_dim("hf-hub:somebody/model") is None
    assert vlm_dim(f"local-dir:{tmp_path}") is None
    assert vision_dim(f"local-dir:{tmp_path}") is None
