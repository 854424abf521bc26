"""Random weights in the hub's own formats, so that they come through the very loaders of the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import open_clip
import timm
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import save_file

from benchmarks.gpu.sizes import Diffusion, Vision

START, END = "<|startoftext|>", "<|endoftext|>"


def vlm_of(configuration: dict[str, Any]) -> torch.nn.Module:
    """Return a model of open_clip of this configuration."""
    shape = {name: value for name, value in configuration.items() if name != "custom_text"}
    return (open_clip.CustomTextCLIP if configuration.get("custom_text") else open_clip.CLIP)(**shape)


def vision_of(shape: Vision) -> Any:
    """Return a model of timm without classifier, at the size that its architecture was trained at."""
    return timm.create_model(shape.architecture, num_classes=0, **shape.arguments)


def components_of(shape: Diffusion, vocabulary: int, special: dict[str, int]) -> dict[str, Any]:
    """Return the networks of a Stable Diffusion.

    Args:
        vocabulary: tokens of its tokenizer.
        special: ids of its tokens of start and end, as transformers names them.
    """
    text = transformers.CLIPTextConfig(vocab_size=vocabulary, **special, **shape.text)
    checker = shape.checker and StableDiffusionSafetyChecker(transformers.CLIPConfig(**shape.checker))
    return {
        "text_encoder": transformers.CLIPTextModel(text),
        "unet": diffusers.UNet2DConditionModel(**shape.unet),
        "vae": diffusers.AutoencoderKL(**shape.vae),
        "safety_checker": checker or None,
    }


def write_vlm(folder: Path, configuration: dict[str, Any], device: torch.device) -> str:
    """Write an open_clip folder and return its URI."""
    folder.mkdir(parents=True)
    text = dict(configuration["text_cfg"])
    if "hf_tokenizer_name" in text:
        text["hf_tokenizer_name"] = "in this folder"
        byte_tokenizer().save_pretrained(folder)
    with torch.device(device):
        model = vlm_of(configuration)
    _save(model, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    content = {"model_cfg": configuration | {"text_cfg": text}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return f"local-dir:{folder}"


def write_vision(folder: Path, shape: Vision, device: torch.device) -> str:
    """Write a timm folder, and return its URI at the size wanted."""
    folder.mkdir(parents=True)
    with torch.device(device):
        model = vision_of(shape)
    _save(model, folder / "model.safetensors")
    known = ("input_size", "fixed_input_size", "mean", "std", "interpolation", "crop_pct", "first_conv", "classifier")
    pretrained = {name: model.pretrained_cfg[name] for name in known}
    content = {
        "architecture": shape.architecture,
        "num_classes": 0,
        "model_args": shape.arguments,
        "pretrained_cfg": pretrained | {"num_classes": 0},
    }
    (folder / "config.json").write_text(json.dumps(content))
    return f"local-dir:{folder}?img_size={shape.side}"


def write_generator(folder: Path, shape: Diffusion, device: torch.device) -> str:
    """Write a diffusers folder with weights in float16, as the hub has them, and return its path."""
    tokenizer = _clip_tokenizer()
    scheduler = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    if shape.scheduler == "PNDMScheduler":
        scheduler["skip_prk_steps"] = True
    else:
        scheduler["timestep_spacing"] = "trailing"
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.device(device):
        components = components_of(shape, len(tokenizer), special)
    checked = components["safety_checker"] is not None
    pipeline: Any = diffusers.StableDiffusionPipeline(
        **components,
        tokenizer=tokenizer,
        scheduler=getattr(diffusers, shape.scheduler)(**scheduler),
        feature_extractor=transformers.CLIPImageProcessor() if checked else None,
        requires_safety_checker=checked,
    )
    pipeline.to(dtype=torch.float16, silence_dtype_warnings=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return str(folder)


def _save(model: torch.nn.Module, file: Path) -> None:
    save_file({name: tensor.cpu().contiguous() for name, tensor in model.half().state_dict().items()}, file)


def _clip_tokenizer() -> transformers.CLIPTokenizer:
    """CLIP's own tokenizer, from the vocabulary that open_clip ships, under the names that transformers knows."""
    own = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": START, "<end_of_text>": END}
    vocabulary = {names.get(token, token): id for token, id in own.encoder.items()}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=list(own.bpe_ranks), model_max_length=77)


def byte_tokenizer() -> transformers.GemmaTokenizer:
    """A tokenizer of Gemma's kind that knows bytes alone: what it makes of a text changes no speed."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    return transformers.GemmaTokenizer(vocab={token: id for id, token in enumerate(tokens)}, merges=[])
