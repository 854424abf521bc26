"""Rows per second of the Ray Data embedding job against a plain loop, in one run.

    .venv/bin/python -m benchmarks.embed [--images 384] [--source FOLDER_OR_PARQUET]

The peer is one process that decodes, preprocesses and embeds batch after batch with the same code, the same two
encoders and as many threads as the job has in all. Models are ViT-B/32 (open_clip) and DINOv2 ViT-S/14 at 224 pixels
(timm) with random weights: their speed is that of trained ones. Start-up is left out of the job's rate by timing N and
2N images and taking the difference; it is reported beside.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cluster.models import load_vision, load_vlm
from cluster.profile import Generator, IndexSettings, Models, Profile, Queries, Stage
from cluster.session import session
from demo.grammar import categories
from demo.world import render
from pipelines.gallery import Decoder, build_gallery

CORES = os.cpu_count() or 1
BATCH = 32


def profile() -> Profile:
    """Return a profile of real model sizes, one actor a core."""
    return Profile(
        name="benchmark",
        models=Models(
            vlm="random:ViT-B-32",
            vision="random:vit_small_patch14_dinov2?img_size=224",
            generator=Generator(uri="unused", steps=1, guidance=0, batch=1),
        ),
        embed=Stage(cpus=1, max_actors=CORES, batch=BATCH),
        imagine=Stage(max_actors=1, batch=1),
        queries=Queries(images=1, templates="none"),
        index=IndexSettings(rows_per_shard=1_000_000),
    )


def write_images(folder: Path, count: int, source: str | None) -> list[dict]:
    """Return ``count`` rows of JPEG bytes: rendered at 256 pixels, or the first of a Parquet source."""
    from io import BytesIO

    if source:
        table = pq.read_table(source, columns=["image", "path"])
        order = np.random.default_rng(0).permutation(table.num_rows)[:count]
        return table.take(pa.array(order)).to_pylist()
    rows = []
    for i in range(count):
        buffer = BytesIO()
        render(categories()[i % 720], i, size=256).save(buffer, "JPEG", quality=90)
        rows.append({"image": buffer.getvalue(), "path": f"{i:06d}.jpg"})
    return rows


def plain_seconds(rows: list[dict], settings: Profile) -> dict[str, float]:
    """Run the plain loop; return seconds spent in each of its parts."""
    torch.set_num_threads(CORES)
    vlm, vision = load_vlm(settings), load_vision(settings)
    decoder = Decoder(None, vlm.preprocess, vision.preprocess)
    parts = {"decode": 0.0, "vlm": 0.0, "vision": 0.0}

    def timed(name: str, function: Callable, *arguments: object) -> object:
        start = time.perf_counter()
        result = function(*arguments)
        parts[name] += time.perf_counter() - start
        return result

    for start in range(0, len(rows), BATCH):
        chunk = rows[start : start + BATCH]
        batch = {
            "path": np.array([row["path"] for row in chunk], dtype=object),
            "label": np.array([""] * len(chunk), dtype=object),
            "data": np.array([row["image"] for row in chunk], dtype=object),
        }
        decoded = timed("decode", decoder, batch)
        pixels = decoded["vlm_pixels"]  # type: ignore[index]
        timed("vlm", vlm.encode_images, pixels)
        timed("vision", vision.encode_images, decoded.get("vision_pixels", pixels))  # type: ignore[attr-defined]
    return parts


def ray_seconds(rows: list[dict], settings: Profile, folder: Path) -> float:
    """Run the whole gallery job, written result included; return its seconds."""
    file = folder / f"{len(rows)}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    start = time.perf_counter()
    gallery = build_gallery(str(file), str(folder / f"gallery-{len(rows)}"), settings)
    assert gallery.manifest.rows == len(rows)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, default=384, help="N, a multiple of 64 × cores; the runs have N and 2N images"
    )
    parser.add_argument("--source", help="Parquet with image and path, instead of rendered images")
    arguments = parser.parse_args()
    settings, count = profile(), arguments.images
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = write_images(folder, 2 * count, arguments.source)
        plain_seconds(rows[:BATCH], settings)  # warm-up
        parts = plain_seconds(rows, settings)
        with session():
            short, long = ray_seconds(rows[:count], settings, folder), ray_seconds(rows, settings, folder)
    plain_rate, ray_rate = len(rows) / sum(parts.values()), count / (long - short)
    result = {
        "cores": CORES,
        "images": len(rows),
        "plain_rows_per_s": round(plain_rate, 2),
        "ray_rows_per_s": round(ray_rate, 2),
        "ratio": round(ray_rate / plain_rate, 3),
        "ray_start_up_s": round(long - 2 * (long - short), 1),
        "plain_share": {name: round(seconds / sum(parts.values()), 3) for name, seconds in parts.items()},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
