"""Images a second of the generator at its best batch, against the same pipeline as diffusers runs it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from benchmarks.gpu.figures import Figure
from benchmarks.gpu.measure import in_turns, operations_of, peak_of, product_limit, seconds_of
from benchmarks.gpu.models import write_generator
from benchmarks.gpu.sizes import Diffusion, Size
from retrieval.models.devices import map_batches
from retrieval.models.generator import Generator

WANTED = 0.95
PROMPT = "a photo of a red striped star"


def measure(size: Size, folder: Path, device: torch.device) -> Iterator[Figure]:
    """Measure each diffusion model of the size."""
    for name, shape in size.diffusions.items():
        uri = write_generator(folder / name, shape, device)
        generator = Generator.load(uri, steps=shape.steps, guidance=shape.guidance, device=str(device))
        figure = _against_diffusers(name, shape, generator, device, size.rounds)
        yield figure
        yield _channels_last(name, generator, figure.details["batch"], device, size.rounds)


def _against_diffusers(name: str, shape: Diffusion, generator: Generator, device: torch.device, rounds: int) -> Figure:
    dtype = generator._pipeline.unet.dtype
    imagine = {batch: partial(generator.imagine, [PROMPT], batch, batch=batch) for batch in shape.batches}
    rates = {}
    for batch, work in imagine.items():
        work()
        rates[batch] = batch / seconds_of(work, device)
    best = max(rates, key=lambda batch: rates[batch])
    plain: Any = StableDiffusionPipeline.from_pretrained(generator.uri, dtype=dtype, use_safetensors=True).to(device)
    plain.set_progress_bar_config(disable=True)

    def diffusers_alone() -> None:
        for _ in map_batches(partial(_plain_images, plain, shape), range(best), best):
            pass

    seconds = in_turns({"ours": imagine[best], "plain": diffusers_alone}, device, rounds=rounds)
    rate = best / seconds["ours"]
    operations = operations_of(imagine[1])
    return Figure(
        f"{name}, {shape.steps} steps",
        "images/s",
        "diffusers alone, to PIL images",
        WANTED,
        ours=rate,
        peer=best / seconds["plain"],
        limit=rate * operations / product_limit(device, dtype),
        peak=peak_of(imagine[best], device),
        details={
            "dtype": str(dtype),
            "batch": best,
            "images_per_s_by_batch": {batch: round(rate, 2) for batch, rate in rates.items()},
            "operations_an_image": operations,
        },
    )


def _channels_last(name: str, generator: Generator, batch: int, device: torch.device, rounds: int) -> Figure:
    """Whether convolutions are faster with channels last in memory: the same generator, changed between two calls."""
    pipeline = generator._pipeline

    def in_layout(layout: torch.memory_format) -> float:
        pipeline.unet.to(memory_format=layout)
        pipeline.vae.to(memory_format=layout)
        work = partial(generator.imagine, [PROMPT], batch, batch=batch)
        return batch / in_turns({"images": work}, device, rounds=rounds)["images"]

    return Figure(
        f"{name}, channels last",
        "images/s",
        "the same generator as it is",
        1.0,
        ours=in_layout(torch.channels_last),
        peer=in_layout(torch.contiguous_format),
        details={"batch": batch},
    )


def _plain_images(pipeline: Any, shape: Diffusion, seeds: range) -> list[Any]:
    return pipeline(
        prompt=[PROMPT] * len(seeds),
        num_inference_steps=shape.steps,
        guidance_scale=shape.guidance,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
    ).images
