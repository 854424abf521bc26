"""The production pipelines of diffusers at reduced width, random, on disk, in the very formats of the hub.

Each is put together of the classes that the hub's `model_index.json` names; width, depth and vocabulary are small, and
so are the images, as far as a pipeline lets them be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tiny_models import CONTEXT, START, UNET, train_tokenizer

from benchmarks.gpu.models import byte_tokenizer

WIDTH = 16
PIECES = [*"abcdefghijklmnopqrstuvwxyz0123456789,;.'()-", "▁a", "▁red", "▁star", "▁word"]


def stable_diffusion() -> DiffusionPipeline:
    """Stable Diffusion 1.5 with its safety checker, to which every image is safe: 32 px."""
    return diffusers.StableDiffusionPipeline(
        **_latent(), safety_checker=safety_checker(), feature_extractor=transformers.CLIPImageProcessor()
    )


def turbo() -> DiffusionPipeline:
    """SD-Turbo: another scheduler, one step, and no safety checker."""
    parts = _latent(diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"))
    return diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def latent_consistency() -> DiffusionPipeline:
    """LCM of Stable Diffusion 1.5: its UNet is told the guidance, and its scheduler draws noise at every step."""
    return diffusers.LatentConsistencyModelPipeline(
        **_latent(diffusers.LCMScheduler(), time_cond_proj_dim=8),
        safety_checker=safety_checker(),
        feature_extractor=transformers.CLIPImageProcessor(),
    )


def stable_diffusion_xl() -> DiffusionPipeline:
    """SDXL: two CLIP text encoders, and a UNet that is told the size."""
    parts = _latent(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    return diffusers.StableDiffusionXLPipeline(
        **parts, text_encoder_2=_clip(transformers.CLIPTextModelWithProjection), tokenizer_2=train_tokenizer()
    )


def stable_diffusion_3() -> DiffusionPipeline:
    """Stable Diffusion 3 with all of its three text encoders."""
    return _stable_diffusion_3(text_encoder_3=t5(2 * WIDTH), tokenizer_3=t5_tokenizer())


def stable_diffusion_3_without_t5() -> DiffusionPipeline:
    """Stable Diffusion 3 as it is saved where its largest text encoder was left out."""
    return _stable_diffusion_3(text_encoder_3=None, tokenizer_3=None)


def pixart_alpha() -> DiffusionPipeline:
    """PixArt-α: 256 px, the least that its table of resolutions has."""
    return diffusers.PixArtAlphaPipeline(**_pixart())


def pixart_sigma() -> DiffusionPipeline:
    """PixArt-Σ: 256 px, the least that its table of resolutions has."""
    return diffusers.PixArtSigmaPipeline(**_pixart())


def sana() -> DiffusionPipeline:
    """Sana: Gemma 2, an autoencoder of factor 32, 512 px, the least that its table of resolutions has."""
    transformer = diffusers.SanaTransformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        num_layers=1,
    )
    channels = (4, 4, 4, 4, 4, 8)
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    )
    tokenizer = byte_tokenizer()
    gemma = transformers.Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.Gemma2Model(gemma),
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def flux_dev() -> DiffusionPipeline:
    """FLUX.1 dev: it is told the guidance that it was distilled from."""
    return _flux(guidance_embeds=True)


def flux_schnell() -> DiffusionPipeline:
    """FLUX.1 schnell: it knows no guidance."""
    return _flux(guidance_embeds=False)


PIPELINES = {
    "stable-diffusion": stable_diffusion,
    "turbo": turbo,
    "lcm": latent_consistency,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "sd3-without-t5": stable_diffusion_3_without_t5,
    "pixart-alpha": pixart_alpha,
    "pixart-sigma": pixart_sigma,
    "sana": sana,
    "flux-dev": flux_dev,
    "flux-schnell": flux_schnell,
}


def write_pipeline(name: str, folder: Path, **other: Any) -> Path:
    """Write one of PIPELINES, with weights of seed 0; ``other`` are components in the place of its own."""
    torch.manual_seed(0)
    pipeline: Any = PIPELINES[name]()
    pipeline.register_modules(**other)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def safety_checker(*, prudish: bool = False) -> StableDiffusionSafetyChecker:
    """Stable Diffusion's safety checker, to which every image is safe, or, if prudish, none."""
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    checker = StableDiffusionSafetyChecker(transformers.CLIPConfig(vision_config=tiny, projection_dim=8))
    # An image is unsafe when its cosine to a concept exceeds the concept's weight.
    checker.concept_embeds_weights.data.fill_(-2 if prudish else 2)
    checker.special_care_embeds_weights.data.fill_(2)
    return checker


def t5(width: int = WIDTH) -> transformers.T5EncoderModel:
    """The encoder of a T5 v1.1."""
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=200, d_model=width, d_kv=8, d_ff=width, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
        )
    )


def t5_tokenizer() -> transformers.T5Tokenizer:
    """T5's tokenizer of letters and a few words: a letter that is none of PIECES is unknown."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((piece, -3.0) for piece in PIECES)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=100, model_max_length=512)


def _latent(scheduler: Any = None, **unet: Any) -> dict[str, Any]:
    """The parts that all of the kind of Stable Diffusion have."""
    return {
        "vae": _vae(),
        "text_encoder": _clip(transformers.CLIPTextModel),
        "tokenizer": train_tokenizer(),
        "unet": diffusers.UNet2DConditionModel(
            **{"cross_attention_dim": WIDTH, **UNET, **unet},
            sample_size=16,
        ),
        "scheduler": scheduler or diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
    }


def _vae(blocks: int = 2, **options: Any) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        latent_channels=4,
        block_out_channels=(4,) * blocks,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        **options,
    )


def _clip(kind: Any) -> Any:
    """A CLIP text encoder with the tokenizer's special tokens, by which it finds the end of a text."""
    tokenizer = train_tokenizer()
    return kind(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.convert_tokens_to_ids(START),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _stable_diffusion_3(**third: Any) -> DiffusionPipeline:
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=2 * WIDTH,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5, shift_factor=0.06),
        text_encoder=_clip(transformers.CLIPTextModelWithProjection),
        tokenizer=train_tokenizer(),
        text_encoder_2=_clip(transformers.CLIPTextModelWithProjection),
        tokenizer_2=train_tokenizer(),
        **third,
    )


def _pixart() -> dict[str, Any]:
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5(),
        "vae": _vae(blocks=4),
        "transformer": diffusers.PixArtTransformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=4,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            cross_attention_dim=16,
            caption_channels=WIDTH,
            norm_num_groups=1,
            use_additional_conditions=False,
        ),
        "scheduler": diffusers.DPMSolverMultistepScheduler(),
    }


def _flux(*, guidance_embeds: bool) -> DiffusionPipeline:
    return diffusers.FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance_embeds),
        vae=_vae(blocks=1, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.36, shift_factor=0.12),
        text_encoder=_clip(transformers.CLIPTextModel),
        tokenizer=train_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=1,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
            guidance_embeds=guidance_embeds,
        ),
    )
