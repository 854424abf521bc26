"""Checkpoints of a run: one file with a checksum, so that a half-written one is noticed and the one before it used."""

from __future__ import annotations

import hashlib
import logging
from io import BytesIO
from typing import Any

import torch

from retrieval.folder import Folder

FILE = "state.pt"
KEPT = 2
"""Checkpoints of a run that stay: if the newest is damaged, the one before it is used."""
_DIGEST = 32
log = logging.getLogger(__name__)


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def write(folder: Folder, state: dict[str, Any]) -> None:
    """Write a state (tensors, numbers, strings, lists, dicts) into the folder of a checkpoint."""
    buffer = BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    folder.write_bytes(FILE, hashlib.sha256(data).digest() + data)


def newest(run: Folder) -> dict[str, Any] | None:
    """Return the state of the newest whole checkpoint of a run, on the CPU; damaged ones are skipped with a warning."""
    for name in reversed(_names(run)):
        data = run.read_bytes(f"{name}/{FILE}") if run.exists(f"{name}/{FILE}") else b""
        if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]:
            return torch.load(BytesIO(data[_DIGEST:]), map_location="cpu", weights_only=True)
        log.warning("the checkpoint %s is half-written; the one before it is used", (run / name).uri)
    return None


def delete_old(run: Folder) -> None:
    """Delete all checkpoints of a run but the newest ones."""
    for name in _names(run)[:-KEPT]:
        run.delete(name)


def _names(run: Folder) -> list[str]:
    """Folders of checkpoints, the oldest first."""
    return [name for name in run.folders() if name.startswith("step-")]
