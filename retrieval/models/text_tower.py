"""The text tower of an open_clip model, without the work on padding that cannot change its vectors.

Shape legend: B batch, T tokens, W width of the tower, D1 dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import nn

TEXTS_AT_ONCE = 32
"""Texts of like length that pass through the tower together: more of them are hardly cheaper, and differ more."""


def text_tower_of(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the text tower of a model: from token ids (B, T) to vectors (B, D1).

    Where each token sees only those before it, and the vector is that of the end of the text, what stands behind is
    left out. Else it is the library's own.
    """
    encode: Callable[[torch.Tensor], torch.Tensor] = model.encode_text
    tower = model.text if type(model) is open_clip.CustomTextCLIP else model
    return CausalTower(tower) if _ignores_what_follows(tower) else encode


class CausalTower:
    """A causal text tower that is pooled at the end of the text.

    Texts are sorted by length, so that those that pass through together need little padding.
    """

    def __init__(self, tower: Any) -> None:
        self._tower = tower

    def __call__(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        ends_B = _ends(self._tower, tokens_BT)
        order_B = ends_B.argsort(stable=True)
        vectors = [self._embed(tokens_BT[some], ends_B[some]) for some in order_B.split(TEXTS_AT_ONCE)]
        return torch.cat(vectors)[order_B.argsort()]

    def _embed(self, tokens_BT: torch.Tensor, ends_B: torch.Tensor) -> torch.Tensor:
        """The vectors of texts that are pooled at `ends_B`, from the tokens up to the last of these."""
        tower, T = self._tower, int(ends_B.max()) + 1
        x_BTW = tower.token_embedding(tokens_BT[:, :T])
        x_BTW = tower.transformer(x_BTW + tower.positional_embedding[:T], attn_mask=tower.attn_mask[:T, :T])
        pooled_BW = tower.ln_final(x_BTW[torch.arange(len(x_BTW), device=x_BTW.device), ends_B])
        project = tower.text_projection
        if project is None:
            return pooled_BW
        return project(pooled_BW) if isinstance(project, nn.Linear) else pooled_BW @ project


def _ignores_what_follows(tower: Any) -> bool:
    """Whether a vector cannot depend on the tokens behind the one that it is pooled at."""
    if type(tower) not in (open_clip.CLIP, TextTransformer) or tower.attn_mask is None:
        return False
    if type(tower) is TextTransformer and (tower.cls_emb is not None or tower.output_tokens):
        return False
    causal = torch.full_like(tower.attn_mask, float("-inf")).triu(1)
    return torch.equal(tower.attn_mask, causal) and _pooling(tower)[0] in ("argmax", "eos")


def _pooling(tower: Any) -> tuple[str, int]:
    """How the library pools, and the token that ends a text."""
    if type(tower) is open_clip.CLIP:
        return tower.text_pool_type, tower.text_eos_id
    return tower.pool_type, tower.eos_id


def _ends(tower: Any, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Where each text is pooled."""
    kind, end = _pooling(tower)
    return (tokens_BT if kind == "argmax" else (tokens_BT == end).int()).argmax(dim=1)
