"""Loading the encoders: forms of URI, what is missing, and what loading leaves alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from errors import refused
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from tiny_models import VISION_DIM, VLM_DIM, write_vision, write_vlm

import retrieval.models.vision
import retrieval.models.vlm
from cluster.profile import load_profile
from retrieval.models.transforms import preprocess_of
from retrieval.models.vision import VisionEncoder
from retrieval.models.vlm import VLM


def test_relative_folders_are_relative_to_the_current_directory(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models_folder)
    assert VLM.load("local-dir:vlm", device="cpu").dim == VLM_DIM
    monkeypatch.chdir(models_folder / "vision")
    assert VisionEncoder.load("local-dir:.", device="cpu").dim == VISION_DIM


@pytest.mark.parametrize("missing", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_a_missing_vlm_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = write_vlm(tmp_path / "vlm")
    if missing.endswith(".safetensors"):
        torch.save(load_file(folder / missing), folder / "open_clip_pytorch_model.bin")
    (folder / missing).unlink()
    with refused("not-loadable", "vlm") as error:
        VLM.load(f"local-dir:{folder}")
    for fact in (missing, str(folder), "hf-hub:ORG/NAME"):
        assert fact in str(error.value)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_vision_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = write_vision(tmp_path / "vision")
    if missing.endswith(".safetensors"):
        torch.save(load_file(folder / missing), folder / "pytorch_model.bin")
    (folder / missing).unlink()
    with refused("not-loadable", "vision") as error:
        VisionEncoder.load(f"local-dir:{folder}")
    for fact in (missing, str(folder), "hf-hub:ORG/NAME"):
        assert fact in str(error.value)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("local-dir:nowhere", "no folder"),
        ("ViT-L-14/opnai", "no weights 'opnai' for ViT-L-14; it has openai"),
        ("ViT-L-99/openai", "no architecture 'ViT-L-99'; did you mean ViT-L-1"),
        ("ViT-L-14", "no weights '' for ViT-L-14; it has openai"),
        ("random:nothing", "no architecture 'nothing'"),
        ("", "no architecture ''"),
    ],
)
def test_a_vlm_that_cannot_be_loaded(uri: str, reason: str) -> None:
    with refused("not-loadable", "vlm") as error:
        VLM.load(uri)
    for fact in (repr(uri), reason, "ViT-L-14/openai"):
        assert fact in str(error.value)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("local-dir:nowhere", "no folder"),
        ("vit_nothing", "vit_nothing"),
        ("timm/resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k"),
        ("random:resnet18?size=64", "only option is"),
        ("random:resnet18?img_size=big", "only option is"),
    ],
)
def test_a_vision_encoder_that_cannot_be_loaded(uri: str, reason: str) -> None:
    with refused("not-loadable", "vision") as error:
        VisionEncoder.load(uri)
    for fact in (repr(uri), reason, "random:NAME"):
        assert fact in str(error.value)


def test_openai_weights_get_the_activation_they_were_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def create(name: str, tag: str, **options: bool) -> tuple[None, None]:
        asked[f"{name}/{tag}"] = options
        return None, None

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", create)
    for uri in ("ViT-L-14/openai", "ViT-L-14-quickgelu/openai", "ViT-B-32/laion2b_s34b_b79k"):
        retrieval.models.vlm._create(uri)
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


@pytest.mark.parametrize("name", ["fast", "paper"])
def test_dinov2_of_a_shipped_profile_sees_224_pixels_and_not_the_518_of_timm(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = load_profile(name).models.vision
    architecture, _, rest = uri.removeprefix("hf-hub:timm/").partition(".")
    size = rest.partition("?")[2]
    assert "dinov2" in architecture
    # Its own preprocessing and shape, without a hub; one block of the 12 or 24 is enough.
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda **given: create(**given, depth=1))
    model, transform = retrieval.models.vision._create(f"random:{architecture}?{size}".rstrip("?"))
    assert model.pos_embed.shape[1] == 1 + 16**2
    assert preprocess_of(transform).geometry[-1] == "crop (224, 224)"


def test_position_embeddings_of_saved_weights_are_resampled_to_the_image_size(tmp_path: Path) -> None:
    shape = {"embed_dim": 16, "depth": 1, "num_heads": 1}
    whole = timm.create_model("vit_small_patch14_dinov2", num_classes=0, **shape)
    config = {"architecture": "vit_small_patch14_dinov2", "model_args": shape, "num_classes": 0}
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": whole.pretrained_cfg}))
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    small = VisionEncoder.load(f"local-dir:{tmp_path}?img_size=56", device="cpu")
    assert small.preprocess.geometry[-1] == "crop (56, 56)"
    found, _ = retrieval.models.vision._create(f"local-dir:{tmp_path}?img_size=56")
    expected = resample_abs_pos_embed(whole.pos_embed, [4, 4], num_prefix_tokens=0 if whole.no_embed_class else 1)
    torch.testing.assert_close(found.pos_embed, expected)
    assert small.fingerprint != VisionEncoder.load(f"local-dir:{tmp_path}", device="cpu").fingerprint


def test_loading_leaves_the_root_logger_alone(models_folder: Path) -> None:
    before = list(logging.getLogger().handlers)
    VLM.load(f"local-dir:{models_folder / 'vlm'}", device="cpu")
    assert logging.getLogger().handlers == before
