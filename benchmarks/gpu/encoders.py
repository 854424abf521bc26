"""Rows a second of both image encoders, as embedding runs them, against the same models fed from device memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._dynamo.exc import TorchDynamoException

from benchmarks.gpu.figures import Figure
from benchmarks.gpu.measure import in_turns, operations_of, peak_of, product_limit, seconds_of
from benchmarks.gpu.models import write_vision, write_vlm
from benchmarks.gpu.sizes import Size
from retrieval.models.image_encoder import GPU_ROWS, ImageEncoder
from retrieval.models.transfer import to_device
from retrieval.models.vision import VisionEncoder
from retrieval.models.vlm import VLM

WANTED = 0.9
KINDS = ("VLM", "vision encoder")
BLOCKS = 4
"""Blocks of rows that one round of a comparison embeds."""


@dataclass(frozen=True)
class Pair:
    """The encoders of one profile, a VLM and a vision encoder.

    Attributes:
        name: of both.
        loaders: what loads each of them once more, given ``device`` and ``dtype``.
        encoders: on the device.
        rows: of a block.
        limit: operations a second of the device, in their dtype.
    """

    name: str
    loaders: list[Callable[..., ImageEncoder]]
    encoders: list[ImageEncoder]
    rows: int
    limit: float


def measure(size: Size, folder: Path, device: torch.device) -> Iterator[Figure]:
    """Measure each pair of encoders of the size."""
    for pair in _pairs(size, folder / "encoders", device):
        yield _against_resident(pair, size.rounds)


def measure_compiled(size: Size, folder: Path, device: torch.device) -> Iterator[Figure]:
    """Measure each of their towers compiled; to compile one takes about as long as to measure a pair."""
    for pair in _pairs(size, folder / "compiled", device):
        for encoder, kind in zip(pair.encoders, KINDS, strict=True):
            yield _compiled(f"{pair.name}: {kind}, compiled", encoder, pair.rows, size.rounds, pair.limit)


def _pairs(size: Size, folder: Path, device: torch.device) -> Iterator[Pair]:
    for name, (configuration, vision, rows) in size.encoders.items():
        home = folder / name.replace("/", "-")
        loaders: list[Callable[..., ImageEncoder]] = [
            partial(VLM.load, write_vlm(home / "vlm", configuration, device)),
            partial(VisionEncoder.load, write_vision(home / "vision", vision, device)),
        ]
        encoders = [load(device=str(device)) for load in loaders]
        yield Pair(name, loaders, encoders, rows, product_limit(device, encoders[0].dtype))


def _against_resident(pair: Pair, rounds: int) -> Figure:
    encoders, rows = pair.encoders, pair.rows
    device = encoders[0].device
    blocks = [_pixels(encoder, rows) for encoder in encoders]
    batches = sorted({rows, min(rows, GPU_ROWS)})
    resident = {batch: [_resident(encoder, batch) for encoder in encoders] for batch in batches}

    def ours() -> None:
        for _ in range(BLOCKS):
            for encoder, block in zip(encoders, blocks, strict=True):
                encoder.encode_images(block)

    def fed_from_memory(batch: int) -> None:
        for encoder, images in zip(encoders, resident[batch], strict=True):
            for _ in range(BLOCKS * rows // batch):
                _tower(encoder, images)

    works: dict[str, Callable[[], None]] = {str(batch): partial(fed_from_memory, batch) for batch in batches}
    seconds = in_turns({"ours": ours} | works, device, rounds=rounds)
    best = min(works, key=lambda batch: seconds[batch])
    rate = BLOCKS * rows / seconds["ours"]
    operations = sum(operations_of(partial(_tower, encoder, _resident(encoder, 1))) for encoder in encoders)
    return Figure(
        pair.name,
        "rows/s",
        "the same models fed from device memory",
        WANTED,
        ours=rate,
        peer=BLOCKS * rows / seconds[best],
        limit=rate * operations / pair.limit,
        peak=peak_of(ours, device),
        details={
            "dtype": str(encoders[0].dtype),
            "block": rows,
            "peers_batch": int(best),
            "operations_a_row": operations,
            "rows_per_s_from_memory": {batch: round(BLOCKS * rows / seconds[batch]) for batch in works},
            "ms_of_a_batch": {kind: _parts(encoder) for kind, encoder in zip(KINDS, encoders, strict=True)},
            "least_cosine_to_a_cpu": {
                kind: _agreement(encoder, load)
                for kind, encoder, load in zip(KINDS, encoders, pair.loaders, strict=True)
            },
        },
    )


def _parts(encoder: ImageEncoder) -> dict[str, float]:
    """Milliseconds of each thing that is done for GPU_ROWS rows, one after the other, and of all of them."""
    pixels, device = _pixels(encoder, GPU_ROWS), encoder.device
    images = _resident(encoder, GPU_ROWS)
    works: dict[str, Callable[[], object]] = {
        "to the device": partial(to_device, pixels, device),
        "to the device, normalised": partial(encoder._normalise, pixels),
        "tower": partial(_tower, encoder, images),
        "all": partial(encoder.encode_images, pixels),
    }
    return {name: round(seconds * 1000, 2) for name, seconds in in_turns(works, device, rounds=5).items()}


def _agreement(encoder: ImageEncoder, load: Callable[..., ImageEncoder]) -> float:
    """The least cosine of a few vectors with those of a CPU in float32."""
    pixels = _pixels(encoder, 4)
    expected = load(device="cpu", dtype="float32").encode_images(pixels)
    return round(float((encoder.encode_images(pixels) * expected).sum(axis=1).min()), 5)


def _compiled(name: str, encoder: ImageEncoder, rows: int, rounds: int, limit: float) -> Figure:
    """Whether `torch.compile` would pay: a tower compiled for one batch against the same tower as it is."""
    common: dict[str, Any] = {"what": name, "unit": "rows/s", "peer_name": "the same tower as it is", "wanted": 1.0}
    if encoder.device.type != "cuda":
        return Figure(**common, reason=f"compiling is measured on GPUs, and this is a {encoder.device.type}")
    images = _resident(encoder, min(rows, GPU_ROWS))
    tower = torch.compile(encoder._image_tower)
    try:
        spent = seconds_of(partial(_run, tower, images), encoder.device)
    except TorchDynamoException as error:  # no C compiler, as likely as not
        return Figure(**common, reason=f"torch.compile failed: {str(error).splitlines()[0]}")
    works = {"compiled": partial(_run, tower, images), "plain": partial(_tower, encoder, images)}
    seconds = in_turns(works, encoder.device, rounds=4 * rounds)
    gained = (seconds["plain"] - seconds["compiled"]) / len(images)
    return Figure(
        **common,
        ours=len(images) / seconds["compiled"],
        peer=len(images) / seconds["plain"],
        limit=len(images) / seconds["compiled"] * operations_of(partial(_tower, encoder, images[:1])) / limit,
        details={
            "compiling_s": round(spent, 1),
            "pays_after_rows": round(spent / gained) if gained > 0 else None,
        },
    )


def _pixels(encoder: ImageEncoder, rows: int) -> np.ndarray:
    shape = encoder.preprocess.blank().shape
    return np.random.default_rng(0).integers(0, 256, (rows, *shape), dtype=np.uint8)


def _resident(encoder: ImageEncoder, rows: int) -> torch.Tensor:
    """Random images on the device, of the dtype and the layout that the tower is given by its encoder."""
    height, width, channels = encoder.preprocess.blank().shape
    images = torch.randn(rows, channels, height, width, device=encoder.device, dtype=encoder.dtype)
    return images.contiguous(memory_format=torch.channels_last)


def _tower(encoder: ImageEncoder, images: torch.Tensor) -> torch.Tensor:
    return _run(encoder._image_tower, images)


@torch.inference_mode()
def _run(tower: Any, images: torch.Tensor) -> torch.Tensor:
    return tower(images)
