"""Fingerprints: which weights and settings made a vector, as one short string that artifacts can compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch


def of_tensors(tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> str:
    """Return ``sha256:…`` of named tensors (names, dtypes, shapes, values; any device) and JSON-ready settings."""
    digest = _begin(settings)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def of_files(folder: Path, files: Iterable[Path], settings: Mapping[str, Any]) -> str:
    """Return ``sha256:…`` of files (paths relative to ``folder``, contents) and JSON-ready settings."""
    digest = _begin(settings)
    for file in sorted(files):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"\n{file.relative_to(folder).as_posix()} {content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _begin(settings: Mapping[str, Any]) -> hashlib._Hash:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
