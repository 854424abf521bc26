"""The tensors of our own networks as safetensors."""

from __future__ import annotations

import safetensors.torch
from torch import Tensor, nn

from retrieval.errors import DamagedError


def tensor_bytes(network: nn.Module) -> bytes:
    """Return all tensors of a network as safetensors."""
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})


def read_tensors(data: bytes, what: str) -> dict[str, Tensor]:
    """Return the tensors of ``tensor_bytes`` by their names.

    Args:
        data: of safetensors.
        what: they are of, for the message.

    Raises:
        DamagedError: the bytes are not readable (field ``weights``).
    """
    try:
        return safetensors.torch.load(data)
    except Exception as error:
        raise DamagedError(f"the {what}'s tensors are not readable safetensors: {error}", field="weights") from error
