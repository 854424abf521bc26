"""Clocks, limits and memory of one device, and what machine this is."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from retrieval.models.devices import device_name

LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "open_clip_torch", "timm", "numpy")
FAISS_BUILDS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-cuda")


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, up to the end of what the device does for it."""
    wait_for(device)
    started = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - started


def in_turns(works: Mapping[str, Callable[[], object]], device: torch.device, *, rounds: int) -> dict[str, float]:
    """Return the median seconds of each, run in turns after one round that warms up.

    In turns, since a device that slows down as it warms is then as slow for one as for the other.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            taken = seconds_of(work, device)
            if turn:
                seconds[name].append(taken)
    return {name: median(values) for name, values in seconds.items()}


def peak_of(work: Callable[[], object], device: torch.device) -> int | None:
    """Return the most bytes of GPU memory that PyTorch held while the work ran, weights included; None on a CPU."""
    if device.type != "cuda":
        work()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    work()
    wait_for(device)
    return torch.cuda.max_memory_allocated(device)


def operations_of(work: Callable[[], object]) -> int:
    """Return the floating point operations of matrix products and convolutions in one call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def product_limit(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of a large product of matrices: what no model gets beyond."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    taken = in_turns({"product": lambda: left @ right}, device, rounds=5)["product"]
    return 2 * side**3 / taken


def copy_limit(device: torch.device) -> float | None:
    """Return the bytes a second that reach a GPU from pinned memory; None on a CPU."""
    if device.type != "cuda":
        return None
    block = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    taken = in_turns({"copy": lambda: block.to(device, non_blocking=True)}, device, rounds=5)["copy"]
    return len(block) / taken


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the figures were measured on and with."""
    found: dict[str, Any] = {
        "device": device_name(device),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    if device.type == "cuda":
        found["memory"] = torch.cuda.get_device_properties(device).total_memory
    for name in (*LIBRARIES, *FAISS_BUILDS):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
