"""Checkpoints of a run: one file with a checksum, so that a half-written one is noticed and the one before it used."""

from __future__ import annotations

import hashlib
import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from retrieval.folder import Folder

FILE = "state.pt"
_DIGEST = 32
log = logging.getLogger(__name__)


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def write(folder: Path, state: dict[str, Any]) -> None:
    """Write a state (tensors, numbers, strings, lists, dicts) into a local folder."""
    buffer = BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    (folder / FILE).write_bytes(hashlib.sha256(data).digest() + data)


def newest(run: Folder) -> dict[str, Any] | None:
    """The state of the newest whole checkpoint of a run, on the CPU; damaged ones are passed over with a warning."""
    for name in reversed(run.folders()):
        if not name.startswith("step-"):
            continue
        data = run.read_bytes(f"{name}/{FILE}") if run.exists(f"{name}/{FILE}") else b""
        if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]:
            return torch.load(BytesIO(data[_DIGEST:]), map_location="cpu", weights_only=True)
        log.warning("the checkpoint %s is half-written; the one before it is used", (run / name).uri)
    return None
