"""Arrays from the memory of the process to the device of a model, beside what that is computing."""

from __future__ import annotations

import numpy as np
import torch


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy an array, which may be read-only, to a device.

    A GPU is given it through pinned memory: the call returns before the copy is done, so that the next array is read
    while the GPU is busy with this one. PyTorch keeps the pinned block for the next array, and gives it to none before
    this copy is done.
    """
    if device.type != "cuda":
        return torch.tensor(array, device=device)
    pinned = torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype, pin_memory=True)
    np.copyto(pinned.numpy(), array)
    return pinned.to(device, non_blocking=True)
