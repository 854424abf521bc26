"""Self-attention of PyTorch's ``nn.MultiheadAttention`` that is as fast in batches as alone, with the same weights.

Shape legend: B batch, T tokens, H heads, C channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class SelfAttention(nn.MultiheadAttention):
    """An ``nn.MultiheadAttention`` whose tokens stay in the order of the batch.

    PyTorch's own turns (B, T, HC) round to (T, B, HC) before it projects, by a view that is not contiguous unless B or
    T is 1. With bfloat16 on CPUs such a product becomes one of T batches, for each of which the weights are copied.
    """

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend as PyTorch's own does; what is not self-attention without weights is left to it."""
        # A mask of booleans means the opposite to the function below.
        plain = query is key is value and query.ndim == 3 and (attn_mask is None or attn_mask.is_floating_point())
        if need_weights or others or not plain:
            return super().forward(query, key, value, need_weights=need_weights, attn_mask=attn_mask, **others)
        B, T, _ = query.shape
        projected = functional.linear(query, self.in_proj_weight, self.in_proj_bias)
        q_BHTC, k_BHTC, v_BHTC = projected.view(B, T, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.view(B, self.num_heads, T, T)
        mixed_BHTC = functional.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, attn_mask=attn_mask)
        return self.out_proj(mixed_BHTC.transpose(1, 2).flatten(2)), None


def keep_order(model: nn.Module) -> None:
    """Make SelfAttention of every ``nn.MultiheadAttention`` of a model that may be. Names and weights stay.

    Args:
        model: in evaluation mode, for it drops nothing out.
    """
    for module in model.modules():
        if type(module) is nn.MultiheadAttention and _is_plain(module):
            module.__class__ = SelfAttention


def _is_plain(attention: nn.MultiheadAttention) -> bool:
    one_projection = attention.in_proj_weight is not None
    return bool(attention.batch_first and one_projection and attention.bias_k is None and not attention.add_zero_attn)
