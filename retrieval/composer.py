"""The composer: a picture and a text that changes it, to one joint vector, learned from labelled galleries.

"Like this photo, but blue" is a set of evidence rows: the picture in both towers, what the gallery's rows nearest to it
have in common, and each text by its text vector. A class row goes with them through the layers of a transformer and
comes out as t and v of what is to be found. So nothing is imagined, and no word is read. Rows have types and no places:
the result does not depend on their order. The set network is the aggregator's idea (``retrieval.aggregator``) with
feed-forward parts, as what comes out is not among what goes in. Shapes: B sets, E rows of a set, D1 and D2 dimensions
of VLM and vision encoder, D = D1 + D2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from retrieval.errors import UserError
from retrieval.evidence import Encoded, summed
from retrieval.fusion import DEFAULT_WEIGHT
from retrieval.means import Means
from retrieval.tensors import read_tensors, tensor_bytes

PICTURE, NEAR, TEXT = range(3)
"""Types of rows: a picture; the mean of the gallery's rows nearest to it; a text, without a visual half."""
_SMALL = 0.02
_ENTRIES = 4.0


class Centres(NamedTuple):
    """Means of what a composer learned from, which are taken out of its rows, float32: of texts, and of images."""

    text_D1: NDArray[np.float32]
    images: Means


class Composer(nn.Module):
    """The network.

    Args:
        vlm_dim: D1.
        vision_dim: D2.
        centres: of what it learns from; None for weights that are yet to be read.
        width: of the rows within.
        heads: of attention, a divisor of ``width``.
        layers: of the transformer.
        dropout: in training.
    """

    def __init__(
        self,
        vlm_dim: int,
        vision_dim: int,
        centres: Centres | None = None,
        *,
        width: int = 192,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.config = {
            "vlm_dim": vlm_dim,
            "vision_dim": vision_dim,
            "width": width,
            "heads": heads,
            "layers": layers,
            "dropout": dropout,
        }
        dim = vlm_dim + vision_dim
        self.vlm_dim = vlm_dim
        self.enter = nn.Linear(dim, width)
        self.types = nn.Parameter(torch.randn(3, width) * _SMALL)
        self.first = nn.Parameter(torch.randn(width) * _SMALL)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.leave = nn.Linear(width, dim)
        picture, text = np.zeros(dim, np.float32), np.zeros(dim, np.float32)
        if centres:
            picture = np.concatenate([centres.images.vlm_D1, centres.images.vision_D2])
            text[:vlm_dim] = centres.text_D1
        self.register_buffer("centres", torch.from_numpy(np.stack([picture, picture, text]).astype(np.float32)))

    def forward(self, rows_BED: Tensor, types_BE: Tensor, mask_BE: Tensor) -> Tensor:
        """Compose each set.

        Args:
            rows_BED: [c ; d] of pictures, of unit halves, means of such rows, and texts as [t ; 0].
            types_BE: PICTURE, NEAR or TEXT.
            mask_BE: bool, true where a row is present.

        Returns:
            [t ; v], (B, D), each half of unit length.
        """
        # Unit vectors of many dimensions have small entries, and without the mean smaller ones.
        entered_BEW = self.enter((rows_BED - self.centres[types_BE]) * _ENTRIES) + self.types[types_BE]
        first_B1W = self.first.expand(len(rows_BED), 1, -1)
        absent_BE = functional.pad(~mask_BE, (1, 0), value=False)
        passed_BEW = self.layers(torch.cat([first_B1W, entered_BEW], dim=1), src_key_padding_mask=absent_BE)
        joint_BD = self.leave(passed_BEW[:, 0])
        halves = (joint_BD[:, : self.vlm_dim], joint_BD[:, self.vlm_dim :])
        return torch.cat([functional.normalize(half, dim=1) for half in halves], dim=1)

    @property
    def fusion_weight(self) -> float:
        """λ that it is trained with."""
        return DEFAULT_WEIGHT

    def compose(
        self,
        vlm_D1: NDArray[np.float32],
        vision_D2: NDArray[np.float32],
        near_ND: NDArray[np.float16],
        texts: Sequence[NDArray[np.float32]],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return t (D1,) and v (D2,) of what pictures become by texts, float32.

        Args:
            vlm_D1: of the pictures; of several, their sum.
            vision_D2: of the same.
            near_ND: rows [c ; d] of the gallery that are nearest to them.
            texts: t of each text.
        """
        picture_D = np.concatenate([vlm_D1, vision_D2])
        rows = [picture_D, near_ND.mean(axis=0, dtype=np.float64), *(np.pad(t, (0, len(vision_D2))) for t in texts)]
        types = [PICTURE, NEAR, *[TEXT] * len(texts)]
        with torch.inference_mode():
            [joint_D] = self(
                torch.from_numpy(np.stack(rows).astype(np.float32))[None],
                torch.tensor(types)[None],
                torch.ones((1, len(types)), dtype=torch.bool),
            ).numpy()
        return joint_D[: self.vlm_dim], joint_D[self.vlm_dim :]

    def compose_encoded(
        self, pictures: Encoded, near_ND: NDArray[np.float16], texts: Sequence[NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As ``compose``, of pictures by their weights.

        Raises:
            UserError: they cancel each other out (code ``no-direction``, field ``evidence``).
        """
        vlm_D1 = summed(pictures.weights_E, pictures.vlm_ED1)
        return self.compose(vlm_D1, summed(pictures.weights_E, pictures.vision_ED2), near_ND, texts)

    def to_bytes(self) -> bytes:
        """Return all tensors as safetensors."""
        return tensor_bytes(self)

    @classmethod
    def from_bytes(cls, data: bytes, config: Mapping[str, Any]) -> Composer:
        """Return the composer of ``to_bytes`` and ``config``, in evaluation mode.

        Raises:
            DamagedError: the bytes are not readable.
            UserError: they are not those of such a network (code ``wrong-weights``, field ``weights``).
        """
        tensors = read_tensors(data, "composer")
        network = cls(**config)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise UserError(
                f"the composer's tensors do not fit: {error}", code="wrong-weights", field="weights"
            ) from error
        return network.eval()
