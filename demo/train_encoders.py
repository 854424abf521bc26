"""The two encoders, trained on photos: of the demo's ``models`` split, or real ones (``demo.photos``).

Supervision: the vision encoder learns from category labels alone (no attributes, no text); the VLM learns from (photo,
caption) pairs, in the demo from these alone, with captions as unreliable as the web's (``demo.grammar.web_caption``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from demo.recipe import Losses, Recipe, Record, pixels, train
from demo.tokenizer import CONTEXT, load_tokenizer, tokenize
from demo.training_data import C, TrainingSet

VISION = Recipe("vision", steps=2600, batch=128, learning_rate=3e-3, weight_decay=0.03, ema=0.998)
VLM = Recipe("vlm", steps=1400, batch=128, learning_rate=2e-3, weight_decay=0.05, ema=0.99)
SIDE, VLM_SIDE = 64, 32
"""Pixels a side that the two encoders see: as in life, the VLM sees less detail."""
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

VISION_ARCHITECTURE = "resnet18"
VISION_ARGUMENTS = {
    "layers": [1, 1, 1, 1],
    "channels": [32, 64, 128, 192],
    "stem_type": "deep",
    "stem_width": 16,
}
COSINE_SCALE = 12.0


def train_vision(data: TrainingSet[Any], work: Path, recipe: Recipe = VISION) -> tuple[nn.Module, Record]:
    """Train the vision encoder by softmax over cosines to one learned prototype a category."""
    torch.manual_seed(recipe.seed)
    backbone = timm.create_model(VISION_ARCHITECTURE, num_classes=0, **VISION_ARGUMENTS)
    prototypes = nn.Linear(backbone.num_features, len(data.categories), bias=False)
    model = nn.ModuleDict({"backbone": backbone, "prototypes": prototypes}).to(memory_format=torch.channels_last)

    def losses(rng: np.random.Generator) -> Losses:
        chosen = rng.integers(len(data.images_NHWC), size=recipe.batch)
        images = resized(augment(pixels(data.images_NHWC[chosen]), rng), SIDE)
        features = F.normalize(backbone(images), dim=-1)
        cosines = features @ F.normalize(prototypes.weight, dim=-1).T
        target = torch.from_numpy(data.category_N[chosen])
        return {"category": F.cross_entropy(COSINE_SCALE * cosines, target)}

    record = train(recipe, model, losses, work)
    return backbone.eval(), record


def save_vision(model: nn.Module, target: Path) -> None:
    """Write the folder that timm's ``local-dir:`` loads, weights as float16 safetensors."""
    config = {
        "architecture": VISION_ARCHITECTURE,
        "num_classes": 0,
        "num_features": model.num_features,
        "model_args": VISION_ARGUMENTS,
        "pretrained_cfg": {
            "tag": "mindseye_demo",
            "input_size": [3, SIDE, SIDE],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": MEAN,
            "std": STD,
            "num_classes": 0,
            "first_conv": "conv1.0",
            "classifier": "fc",
        },
    }
    _write_folder(target, "config.json", config, "model.safetensors", model)


def vlm_config() -> dict:
    """Return the ``model_cfg`` of open_clip for the demo's VLM."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": VLM_SIDE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": 0,
            "width": 96,
            "heads": 4,
            "layers": 2,
            # Any name here makes open_clip take the tokenizer that lies in the model's own folder.
            "hf_tokenizer_name": "mindseye-demo",
        },
    }


def train_vlm(
    data: TrainingSet[C],
    caption: Callable[[C, np.random.Generator], str],
    tokenizer_folder: Path,
    work: Path,
    recipe: Recipe = VLM,
    *,
    by_category: bool = False,
) -> tuple[nn.Module, Record]:
    """Train the VLM by CLIP's contrastive loss, on a new caption of each photo at each step.

    Args:
        data: the photos.
        caption: writes one for a photo of a category.
        tokenizer_folder: of the text tower's tokenizer.
        work: where an unfinished run lies.
        recipe: steps and rates.
        by_category: every caption of a category fits all its photos (UniCL, Yang et al. 2022), for sets of so few
            categories that each batch has many photos of one; else a caption fits its own photo alone.
    """
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(tokenizer_folder)
    config = vlm_config()
    config["text_cfg"]["vocab_size"] = len(tokenizer)
    model = open_clip.CLIP(**config).to(memory_format=torch.channels_last)

    def losses(rng: np.random.Generator) -> Losses:
        chosen = rng.integers(len(data.images_NHWC), size=recipe.batch)
        images = resized(augment(pixels(data.images_NHWC[chosen]), rng), VLM_SIDE)
        texts = [caption(data.categories[c], rng) for c in data.category_N[chosen]]
        image_BD, text_BD, scale = model(images, tokenize(tokenizer, texts))
        logits = scale.clamp(max=100) * image_BD @ text_BD.T
        number_B = torch.from_numpy(data.category_N[chosen]) if by_category else torch.arange(len(chosen))
        target = F.normalize((number_B[:, None] == number_B).float(), p=1, dim=1)
        return {"contrastive": (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2}

    record = train(recipe, model, losses, work)
    return model.eval(), record


def save_vlm(model: nn.Module, tokenizer_folder: Path, target: Path) -> None:
    """Write the folder that open_clip's ``local-dir:`` loads, weights as float16 safetensors, tokenizer beside."""
    tokenizer = load_tokenizer(tokenizer_folder)
    config = vlm_config()
    config["text_cfg"]["vocab_size"] = len(tokenizer)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    _write_folder(
        target,
        "open_clip_config.json",
        {"model_cfg": config, "preprocess_cfg": preprocess},
        "open_clip_model.safetensors",
        model,
    )
    tokenizer.save_pretrained(target)


def _write_folder(target: Path, config_name: str, config: dict, weights_name: str, model: nn.Module) -> None:
    target.mkdir(parents=True, exist_ok=True)
    (target / config_name).write_text(json.dumps(config, indent=2) + "\n")
    state = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in model.state_dict().items()
    }
    save_file(state, target / weights_name, metadata={"format": "pt"})


def resized(images_BCHW: Tensor, side: int) -> Tensor:
    """Return the images at so many pixels a side, as the encoders' own preprocessing makes them."""
    return F.interpolate(images_BCHW, (side, side), mode="bicubic", antialias=True)


def augment(images_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift by up to 4 pixels and mirror half of the images, then normalise."""
    padded = F.pad(images_BCHW, (4, 4, 4, 4), mode="reflect")
    out = torch.empty_like(images_BCHW)
    for i, (dy, dx, mirror) in enumerate(
        zip(*rng.integers(0, 9, (2, len(out))), rng.random(len(out)) < 0.5, strict=True)
    ):
        crop = padded[i, :, dy : dy + out.shape[2], dx : dx + out.shape[3]]
        out[i] = crop.flip(-1) if mirror else crop
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return ((out - mean) / std).contiguous(memory_format=torch.channels_last)
