"""An entry of the picture memory: a picture that was given as evidence, as both image towers saw it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from retrieval.artifacts.columns import fixed_size_list, matrix
from serving.memory.entry import sealed, unsealed

_MAGIC = b"mindseye picture 1\n"


@dataclass(frozen=True, eq=False)
class RememberedPicture:
    """A picture, or a part of one, as evidence.

    Attributes:
        vlm_D1: τ, float32 of unit norm.
        vision_D2: ν, float32 of unit norm.
        models: fingerprints of the VLM and of the vision encoder that made them.
        jpeg: of an upload, bounded in size, from which parts are cut later; empty where it can be read elsewhere.
        width, height: of the picture in pixels, upright.
    """

    vlm_D1: np.ndarray
    vision_D2: np.ndarray
    models: tuple[str, str]
    jpeg: bytes
    width: int
    height: int

    unfinished = False
    """Nothing of it is missing (``entry.Remembered.unfinished``)."""

    def to_bytes(self) -> bytes:
        """Return the entry as bytes (``entry.sealed``)."""
        vlm, vision = self.models
        row = pa.record_batch(
            {
                "vlm": fixed_size_list(self.vlm_D1[None]),
                "vision": fixed_size_list(self.vision_D2[None]),
                "vlm_fingerprint": [vlm],
                "vision_fingerprint": [vision],
                "jpeg": pa.array([self.jpeg], pa.binary()),
                "width": [self.width],
                "height": [self.height],
            }
        )
        return sealed(_MAGIC, row)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the entry that ``to_bytes`` wrote.

        Raises:
            DamagedEntry: the bytes are damaged, or of something else.
        """
        row = unsealed(_MAGIC, data)
        names = ("vlm_fingerprint", "vision_fingerprint", "jpeg", "width", "height")
        vlm, vision, *rest = (row[name][0].as_py() for name in names)
        return cls(matrix(row["vlm"])[0], matrix(row["vision"])[0], (vlm, vision), *rest)
