"""Shapes of the production models, and of others that a CPU runs in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import open_clip


@dataclass(frozen=True)
class Vision:
    """A vision encoder of timm: its architecture, arguments of that, and the pixels of a side that are asked for."""

    architecture: str
    side: int
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Diffusion:
    """A Stable Diffusion: configurations of its components, and how it is called."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    checker: dict[str, Any] | None
    scheduler: str
    steps: int
    guidance: float
    batches: tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """All that a run is made of.

    Attributes:
        encoders: by name, open_clip's configuration of the VLM, the vision encoder, and the rows of a block.
        diffusions: by name.
        training: labels, images a query, dimensions of both vectors, queries a batch, and steps.
        search: rows, dimensions, lists, and queries.
        rounds: of every comparison, of which the median counts.
    """

    encoders: dict[str, tuple[dict[str, Any], Vision, int]]
    diffusions: dict[str, Diffusion]
    training: dict[str, int]
    search: dict[str, int]
    rounds: int


def size_of(name: str) -> Size:
    """Return the sizes ``true`` and ``tiny``."""
    return {"true": _true, "tiny": _tiny}[name]()


def _true() -> Size:
    return Size(
        encoders={
            "SigLIP 2 ViT-B/16 and DINOv2 B/14": (
                open_clip.get_model_config("ViT-B-16-SigLIP2"),
                Vision("vit_base_patch14_dinov2", 224, {}),
                256,
            ),
            "CLIP ViT-L/14 and DINOv2 L/14": (
                open_clip.get_model_config("ViT-L-14"),
                Vision("vit_large_patch14_dinov2", 224, {}),
                128,
            ),
        },
        diffusions={
            "Stable Diffusion 1.5": Diffusion(
                unet={"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
                vae=_vae(128, 256, 512, 512),
                text=_text(width=768, layers=12, heads=12),
                checker={
                    "vision_config": {
                        "hidden_size": 1024,
                        "intermediate_size": 4096,
                        "num_hidden_layers": 24,
                        "num_attention_heads": 16,
                        "patch_size": 14,
                    },
                    "projection_dim": 768,
                },
                scheduler="PNDMScheduler",
                steps=30,
                guidance=7.5,
                batches=(1, 4, 8, 16, 32),
            ),
            "SD-Turbo": Diffusion(
                unet={
                    "cross_attention_dim": 1024,
                    "attention_head_dim": (5, 10, 20, 20),
                    "use_linear_projection": True,
                    "sample_size": 64,
                },
                vae=_vae(128, 256, 512, 512),
                text=_text(width=1024, layers=23, heads=16) | {"hidden_act": "gelu"},
                checker=None,
                scheduler="EulerDiscreteScheduler",
                steps=1,
                guidance=0.0,
                batches=(1, 4, 8, 16, 32),
            ),
        },
        training={"labels": 1000, "images": 16, "dim": 1024, "batch": 256, "steps": 60},
        search={"rows": 500_000, "dim": 1536, "lists": 2048, "queries": 1000},
        rounds=5,
    )


def _tiny() -> Size:
    text = {"vocab_size": 49408, "context_length": 77, "width": 32, "heads": 2, "layers": 1}
    clip = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 28, "layers": 1, "width": 32, "patch_size": 14, "head_width": 16},
        "text_cfg": text,
    }
    real = open_clip.get_model_config("ViT-B-16-SigLIP2")
    siglip = real | {
        "embed_dim": 64,
        "vision_cfg": real["vision_cfg"] | {"image_size": 32, "timm_model_name": "test_vit"},
        "text_cfg": real["text_cfg"] | {"vocab_size": 300, "width": 32, "heads": 2, "layers": 1},
    }
    vision = Vision("vit_small_patch14_dinov2", 28, {"embed_dim": 32, "depth": 1, "num_heads": 2})
    unet = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "cross_attention_dim": 32,
        "sample_size": 16,
    }
    checker = {
        "vision_config": {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
        },
        "projection_dim": 8,
    }
    generator = Diffusion(
        unet=unet,
        vae=_vae(4, 8) | {"norm_num_groups": 2},
        text=_text(width=32, layers=1, heads=2),
        checker=checker,
        scheduler="PNDMScheduler",
        steps=2,
        guidance=7.5,
        batches=(1, 2),
    )
    return Size(
        encoders={"tiny SigLIP 2 and DINOv2": (siglip, vision, 8), "tiny CLIP and DINOv2": (clip, vision, 8)},
        diffusions={"tiny Stable Diffusion": generator},
        training={"labels": 20, "images": 4, "dim": 32, "batch": 16, "steps": 6},
        search={"rows": 2000, "dim": 32, "lists": 8, "queries": 10},
        rounds=2,
    )


def _text(*, width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _vae(*channels: int) -> dict[str, Any]:
    return {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
    }
