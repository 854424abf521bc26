"""Fingerprints of encoders follow all that changes a vector, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from tiny_models import write_vision, write_vlm

from retrieval.models.vision import VisionEncoder
from retrieval.models.vlm import VLM


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
