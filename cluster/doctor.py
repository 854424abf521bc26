"""``mindseye doctor``: whether this machine can do the work of a profile, and what to do where it can not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found and, if it is not right, how to mend it."""

    what: str
    ok: bool
    found: str
    remedy: str = ""


def examine(profile_name: str) -> Iterator[Check]:
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
    yield from _models(profile_name)


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

    from retrieval.models.devices import has_fast_bfloat16, pick_device

    device = pick_device("auto")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores"
    fast = "bfloat16 weights" if has_fast_bfloat16(device) else "float32 weights (no fast bfloat16)"
    return Check("device", True, f"{device}: {name}, {fast}")


def _shared_memory() -> tuple[bool, str, str]:
    if not os.path.isdir("/dev/shm"):  # noqa: PTH112
        return True, "no /dev/shm on this system", ""
    total = shutil.disk_usage("/dev/shm").total / 2**30
    return (
        total >= 1,
        f"{total:.1f} GiB in /dev/shm",
        "start the container with --shm-size=4g or more; Ray's object store lives there",
    )


def _models(profile_name: str) -> Iterator[Check]:
    from cluster.loading import load_generator, load_vision, load_vlm
    from cluster.profile import Profile, load_profile

    try:
        profile = load_profile(profile_name)
    except ValueError as error:
        yield Check("profile", False, str(error), "mend the profile, or give another with --profile")
        return
    yield Check("profile", True, profile.name)
    loaders: dict[str, Callable[[Profile], Any]] = {"vlm": load_vlm, "vision": load_vision, "generator": load_generator}
    for role, load in loaders.items():
        try:
            model = load(profile)
        except ValueError as error:
            yield Check(
                role, False, str(error), f"mend models.{role} in the profile, or see that the model can be reached"
            )
        else:
            yield Check(role, True, f"{model.uri} ({model.fingerprint[:19]}…)")
