"""``mindseye import-aggregator``: the checkpoint that CLETIR's authors released, as an Aggregator artifact."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from retrieval.aggregator import Aggregator
from retrieval.artifacts import Artifact, TrainedAggregator
from retrieval.errors import UserError
from retrieval.folder import Folder
from training.target import locked, publish


def import_reference(
    file: str | Path, target: str, like: Artifact[Any], *, take_over: bool = False
) -> TrainedAggregator:
    """Publish a released checkpoint (``.pth``: a state dict, or one under ``state_dict`` or ``model``) at ``target``.

    Args:
        like: a gallery or query set of the models that the checkpoint was trained with, which it does not name itself.
        take_over: break the lock of another job. Be sure that it is dead.

    Raises:
        UserError: ``target`` holds an aggregator (``target-exists``) or another job's lock (``locked``); this job has
            lost its own, and publishes nothing (``lock-lost``); the file is missing, holds anything but tensors, or
            does not fit the vision encoder of ``like``.
    """
    folder = Folder(target)
    TrainedAggregator.check_new(folder)
    if not Path(file).is_file():
        raise UserError(f"there is no file {file}; give the checkpoint's path", code="no-such-file", field="file")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{file} is not a checkpoint of tensors alone, and nothing else is loaded: {error}",
            code="not-a-checkpoint",
            field="file",
        ) from error
    if isinstance(content, dict):
        content = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(
            f"{file} holds no state dict of tensors; give a checkpoint as the authors released it",
            code="not-a-checkpoint",
            field="file",
        )
    try:
        network = Aggregator.from_reference(content)
    except UserError as error:
        raise UserError(f"{file}: {error}", code="not-a-checkpoint", field="file") from error
    record = like.manifest.models.get("vision")
    if record is None or record.dim != network.dim:
        raise UserError(
            f"{file} takes vision vectors of {network.dim} dimensions, those of {like.uri} have"
            f" {record.dim if record else 'no record'}; give an artifact of the models it was trained with",
            code="dimensions-differ",
            field="like",
        )
    imported = {"imported": {"file": Path(file).name, "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest()}}
    with locked(folder, "mindseye import-aggregator", take_over=take_over):
        return publish(folder, TrainedAggregator, network, like.manifest.models, imported)
