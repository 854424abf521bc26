"""Imagining a query: a text-to-image diffusion model through diffusers, reproducible image by image."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from diffusers import AutoPipelineForText2Image, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging

from retrieval.errors import UserError
from retrieval.models.devices import map_batches, pick_device, pick_dtype
from retrieval.models.fingerprint import of_files
from retrieval.models.loading import loading
from retrieval.prompts import usable

GENERATOR_URIS = (
    "a folder with a diffusers pipeline (model_index.json, weights as safetensors) or a hub id such as "
    "stabilityai/sd-turbo"
)
# An image shows nothing when each of its colour channels spans at most so many of 255 levels.
CONSTANT_SPAN = 4


@dataclass(frozen=True)
class Imagined:
    """The images of one prompt, in the order of their index i; K of them were accepted.

    Attributes:
        pixels_KHWC: the accepted images, uint8.
        seeds: their seeds, (K,) int64; `image_seed` says how they come about.
        rejected: a reason for each image that was not accepted: "safety" (the pipeline's own checker blacked
            it out), "nan" (not finite) or "constant" (one plain colour).
    """

    pixels_KHWC: np.ndarray
    seeds: np.ndarray
    rejected: list[str]


class Stopped(Exception):
    """A generation that was ended because nobody waits for it any more."""


class _Job(NamedTuple):
    """One image to be made."""

    prompt: str
    seed: int


class _Painting(NamedTuple):
    """One image that was made, and why it cannot be used, if so."""

    pixels_HWC: np.ndarray
    fault: str | None


class Generator:
    """A loaded diffusion pipeline with its settings. Several threads may call it: one batch is made at a time.

    Attributes:
        uri: as given to `load`.
        fingerprint: `sha256:…` of the pipeline's files, steps, guidance and size; the same on every device.
    """

    def __init__(
        self, uri: str, pipeline: Any, *, steps: int, guidance: float, size: int | None, fingerprint: str
    ) -> None:
        self.uri = uri
        self.steps = steps
        self.guidance = guidance
        self.size = size
        self.fingerprint = fingerprint
        self._pipeline = pipeline
        # A pipeline and its scheduler keep the state of the run they are in.
        self._painting = threading.Lock()

    @classmethod
    def load(
        cls,
        uri: str,
        *,
        steps: int,
        guidance: float,
        size: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> Generator:
        """Load a text-to-image pipeline. Its own safety checker, where it has one, stays in force.

        Args:
            uri: GENERATOR_URIS says its forms; a relative folder is relative to the current directory.
            steps: denoising steps, at least 1.
            guidance: classifier-free guidance scale; at 1 or less there is none, as distilled models want it.
            size: side of the square images in pixels; None is what the model was made for.
            device: auto (the first there is of cuda, mps, cpu) or a PyTorch device.
            dtype: auto (bfloat16 on a CUDA GPU that has it, else float32) or a key of devices.DTYPES.

        Raises:
            UserError: ``steps`` or ``guidance`` is out of range (code ``out-of-range``), there is no such device or
                dtype, or the pipeline cannot be loaded: what was tried, and why (``not-loadable``, field
                ``generator``).
        """
        if steps < 1:
            raise _out_of_range(f"steps must be at least 1, and is {steps}", "steps")
        if not 0 <= guidance < float("inf"):
            raise _out_of_range(f"guidance must be a number from 0 up, and is {guidance}", "guidance")
        where = pick_device(device)
        # On a CPU a small UNet gains nothing from bfloat16, and in float32 all CPUs make images alike.
        precision = pick_dtype("float32" if dtype == "auto" and where.type != "cuda" else dtype, where)
        diffusers_logging.set_verbosity_error()
        diffusers_logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        folder = Path(uri)
        here = folder.is_dir()
        place = f"the folder {folder.absolute()}" if here else f"the hub, as there is no folder {folder.absolute()}"
        with loading("generator", f"generator {uri!r} from {place}", GENERATOR_URIS):
            if not here:
                folder = Path(DiffusionPipeline.download(uri, use_safetensors=True))
            pipeline = AutoPipelineForText2Image.from_pretrained(folder, use_safetensors=True, dtype=precision)
        pipeline.set_progress_bar_config(disable=True)
        settings = {"steps": steps, "guidance": float(guidance), "size": size}
        return cls(
            uri,
            pipeline.to(where),
            steps=steps,
            guidance=guidance,
            size=size,
            fingerprint=of_files(folder, _pipeline_files(folder), settings),
        )

    def imagine(
        self,
        prompts: Sequence[str],
        images: int,
        *,
        seed: int = 0,
        batch: int = 8,
        stop: Callable[[], bool] | None = None,
    ) -> list[Imagined]:
        """Make images of each prompt, a batch at a time across prompts; rejected ones leave a gap.

        Image i of a prompt depends on (prompt, seed, i) alone, whatever batch it is made in: it has noise of
        its own. Kernels for other batch sizes round differently, so pixels may differ by a grey level or so.

        Args:
            prompts: the texts.
            images: of each prompt, from 1.
            seed: of all of them.
            batch: images at once, from 1; one that does not fit in GPU memory is halved.
            stop: asked before every batch and after every denoising step whether to give up.

        Raises:
            Stopped: ``stop`` said so.
            UserError: images or batch below 1 (code ``out-of-range``), prompts that are one string (``wrong-type``), or
                as ``prompts.usable``.
            torch.OutOfMemoryError: not even one image fits.
        """
        if isinstance(prompts, str):
            raise UserError("prompts must be a list of strings, and is one string", code="wrong-type", field="prompts")
        if images < 1 or batch < 1:
            wrong = "images" if images < 1 else "batch"
            raise _out_of_range(f"images and batch must be at least 1, and are {images} and {batch}", wrong)
        jobs = [_Job(usable(prompt), image_seed(prompt, seed, i)) for prompt in prompts for i in range(images)]
        paint = functools.partial(self._paint, check=functools.partial(_check, stop))
        paintings = [painting for made in map_batches(paint, jobs, batch) for painting in made]
        return [
            _sort_out(jobs[start : start + images], paintings[start : start + images])
            for start in range(0, len(jobs), images)
        ]

    @torch.inference_mode()
    def _paint(self, jobs: Sequence[_Job], check: Callable[..., dict]) -> list[_Painting]:
        with self._painting:
            check()
            output = self._pipeline(
                prompt=[job.prompt for job in jobs],
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                height=self.size,
                width=self.size,
                # Noise from the CPU: a GPU's own would differ from one GPU model to the next.
                generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
                output_type="np",
                callback_on_step_end=check,
            )
        unsafe = getattr(output, "nsfw_content_detected", None) or [False] * len(jobs)
        return [_painting(image, flagged) for image, flagged in zip(output.images, unsafe, strict=True)]


def image_seed(prompt: str, seed: int, i: int) -> int:
    """Return the seed of image i of a prompt, from 0 to 2^63 - 1, of the SHA-256 of the JSON list [seed, i, prompt]."""
    digest = hashlib.sha256(json.dumps([seed, i, prompt]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _check(stop: Callable[[], bool] | None, *_: Any) -> dict:
    """In the form of diffusers' `callback_on_step_end`, which returns the tensors it changed."""
    if stop and stop():
        raise Stopped
    return {}


def _out_of_range(message: str, field: str) -> UserError:
    return UserError(message, code="out-of-range", field=field)


def _painting(image_HWC: np.ndarray, flagged: bool) -> _Painting:
    """From the pipeline's float32 in [0, 1] to uint8, and the reason for which it must not be used."""
    finite = np.isfinite(image_HWC).all()
    pixels_HWC = (np.nan_to_num(image_HWC) * 255).round().astype(np.uint8)
    if flagged:
        return _Painting(pixels_HWC, "safety")
    if not finite:
        return _Painting(pixels_HWC, "nan")
    if np.ptp(pixels_HWC, axis=(0, 1)).max() <= CONSTANT_SPAN:
        return _Painting(pixels_HWC, "constant")
    return _Painting(pixels_HWC, None)


def _sort_out(jobs: Sequence[_Job], paintings: Sequence[_Painting]) -> Imagined:
    fine = [i for i, painting in enumerate(paintings) if painting.fault is None]
    pixels_KHWC = np.stack([painting.pixels_HWC for painting in paintings])[fine]
    seeds = np.array([jobs[i].seed for i in fine], dtype=np.int64)
    rejected = [painting.fault for painting in paintings if painting.fault is not None]
    return Imagined(pixels_KHWC, seeds, rejected)


def _pipeline_files(folder: Path) -> list[Path]:
    """The files that decide what a pipeline paints: its components', without variants such as `.fp16.`."""
    index = json.loads((folder / "model_index.json").read_text())
    files = [folder / "model_index.json"]
    for component in sorted(index):
        files += [
            file
            for file in (folder / component).glob("*")
            if file.suffix in {".safetensors", ".json", ".txt", ".model"} and "." not in file.stem
        ]
    return files
