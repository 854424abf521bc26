"""Devices and precisions: which are known, and what auto takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from errors import refused

from retrieval.models import devices
from retrieval.models.vision import VisionEncoder
from retrieval.models.vlm import VLM


@pytest.mark.parametrize(
    ("given", "code", "field"),
    [
        ({"device": "gpu"}, "unknown", "device"),
        ({"device": "cuda:99"}, "missing", "device"),
        ({"dtype": "int8"}, "unknown", "dtype"),
    ],
)
@pytest.mark.parametrize("kind", [VLM, VisionEncoder])
def test_wrong_devices_and_dtypes_are_named(given: dict[str, str], code: str, field: str, kind: Any) -> None:
    with refused(code, field) as error:
        kind.load("random:not looked for", **given)
    assert repr(given[field]) in str(error.value)


X86 = {"architecture": "x86_64", "avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}
ARM = {"architecture": "arm64", "bf16": True}


@pytest.mark.parametrize(
    ("capabilities", "gain", "expected"),
    [
        (X86, 9.0, torch.float32),
        (X86 | {"avx512_bf16": True}, 0.1, torch.bfloat16),
        (X86 | {"amx_bf16": True}, 0.1, torch.bfloat16),
        (ARM, 2.0, torch.bfloat16),
        (ARM, 1.1, torch.float32),
        ({}, 0.1, torch.float32),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_multiplies_it(
    capabilities: dict[str, bool | str],
    gain: float,
    expected: torch.dtype,
    models_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(devices, "bfloat16_gain", lambda: gain)
    assert devices.pick_dtype("auto", torch.device("cpu")) == expected
    encoder = VisionEncoder.load(f"local-dir:{models_folder / 'vision'}", device="cpu")
    assert encoder.dtype == expected


def test_measuring_says_what_the_flags_say() -> None:
    flags = torch.cpu.get_capabilities()
    if flags.get("architecture") != "x86_64":
        pytest.skip("there are no flags that decide")
    native = bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))
    assert (devices.bfloat16_gain() > devices.LEAST_GAIN) == native
    assert devices.bfloat16_gain() == devices.bfloat16_gain()


def test_auto_is_bfloat16_on_gpus_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert devices.pick_dtype("auto", gpu) == (torch.bfloat16 if native else torch.float32)
    assert devices.pick_dtype("auto", torch.device("mps")) == torch.float32
