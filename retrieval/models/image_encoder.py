"""What the VLM and the vision encoder share: the way from pixels to unit vectors.

Shape legend: B batch; H, W, C height, width, channels; D dimension of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from retrieval.errors import DamagedError, UserError
from retrieval.models.attention import keep_order
from retrieval.models.devices import map_batches
from retrieval.models.preprocess import Preprocess
from retrieval.models.transforms import Normalise

# Rows that a GPU is given at once. The next ones are put into pinned memory while it computes these; of one large batch
# it would have to have all before it began. Fewer would be too little work for each kernel.
GPU_ROWS = 64


class ImageEncoder:
    """A loaded image tower with the preprocessing that travels with its weights.

    Attributes:
        uri: as given to ``load``.
        dim: D, the length of a vector.
        fingerprint: ``sha256:…`` of weights and preprocessing, the same on every device and in every dtype.
        preprocess: turns an image into the pixels that ``encode_images`` takes.
        device: where it runs.
        dtype: of its weights.
    """

    def __init__(
        self,
        uri: str,
        model: nn.Module,
        image_tower: Callable[[torch.Tensor], torch.Tensor],
        *,
        dim: int,
        preprocess: Preprocess,
        fingerprint: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.uri = uri
        self.dim = dim
        self.preprocess = preprocess
        self.fingerprint = fingerprint
        self.device = device
        self.dtype = dtype
        self._image_tower = image_tower
        self._normalise = Normalise(preprocess, device)
        self._rows_at_once = GPU_ROWS if device.type == "cuda" else None
        model.eval().requires_grad_(False)
        keep_order(model)
        model.to(device=device, dtype=dtype, memory_format=torch.channels_last)

    def encode_images(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        """Embed images in one batch, on a GPU in several; they are halved only when its memory runs out.

        Args:
            pixels_BHWC: uint8 (B, H, W, 3) from ``preprocess.pixels``; B may be 0.

        Returns:
            Unit vectors, float32 (B, D).

        Raises:
            UserError: wrong shape or dtype (code ``wrong-shape``, field ``pixels``).
            DamagedError: a vector is not finite.
        """
        if pixels_BHWC.dtype != np.uint8 or pixels_BHWC.ndim != 4 or pixels_BHWC.shape[-1] != 3:
            given = f"{pixels_BHWC.dtype} of shape {pixels_BHWC.shape}"
            raise UserError(
                f"images must be uint8 of shape (B, H, W, 3), and are {given}", code="wrong-shape", field="pixels"
            )
        return self._unit_rows(self._embed_images, pixels_BHWC, self._rows_at_once or max(1, len(pixels_BHWC)))

    def _embed_images(self, pixels_BHWC: np.ndarray) -> torch.Tensor:
        return self._image_tower(self._normalise(pixels_BHWC).to(self.dtype))

    @torch.inference_mode()
    def _unit_rows(self, embed: Callable[[Any], torch.Tensor], items: Any, batch: int) -> np.ndarray:
        """Embed items, `batch` at a time, and divide lengths out in float32 whatever the model's dtype."""
        # Brought back together at the end: each copy would wait for its batch, with nothing for the GPU to do after it.
        parts = [rows.float() for rows in map_batches(embed, items, batch)]
        rows_BD = torch.cat([torch.empty(0, self.dim, device=self.device), *parts]).cpu()
        finite = rows_BD.isfinite().all(dim=1)
        if not finite.all():
            row = finite.tolist().index(False)
            raise DamagedError(
                f"{self.uri} in {self.dtype} makes a vector that is not finite, row {row} of {len(rows_BD)};"
                " try dtype float32, or check that its weights are whole",
                field="dtype",
            )
        return functional.normalize(rows_BD).numpy()
