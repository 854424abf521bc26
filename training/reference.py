"""``mindseye import-aggregator``: the checkpoint that CLETIR's authors released, as an Aggregator artifact."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from retrieval.aggregator import Aggregator
from retrieval.artifacts import MANIFEST, Artifact, TrainedAggregator
from retrieval.folder import Folder


def import_reference(file: str | Path, target: str, like: Artifact[Any]) -> TrainedAggregator:
    """Publish a released checkpoint (``.pth``: a state dict, or one under ``state_dict`` or ``model``) at ``target``.

    Args:
        like: a gallery or query set of the models that the checkpoint was trained with, which it does not name itself.

    Raises:
        ValueError: the file is missing, holds anything but tensors, or does not fit the vision encoder of ``like``.
    """
    if Folder(target).exists(MANIFEST):
        raise ValueError(f"{target} already holds an aggregator; give another target, or delete it first")
    if not Path(file).is_file():
        raise ValueError(f"there is no file {file}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{file} is not a checkpoint of tensors alone, and nothing else is loaded: {error}") from error
    if isinstance(content, dict):
        content = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{file} holds no state dict of tensors")
    try:
        network = Aggregator.from_reference(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    record = like.manifest.models.get("vision")
    if record is None or record.dim != network.dim:
        raise ValueError(
            f"{file} takes vision vectors of {network.dim} dimensions, those of {like.uri} have"
            f" {record.dim if record else 'no record'}; give an artifact of the models it was trained with"
        )
    imported = {"imported": {"file": Path(file).name, "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest()}}
    return TrainedAggregator.save(target, network, like.manifest.models, imported)
