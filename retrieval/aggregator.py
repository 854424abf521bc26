"""The set aggregator: the embeddings of K imagined images to one query vector.

The network of CLETIR (Khan et al., BMVC 2025, arXiv 2509.00177) as its authors released it. A class row, the mean of
the K features, goes through L layers of multi-head attention over itself and the K rows. Each layer replaces the class
row alone, by its attention output; the image rows pass on unchanged. No feed-forward, no residual, no position: the
result does not depend on the order of the images. Since only the class row changes, it is the only query row of each
layer: O(K), not O(K²). Shapes: B sets, K images a set, D dimensions of the vision encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from retrieval.errors import UserError
from retrieval.tensors import read_tensors, tensor_bytes

_WEIGHT_STD = 0.02


class Aggregator(nn.Module):
    """The network, and λ, the weight of the visual part: the sigmoid of one learned scalar, `lamda`.

    Args:
        dim: D.
        heads: attention heads, a divisor of D.
        layers: L ≥ 1.
        dropout: of attention weights, in training.
        init: ``reference`` starts every projection as a truncated normal (std 0.02) with the key projection
            equal to the query projection, like the authors; ``identity`` starts all projections at the
            identity, near the mean of the features, which suits small training sets.

    Raises:
        UserError: dim, heads or layers are out of range (code ``out-of-range``), or init is unknown (``unknown``).
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        layers: int = 2,
        dropout: float = 0.1,
        *,
        init: Literal["reference", "identity"] = "reference",
    ) -> None:
        super().__init__()
        fits = {"dim": dim >= 1, "heads": heads >= 1 and dim % heads == 0, "layers": layers >= 1}
        if wrong := [name for name, fit in fits.items() if not fit]:
            raise UserError(
                "an aggregator needs dim ≥ 1, layers ≥ 1 and heads that divide dim, "
                f"got dim={dim}, heads={heads}, layers={layers}",
                code="out-of-range",
                field=wrong[0],
            )
        self.dim, self.heads, self.dropout = dim, heads, dropout
        attentions = [nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True) for _ in range(layers)]
        for attention in attentions:
            _start(attention, init)
        self.layers = nn.ModuleList(attentions)
        self.lamda = nn.Parameter(torch.zeros(()))

    def forward(self, features_BKD: Tensor, mask_BK: Tensor | None = None) -> Tensor:
        """Pool each set to one vector.

        Args:
            features_BKD: unit rows g_1 … g_K of the vision encoder; absent ones may hold anything.
            mask_BK: bool, true where an image is present; each set needs one. None if all are.

        Returns:
            v, unit vectors (B, D).

        Raises:
            UserError: wrong shapes (code ``wrong-shape``), or a set without an image (``empty``).
        """
        vector_BD, _ = self._attend(features_BKD, mask_BK, with_weights=False)
        return vector_BD

    def attention(self, features_BKD: Tensor, mask_BK: Tensor | None = None) -> Tensor:
        """Return weights (B, K) of the images in the last layer, mean over heads: for explanations.

        The share that the class row gives to itself is left out and the rest scaled, so that the weights of a
        set add up to 1 and an absent image has 0. Arguments and errors as ``forward``.
        """
        _, weights_BL = self._attend(features_BKD, mask_BK, with_weights=True)
        images_BK = weights_BL[:, 1:]
        return images_BK / images_BK.sum(dim=1, keepdim=True)

    @property
    def fusion_weight(self) -> float:
        """λ in (0, 1)."""
        return float(torch.sigmoid(self.lamda.detach()))

    def _attend(self, features_BKD: Tensor, mask_BK: Tensor | None, *, with_weights: bool) -> tuple[Tensor, Tensor]:
        if features_BKD.ndim != 3 or features_BKD.shape[2] != self.dim:
            raise UserError(
                f"this aggregator takes features (B, K, {self.dim}), got {tuple(features_BKD.shape)}: "
                "are they of the vision encoder it was trained with?",
                code="wrong-shape",
                field="features",
            )
        features_BKD, present_BK = _present(features_BKD, mask_BK)
        cls_B1D = _mean(features_BKD, present_BK)
        # MultiheadAttention's mask says what to leave out; the class row itself is always attended to.
        absent_BL = functional.pad(~present_BK, (1, 0), value=False)
        weights_B1L = None
        for layer in self.layers:
            rows_BLD = torch.cat([cls_B1D, features_BKD], dim=1)
            cls_B1D, weights_B1L = layer(
                cls_B1D, rows_BLD, rows_BLD, key_padding_mask=absent_BL, need_weights=with_weights
            )
        vector_BD = functional.normalize(cls_B1D[:, 0], dim=1)
        return vector_BD, weights_B1L[:, 0] if weights_B1L is not None else absent_BL

    @property
    def config(self) -> dict[str, Any]:
        """What ``from_bytes`` needs beside the tensors; JSON-ready."""
        return {"dim": self.dim, "heads": self.heads, "layers": len(self.layers), "dropout": self.dropout}

    def to_bytes(self) -> bytes:
        """Return all tensors as safetensors."""
        return tensor_bytes(self)

    @classmethod
    def from_bytes(cls, data: bytes, config: Mapping[str, Any]) -> Aggregator:
        """Return the aggregator of ``to_bytes`` and ``config``, in evaluation mode.

        Raises:
            DamagedError: the bytes are not readable.
            UserError: they are not those of such a network (code ``wrong-weights``, field ``weights``).
        """
        return cls(**config)._filled(read_tensors(data, "aggregator"))

    @classmethod
    def from_reference(cls, state_dict: Mapping[str, Tensor], *, heads: int = 1, dropout: float = 0.1) -> Aggregator:
        """Return the authors' released checkpoint, in evaluation mode.

        Its keys are ``self_attn.layers.{i}.{in_proj_weight,in_proj_bias,out_proj.weight,out_proj.bias}`` and
        ``lamda``, each possibly behind ``module.`` (DataParallel); ``attn_layer.*``, an unused template, is left.

        Args:
            state_dict: from ``torch.load(path, weights_only=True)``.
            heads: of the checkpoint, which does not tell; the released one has 1.
            dropout: of attention weights, if it is trained further.

        Raises:
            UserError: keys are missing or unknown, or shapes are wrong; they are named (code ``wrong-weights``, field
                ``weights``).
        """
        plain = {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
        tensors = {
            key.removeprefix("self_attn."): tensor for key, tensor in plain.items() if not key.startswith("attn_layer.")
        }
        layers = {key.split(".")[1] for key in tensors if key.startswith("layers.")}
        first = tensors.get("layers.0.out_proj.weight")
        if first is None:
            raise _wrong_weights(
                "not a checkpoint of the aggregator: self_attn.layers.0.out_proj.weight is missing; "
                f"its keys are {sorted(state_dict)[:12]}"
            )
        return cls(first.shape[0], heads, len(layers), dropout)._filled(tensors)

    def _filled(self, tensors: Mapping[str, Tensor]) -> Aggregator:
        wanted = self.state_dict()
        missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
        if missing or unknown:
            raise _wrong_weights(f"the aggregator's tensors do not fit: missing {missing}, unknown {unknown}")
        for name, tensor in tensors.items():
            same = tensor.numel() == 1 if name == "lamda" else tensor.shape == wanted[name].shape
            if not same:
                raise _wrong_weights(
                    f"{name} has shape {tuple(tensor.shape)}, an aggregator of dim={self.dim} "
                    f"wants {tuple(wanted[name].shape)}"
                )
        self.load_state_dict({name: tensor.reshape(wanted[name].shape) for name, tensor in tensors.items()})
        return self.eval()


def mean_pool(features_BKD: Tensor, mask_BK: Tensor | None = None) -> Tensor:
    """Pool without learning: unit vectors (B, D) along the mean of the present features. Arguments as ``forward``."""
    features_BKD, present_BK = _present(features_BKD, mask_BK)
    return functional.normalize(_mean(features_BKD, present_BK)[:, 0], dim=1)


def _present(features_BKD: Tensor, mask_BK: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mask as a tensor, and features with zeros in the absent rows, which may hold anything, even NaN."""
    if mask_BK is None:
        mask_BK = torch.ones(features_BKD.shape[:2], dtype=torch.bool, device=features_BKD.device)
    if mask_BK.dtype != torch.bool or mask_BK.shape != features_BKD.shape[:2]:
        raise UserError(
            f"the mask of features {tuple(features_BKD.shape)} must be bool {tuple(features_BKD.shape[:2])}, "
            f"got {mask_BK.dtype} {tuple(mask_BK.shape)}",
            code="wrong-shape",
            field="mask",
        )
    empty = (~mask_BK.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        message = f"a set needs at least one image, sets {empty[:10]} have none"
        raise UserError(message, code="empty", field="features")
    return features_BKD.masked_fill(~mask_BK.unsqueeze(-1), 0.0), mask_BK


def _mean(features_BKD: Tensor, present_BK: Tensor) -> Tensor:
    """Mean of the present rows, (B, 1, D); absent rows are zero."""
    return features_BKD.sum(dim=1, keepdim=True) / present_BK.sum(dim=1)[:, None, None].to(features_BKD.dtype)


@torch.no_grad()
def _start(layer: nn.MultiheadAttention, init: str) -> None:
    """Starting weights of one layer; its biases start at 0."""
    query, key, value = layer.in_proj_weight.chunk(3)
    projections = (query, key, value, layer.out_proj.weight)
    if init == "identity":
        for weight in projections:
            nn.init.eye_(weight)
    elif init == "reference":
        for weight in projections:
            nn.init.trunc_normal_(weight, std=_WEIGHT_STD)
        key.copy_(query)
    else:
        raise UserError(f"init is 'reference' or 'identity', not {init!r}", code="unknown", field="init")


def _wrong_weights(message: str) -> UserError:
    return UserError(message, code="wrong-weights", field="weights")
