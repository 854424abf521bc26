"""How many dimensions a model's vectors have, from its URI, without its weights."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import timm
import torch


def vlm_dim(uri: str) -> int | None:
    """Return D1 of a VLM (``vlm.VLM_URIS``): of its folder, or of the architecture in its name; None if neither says.

    A repository of a hub is taken to be of the architecture that its name is.
    """
    scheme, _, rest = uri.partition(":")
    if scheme == "local-dir":
        file = Path(rest) / "open_clip_config.json"
        dim = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]["embed_dim"] if file.is_file() else None
    else:
        name = rest.rpartition("/")[2] if scheme == "hf-hub" else rest or uri.partition("/")[0]
        dim = (open_clip.get_model_config(name) or {}).get("embed_dim")
    return None if dim is None else int(dim)


def vision_dim(uri: str) -> int | None:
    """Return D2 of a vision encoder (``vision.VISION_URIS``), as ``vlm_dim``."""
    scheme, _, rest = uri.partition("?")[0].partition(":")
    if scheme == "local-dir":
        name = f"{scheme}:{rest}" if (Path(rest) / "config.json").is_file() else None
    else:
        name = (rest or scheme).rpartition("/")[2].partition(".")[0]
        name = name if timm.is_model(name) else None
    if name is None:
        return None
    with torch.device("meta"):
        return int(timm.create_model(name, pretrained=False, num_classes=0).head_hidden_size)
