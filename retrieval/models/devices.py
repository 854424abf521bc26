"""Where a model runs, in which precision, and how a batch that does not fit is made smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` takes the first there is of cuda, mps, cpu.

    Raises:
        ValueError: the name is no device, or this machine has none of it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is not known; use auto, cpu, cuda, cuda:1 or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count()
        raise ValueError(f"device {name!r} was asked for, but this process sees {seen} CUDA GPUs")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {name!r} was asked for, but PyTorch finds no Metal GPU here")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of that name (a key of DTYPES); `auto` is bfloat16 where `device` computes it fast.

    Raises:
        ValueError: the name is not one of DTYPES or `auto`.
    """
    if name == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is not known; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively: without that it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def map_batches(function: Callable[[Sequence[Item]], Result], items: Sequence[Item], batch: int) -> Iterator[Result]:
    """`function` of consecutive slices of `items`, at most `batch` long, in order.

    When the GPU runs out of memory the slice is halved and tried again, and later slices stay that small.
    `function` must not change anything that a second call with the same slice would notice.

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
