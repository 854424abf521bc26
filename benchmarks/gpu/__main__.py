"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from benchmarks import gpu
from benchmarks.gpu import encoders, generator, search, training
from benchmarks.gpu.figures import Figure, table
from benchmarks.gpu.measure import copy_limit, machine, product_limit
from benchmarks.gpu.sizes import Size, size_of
from retrieval.models.devices import pick_device

PARTS = ("encoders", "generator", "training", "search", "compiled")


def figures_of(part: str, size: Size, folder: Path, device: torch.device) -> Iterator[Figure]:
    """Measure one of PARTS."""
    match part:
        case "encoders":
            yield from encoders.measure(size, folder, device)
        case "generator":
            yield from generator.measure(size, folder, device)
        case "training":
            yield from training.measure(size, device)
        case "search":
            yield from search.measure(size)
        case "compiled":
            yield from encoders.measure_compiled(size, folder, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=gpu.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("true", "tiny"), default="true", help="of the models")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--json", type=Path, help="file for the figures, written after each figure")
    options = parser.parse_args()
    device = pick_device()
    if options.size == "true" and device.type != "cuda":
        raise SystemExit("there is no CUDA device, on which alone models of true size are measured; try --size tiny")
    report = {
        "machine": machine(device),
        "size": options.size,
        "limits": {
            "float32_products_per_s": product_limit(device, torch.float32),
            "bfloat16_products_per_s": product_limit(device, torch.bfloat16),
            "bytes_from_pinned_memory_per_s": copy_limit(device),
        },
    }
    print(json.dumps(report, indent=2), flush=True)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="mindseye-gpu-") as folder:
        for part in options.parts:
            for figure in figures_of(part, size_of(options.size), Path(folder), device):
                figures.append(figure)
                print(json.dumps(figure.as_json()), flush=True)
                if options.json:
                    report["figures"] = [one.as_json() for one in figures]
                    options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(table(figures))


if __name__ == "__main__":
    main()
