"""Where a model runs, in which precision, and how a batch that does not fit is made smaller."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch.nn import functional

from retrieval.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LEAST_GAIN = 1.3
"""For which ``auto`` takes bfloat16. With the arithmetic it was 2.2, with that of float32 alone 0.1: chance decides
nothing."""


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of that name; ``auto`` takes the first there is of cuda, mps, cpu.

    Raises:
        UserError: the name is no device (code ``unknown``), or this machine has none of it (``missing``). The field is
            ``device``.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        message = f"device {name!r} is not known; use auto, cpu, cuda, cuda:1 or mps"
        raise UserError(message, code="unknown", field="device") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        message = f"device {name!r} was asked for, but this process sees {torch.cuda.device_count()} CUDA GPUs"
        raise UserError(message, code="missing", field="device")
    if device.type == "mps" and not torch.backends.mps.is_available():
        message = f"device {name!r} was asked for, but PyTorch finds no Metal GPU here"
        raise UserError(message, code="missing", field="device")
    return device


def device_name(device: torch.device) -> str:
    """Return the name of a device's hardware, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or device.type


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the precision of that name, a key of DTYPES; ``auto`` is bfloat16 where the device computes it fast.

    Raises:
        UserError: the name is not one of DTYPES or ``auto`` (code ``unknown``, field ``dtype``).
    """
    if name == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is not known; use auto, {', '.join(DTYPES)}", code="unknown", field="dtype")
    return DTYPES[name]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively: without that it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        if capabilities.get("architecture") == "x86_64":
            return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        return bfloat16_gain() > LEAST_GAIN  # on ARM the arithmetic alone does not say whether PyTorch uses it
    return False


@cache
def bfloat16_gain() -> float:
    """How many times as fast as in float32 this CPU multiplies matrices of bfloat16, measured once for each process.

    It takes some 50 ms: the least of several rounds of each, in turn, so that what else the machine does hits both.
    """
    least = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    for _ in range(8):
        for dtype in least:
            rows, weights = torch.ones(64, 512, dtype=dtype), torch.ones(2048, 512, dtype=dtype)
            started = time.perf_counter()
            functional.linear(rows, weights)
            least[dtype] = min(least[dtype], time.perf_counter() - started)
    return least[torch.float32] / least[torch.bfloat16]


def map_batches(function: Callable[[Sequence[Item]], Result], items: Sequence[Item], batch: int) -> Iterator[Result]:
    """Yield the function of consecutive slices of items, in order.

    When the GPU runs out of memory the slice is halved and retried, and later slices stay that small.

    Args:
        function: idempotent, since it may be called again with the same items.
        items: any sequence that can be sliced.
        batch: the longest slice.

    Raises:
        torch.OutOfMemoryError: even one item does not fit.
    """
    start = 0
    while start < len(items):
        try:
            result = function(items[start : start + batch])
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        else:
            yield result
            start += batch
            continue
        # Out of the except block: there the traceback still held the tensors that did not fit.
        batch = max(1, min(batch, len(items) - start) // 2)
        torch.cuda.empty_cache()
