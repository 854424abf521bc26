"""Whether this machine can do the work of a profile, and what to do where it cannot."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.profile import Profile, load_profile
from retrieval.errors import UserError

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Check:
    """One thing that was checked: what was found and, if it is not right, how to put it right."""

    what: str
    ok: bool
    found: str
    remedy: str = ""
    """What to do about it; empty where nothing is wrong."""


def examine(profile: str | Path | Profile) -> Iterator[Check]:
    """Yield the checks one by one, as they are done."""
    yield Check("Python", True, f"{platform.python_version()} on {platform.platform()}")
    for package in ("ray", "torch", "torchvision", "diffusers", "transformers", "open_clip_torch", "timm", "pyarrow"):
        yield _installed(package, "run make install")
    yield _faiss()
    yield _torch()
    free = shutil.disk_usage(".").free / 2**30
    yield Check(
        "disk",
        free > 2,
        f"{free:.0f} GiB free here",
        "free some space: the demo writes about 100 MB, installing needs more",
    )
    yield Check("shared memory", *_shared_memory())
    yield from _models(profile)


def _installed(package: str, remedy: str) -> Check:
    try:
        return Check(package, True, importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return Check(package, False, "not installed", remedy)


def _faiss() -> Check:
    try:
        import faiss
    except ImportError as error:
        return Check("faiss", False, str(error), "in the checkout: pip install -e .")
    kind = "with GPU" if hasattr(faiss, "StandardGpuResources") else "CPU"
    return Check("faiss", True, f"{faiss.__version__}, {kind}, {faiss.get_compile_options().strip()}")


def _torch() -> Check:
    import torch

    from cluster.cores import usable_cores
    from retrieval.models.devices import has_fast_bfloat16, pick_device

    device = pick_device("auto")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{usable_cores()} cores"
    fast = "bfloat16 weights" if has_fast_bfloat16(device) else "float32 weights (no fast bfloat16)"
    return Check("device", True, f"{device}: {name}, {fast}")


def _shared_memory() -> tuple[bool, str, str]:
    if not SHARED_MEMORY.is_dir():
        return True, f"no {SHARED_MEMORY} on this system", ""
    total = shutil.disk_usage(SHARED_MEMORY).total / 2**30
    return (
        total >= 1,
        f"{total:.1f} GiB in {SHARED_MEMORY}",
        "start the container with --shm-size=4g or more; Ray's object store lives there",
    )


def _models(given: str | Path | Profile) -> Iterator[Check]:
    from cluster.loading import load_generator, load_vision, load_vlm

    try:
        profile = load_profile(given)
    except UserError as error:
        yield Check("profile", False, str(error), "correct the profile, or give another")
        return
    yield Check("profile", True, profile.name)
    loaders: dict[str, Callable[[Profile], Any]] = {"vlm": load_vlm, "vision": load_vision, "generator": load_generator}
    for role, load in loaders.items():
        try:
            model = load(profile)
        except UserError as error:
            remedy = f"correct models.{role} in the profile, or see that the model can be reached"
            yield Check(role, False, str(error), remedy)
        else:
            yield Check(role, True, f"{model.uri} ({model.fingerprint[:19]}…)")
