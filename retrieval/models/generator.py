"""Imagining a query: a text-to-image diffusion model through diffusers, reproducible image by image."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from retrieval.errors import UserError
from retrieval.models.devices import map_batches, pick_device, pick_dtype
from retrieval.models.diffusion import call_settings, load_pipeline, pipeline_files, step_hook
from retrieval.models.fingerprint import of_files
from retrieval.models.imagined import Imagined, Painting, paintings_of, sort_out
from retrieval.models.loading import loading
from retrieval.prompts import usable

GENERATOR_URIS = (
    "a folder with a diffusers pipeline (model_index.json, weights as safetensors) or a hub id such as "
    "stabilityai/sd-turbo"
)


class Stopped(Exception):
    """A generation that was ended because nobody waits for it any more."""


class _Job(NamedTuple):
    """One image to be made."""

    prompt: str
    seed: int


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
        self._settings = call_settings(pipeline, steps=steps, guidance=guidance, size=size)
        self._step_hook = step_hook(pipeline)
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
            guidance: classifier-free guidance scale; at 1 or less there is none, as distilled models want it. LCM and
                FLUX.1 dev are told it as an input, and FLUX.1 schnell ignores it.
            size: side of the square images in pixels; None is what the model was made for.
            device: auto (the first there is of cuda, mps, cpu) or a PyTorch device.
            dtype: auto (bfloat16 on a CUDA GPU that has it, else float32) or a key of devices.DTYPES.

        Raises:
            UserError: ``steps`` or ``guidance`` is out of range, or steps are too few for this pipeline (code
                ``out-of-range``), there is no such device or dtype, or the pipeline cannot be loaded or is none of
                ``diffusion.PIPELINES``: what was tried, and why (``not-loadable``, field ``generator``).
        """
        if steps < 1:
            raise _out_of_range(f"steps must be at least 1, and is {steps}", "steps")
        if not 0 <= guidance < float("inf"):
            raise _out_of_range(f"guidance must be a number from 0 up, and is {guidance}", "guidance")
        where = pick_device(device)
        # On a CPU a small UNet gains nothing from bfloat16, and in float32 all CPUs make images alike.
        precision = pick_dtype("float32" if dtype == "auto" and where.type != "cuda" else dtype, where)
        here = Path(uri).absolute()
        place = f"the folder {here}" if here.is_dir() else f"the hub, as there is no folder {here}"
        with loading("generator", f"generator {uri!r} from {place}", GENERATOR_URIS):
            pipeline, folder = load_pipeline(uri, precision)
        settings = {"steps": steps, "guidance": float(guidance), "size": size}
        return cls(
            uri,
            pipeline.to(where),
            steps=steps,
            guidance=guidance,
            size=size,
            fingerprint=of_files(folder, pipeline_files(folder), settings),
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
            sort_out([job.seed for job in jobs[start : start + images]], paintings[start : start + images])
            for start in range(0, len(jobs), images)
        ]

    @torch.inference_mode()
    def _paint(self, jobs: Sequence[_Job], check: Callable[..., dict]) -> list[Painting]:
        with self._painting:
            check()
            output = self._pipeline(
                prompt=[job.prompt for job in jobs],
                # Noise from the CPU: a GPU's own would differ from one GPU model to the next.
                generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
                **self._settings,
                **{self._step_hook: check},
            )
        # Most pipelines have no safety checker at all.
        unsafe = getattr(output, "nsfw_content_detected", None) or [False] * len(jobs)
        return paintings_of(output.images, unsafe)


def image_seed(prompt: str, seed: int, i: int) -> int:
    """Return the seed of image i of a prompt, from 0 to 2^63 - 1, of the SHA-256 of the JSON list [seed, i, prompt]."""
    digest = hashlib.sha256(json.dumps([seed, i, prompt]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _check(stop: Callable[[], bool] | None, *_: Any) -> dict:
    """In the form of diffusers' hooks after a step; the newer kind returns the tensors it changed."""
    if stop and stop():
        raise Stopped
    return {}


def _out_of_range(message: str, field: str) -> UserError:
    return UserError(message, code="out-of-range", field=field)
