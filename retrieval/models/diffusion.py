"""The text-to-image pipelines of diffusers that a generator can be: which there are, and how each is loaded and called.

They take the same arguments but for a few. One that is not listed is refused, as nobody has seen that its images depend
on their seed alone, and that it stops when it is told to.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging

from retrieval.errors import UserError

PIPELINES: Final = {
    "StableDiffusionPipeline": "Stable Diffusion 1 and 2, SD-Turbo",
    "StableDiffusionXLPipeline": "Stable Diffusion XL, SDXL-Turbo",
    "StableDiffusion3Pipeline": "Stable Diffusion 3, with its T5 or without",
    "LatentConsistencyModelPipeline": "LCM",
    "PixArtAlphaPipeline": "PixArt-α",
    "PixArtSigmaPipeline": "PixArt-Σ",
    "SanaPipeline": "Sana",
    "FluxPipeline": "FLUX.1 dev and schnell",
}
"""Names of classes, as `model_index.json` has them, and models that come as such."""

_INDEX = "model_index.json"
# FLUX.1 schnell was distilled with texts of so many tokens, the other models of its class with 512.
_SCHNELL_TOKENS = 256


def load_pipeline(uri: str, dtype: torch.dtype) -> tuple[DiffusionPipeline, Path]:
    """Load one of PIPELINES from a folder, or else from the hub, on the CPU, and return it with its folder.

    Raises:
        LookupError: it is a pipeline of another class.
        Exception: whatever diffusers says of a pipeline that it cannot load.
    """
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    # Before anything large is downloaded.
    index = DiffusionPipeline.load_config(uri)
    kind = str(index.get("_class_name"))
    if kind not in PIPELINES:
        known = "; ".join(f"{name} ({models})" for name, models in PIPELINES.items())
        raise LookupError(f"it is a {kind}, which is not supported; these are: {known}")
    folder = Path(uri)
    if not folder.is_dir():
        folder = Path(DiffusionPipeline.download(uri, use_safetensors=True))
    # A component that was left out, as Stable Diffusion 3 may be without its T5, must be named: diffusers knows of some
    # that they can be missing, and takes the others for files that are.
    absent = {name: None for name, origin in index.items() if origin == [None, None]}
    pipeline = getattr(diffusers, kind).from_pretrained(folder, use_safetensors=True, dtype=dtype, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, folder


def call_settings(pipeline: Any, *, steps: int, guidance: float, size: int | None) -> dict[str, Any]:
    """Return the arguments of every call of a loaded pipeline.

    Args:
        size: side of the images in pixels; None is what the model was made for.

    Raises:
        UserError: it cannot make images in so few steps (code ``out-of-range``, field ``steps``).
    """
    settings: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pt"}
    match type(pipeline).__name__:
        case "PixArtAlphaPipeline" | "PixArtSigmaPipeline" as name:
            # What it does depends on a library that may be installed or not.
            settings["clean_caption"] = False
            one_step = isinstance(pipeline.scheduler, diffusers.LCMScheduler | diffusers.DDPMScheduler)
            if steps == 1 and name == "PixArtAlphaPipeline" and not one_step:
                kind = type(pipeline.scheduler).__name__
                message = f"steps must be at least 2 for PixArt-α with a {kind}, and is 1"
                raise UserError(message, code="out-of-range", field="steps")
        case "SanaPipeline":
            # By default it makes 1,024 pixels of any model, those that were made for 512 too.
            size = size or pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
        case "FluxPipeline" if not pipeline.transformer.config.guidance_embeds:
            settings["max_sequence_length"] = _SCHNELL_TOKENS
    return settings if size is None else {**settings, "height": size, "width": size}


def step_hook(pipeline: Any) -> str:
    """Return the name of the argument with what is called after every step; PixArt ignores the name of the others."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    return "callback_on_step_end" if "callback_on_step_end" in parameters else "callback"


def pipeline_files(folder: Path) -> list[Path]:
    """Return the files that decide what a pipeline paints: its components', without variants such as `.fp16.`."""
    index = json.loads((folder / _INDEX).read_text())
    files = [folder / _INDEX]
    for component in sorted(index):
        files += [
            file
            for file in (folder / component).glob("*")
            if file.suffix in {".safetensors", ".json", ".txt", ".model"} and "." not in file.stem
        ]
    return files
