"""The generator: a Stable Diffusion pipeline, trained on the demo's stock pictures of the ``models`` split at 64 × 64
pixels, or on real photos at 32 × 32 (``demo.photos``).

Supervision: (picture, faithful text) pairs. First an autoencoder (to 8 × 8 × 12), in the demo its decoder alone, then a
UNet and its text encoder together, by flow matching with logit-normal times and classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from demo.recipe import Losses, Recipe, Record, pixels, train
from demo.tokenizer import CONTEXT, load_tokenizer, tokenize
from demo.training_data import C, TrainingSet

VAE = Recipe("vae", steps=4500, batch=8, learning_rate=2e-3, ema=0.998)
DECODER = Recipe("decoder", steps=3000, batch=12, learning_rate=1.5e-3, ema=0.998)
UNET = Recipe("unet", steps=7000, batch=32, learning_rate=1.2e-3, ema=0.999, warm_up=300)
UNPROMPTED = 0.1
LATENT_CHANNELS, LATENT_SIDE = 12, 8


def new_vae(side: int) -> AutoencoderTiny:
    """Return an autoencoder of images of 16, 32 or 64 pixels a side; it halves them until LATENT_SIDE."""
    levels = (side // LATENT_SIDE).bit_length()
    return AutoencoderTiny(
        encoder_block_out_channels=(32,) * levels,
        decoder_block_out_channels=(32,) * levels,
        num_encoder_blocks=(0, 1, 2, 2)[:levels],
        num_decoder_blocks=(3, 3, 2, 0)[-levels:],
        latent_channels=LATENT_CHANNELS,
    )


def train_vae(data: TrainingSet[Any], work: Path, recipe: Recipe = VAE) -> tuple[AutoencoderTiny, Record]:
    """Train the autoencoder: L1 + squared + edge error, latents held near unit variance, decoding robust to latent
    noise.
    """
    torch.manual_seed(recipe.seed)
    vae = new_vae(data.images_NHWC.shape[1]).to(memory_format=torch.channels_last)

    def losses(rng: np.random.Generator) -> Losses:
        chosen = np.sort(rng.choice(len(data.images_NHWC), recipe.batch, replace=False))
        x = (pixels(data.images_NHWC[chosen]) * 2 - 1).contiguous(memory_format=torch.channels_last)
        latents = vae.encoder(x)
        decoded = vae.decoder(latents + 0.1 * torch.randn_like(latents))
        error = decoded - x
        edges = sum((error.diff(dim=d)).abs().mean() for d in (2, 3))
        moments = latents.mean((0, 2, 3)).square().mean() + (latents.var((0, 2, 3)) - 1).square().mean()
        return {"l1": error.abs().mean(), "l2": error.square().mean(), "edges": 0.5 * edges, "latents": 0.05 * moments}

    record = train(recipe, vae, losses, work)
    std = encode(vae, data.images_NHWC[::97]).std().item()
    vae.register_to_config(scaling_factor=round(1 / std, 5))
    return vae.eval(), record


def train_decoder(data: TrainingSet[Any], vae: AutoencoderTiny, work: Path) -> Record:
    """Train the decoder on, the encoder left as it is, so that the UNet's latents stay valid; also for tones.

    The tones term is the error of 8 × 8 block means: colours of plain areas, to which edges and patterns are blind.
    """
    torch.manual_seed(DECODER.seed)
    decoder = vae.decoder.train()

    def losses(rng: np.random.Generator) -> Losses:
        chosen = np.sort(rng.choice(len(data.images_NHWC), DECODER.batch, replace=False))
        x = (pixels(data.images_NHWC[chosen]) * 2 - 1).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latents = vae.encoder(x)
        error = decoder(latents + 0.05 * torch.randn_like(latents)) - x
        tones = F.avg_pool2d(error, 8).abs().mean()
        return {"l1": error.abs().mean(), "l2": error.square().mean(), "tones": 2 * tones}

    record = train(DECODER, decoder, losses, work)
    decoder.eval()
    return record


@torch.no_grad()
def encode(vae: AutoencoderTiny, images_NHWC: np.ndarray) -> Tensor:
    """Return the latents (N, 12, 8, 8), unscaled."""
    blocks = (images_NHWC[first : first + 128] for first in range(0, len(images_NHWC), 128))
    return torch.cat([vae.encoder(pixels(block) * 2 - 1) for block in blocks])


class Denoiser(nn.Module):
    """What is trained together: the UNet and its text encoder."""

    def __init__(self, vocabulary: int, end: int) -> None:
        super().__init__()
        width = 96
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=4 * width,
                projection_dim=width,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT,
                bos_token_id=end - 1,
                eos_token_id=end,
                pad_token_id=end,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=LATENT_SIDE,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            layers_per_block=1,
            block_out_channels=(96, 160),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=width,
            attention_head_dim=4,
            norm_num_groups=16,
        )

    def forward(self, noisy: Tensor, sigma: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(noisy, sigma * 1000, self.text(tokens).last_hidden_state).sample


def train_unet(
    data: TrainingSet[C],
    prompt: Callable[[C, np.random.Generator], str],
    vae: AutoencoderTiny,
    tokenizer_folder: Path,
    work: Path,
    recipes: Sequence[Recipe] = (UNET,),
) -> Iterator[tuple[Denoiser, Record]]:
    """Train UNet and text encoder: predict noise − latents at σ·noise + (1 − σ)·latents, σ logit-normal. Each recipe
    goes on with what the one before has come to, and yields it.

    Args:
        data: the pictures.
        prompt: writes a text for a picture of a category.
        vae: the autoencoder, trained.
        tokenizer_folder: of the text encoder's tokenizer.
        work: where an unfinished run lies.
        recipes: steps and rates.
    """
    torch.manual_seed(recipes[0].seed)
    tokenizer = load_tokenizer(tokenizer_folder)
    model = Denoiser(len(tokenizer), tokenizer.eos_token_id)
    scale = vae.config.scaling_factor
    latents_N = (encode(vae, data.images_NHWC) * scale).half()

    def losses(rng: np.random.Generator) -> Losses:
        chosen = rng.integers(len(latents_N), size=batch)
        texts = ["" if rng.random() < UNPROMPTED else prompt(data.categories[c], rng) for c in data.category_N[chosen]]
        tokens = tokenize(tokenizer, texts)
        clean = latents_N[torch.from_numpy(chosen)].float()
        noise = torch.randn_like(clean)
        sigma = torch.sigmoid(torch.randn(len(clean)))
        noisy = sigma[:, None, None, None] * noise + (1 - sigma[:, None, None, None]) * clean
        return {"flow": F.mse_loss(model(noisy, sigma, tokens), noise - clean)}

    for recipe in recipes:
        batch = recipe.batch
        yield model, train(recipe, model, losses, work)


def save_pipeline(vae: AutoencoderTiny, denoiser: Denoiser, tokenizer_folder: Path, target: Path) -> None:
    """Write the pipeline folder in diffusers' format, weights as float16 safetensors."""
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=deepcopy(vae).half(),
        text_encoder=deepcopy(denoiser.text).half(),
        tokenizer=load_tokenizer(tokenizer_folder),
        unet=deepcopy(denoiser.unet).half(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(target, safe_serialization=True)
