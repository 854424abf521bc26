"""Random tiny models on disk, in the very formats of the real ones: they load in well under a second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from diffusers import (
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

IMAGE_SIZE = 64
CONTEXT = 32
VLM_DIM = 24
VISION_DIM = 32
START, END = "<|startoftext|>", "<|endoftext|>"
SENTENCES = ["a red striped star", "a photo of a blue dotted circle", "something round, with green checks"]
UNET: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
}
"""Of every tiny UNet of the kind of Stable Diffusion."""


def write_vlm(folder: Path, *, seed: int = 0) -> Path:
    """An open_clip `local-dir`: image tower 64 px, text tower of 32 tokens, both to 24 dimensions."""
    tokenizer = train_tokenizer()
    model_cfg = {
        "embed_dim": VLM_DIM,
        "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(tokenizer),
            "width": 32,
            "heads": 2,
            "layers": 1,
            "hf_tokenizer_name": "in this folder",
        },
    }
    preprocess_cfg = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"}
    folder.mkdir(parents=True)
    _write_json(folder / "open_clip_config.json", {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    model = open_clip.CLIP(**model_cfg)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def write_vision(folder: Path, *, seed: int = 0, classes: int = 10, crop_pct: float = 1.0) -> Path:
    """A timm `local-dir`: a narrow resnet18 for 64 px with a classifier, 32 features before it."""
    model_args: dict[str, Any] = {
        "layers": [1, 1, 1, 1],
        "channels": [8, 16, 24, VISION_DIM],
        "stem_type": "deep",
        "stem_width": 4,
    }
    pretrained_cfg = {
        "input_size": [3, IMAGE_SIZE, IMAGE_SIZE],
        "num_classes": classes,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "crop_pct": crop_pct,
        "crop_mode": "center",
        "first_conv": "conv1.0",
        "classifier": "fc",
    }
    config = {"architecture": "resnet18", "model_args": model_args, "pretrained_cfg": pretrained_cfg}
    folder.mkdir(parents=True)
    _write_json(folder / "config.json", config)
    torch.manual_seed(seed)
    model = timm.create_model("resnet18", num_classes=classes, **model_args)
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def write_generator(folder: Path, *, seed: int = 0, half: bool = False, prudish: bool = False) -> Path:
    """A diffusers StableDiffusionPipeline folder: 16 x 16 x 4 latents to 64 px, 32 tokens of context.

    Args:
        half: store the weights as float16, as the committed ones are.
        prudish: add a safety checker to which no image is safe.
    """
    tokenizer = train_tokenizer()
    torch.manual_seed(seed)
    width = 32
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 4,
        **UNET,
        cross_attention_dim=width,
    )
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(0, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=4,
    )
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, steps_offset=1)
    pipeline: Any = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=_prudish_checker() if prudish else None,
        feature_extractor=CLIPImageProcessor() if prudish else None,
        requires_safety_checker=prudish,
    )
    if half:
        pipeline.to(dtype=torch.float16, silence_dtype_warnings=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def train_tokenizer(sentences: Sequence[str] = SENTENCES, *, vocabulary: int = 120) -> CLIPTokenizer:
    """A CLIP tokenizer (lower case, byte-level BPE) with merges learned from sentences.

    Every byte has a token, inside a word and at its end, so that no text has an unknown one. Start and end
    have the two highest ids: open_clip pools the text where the highest id stands.
    """
    rules = CLIPTokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer, bpe.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator(sentences, trainer)
    learned = json.loads(bpe.to_str())["model"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    endings = [f"{letter}</w>" for letter in letters]
    merges: list[Any] = [tuple(pair) for pair in learned["merges"]]
    tokens = dict.fromkeys([*letters, *endings, *learned["vocab"], START, END])
    return CLIPTokenizer(
        vocab={token: id for id, token in enumerate(tokens)},
        merges=merges,
        model_max_length=CONTEXT,
    )


def _prudish_checker() -> StableDiffusionSafetyChecker:
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=tiny, projection_dim=8))
    checker.concept_embeds_weights.data.fill_(-2)  # an image is unsafe when its cosine to a concept exceeds this
    return checker


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2))
