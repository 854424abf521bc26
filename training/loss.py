"""What the aggregator is trained for: a query's fused score must be higher for its own label's images than for others.

The paper (CLETIR, arXiv 2509.00177) gives the network and λ as a learned scalar; its training code was not released.
The loss below is our choice: the fused score of the method itself, so that λ is learned with the network, in a
contrastive objective over the labels of a batch. Shapes: b queries, N gallery rows of the batch, D1, D2 dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from retrieval.aggregator import Aggregator

MAX_SCALE = 100.0


class Contrast(nn.Module):
    """A network with a learned temperature, as one module, so that DDP sees every parameter.

    Args:
        temperature: at the start; scores are divided by it. It stays above 1 / MAX_SCALE.
    """

    network: nn.Module
    """What is learned; it has a ``fusion_weight``, λ."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def contrast(self, scores_bN: Tensor, positive_bN: Tensor) -> Tensor:
        """The loss of each query, (b,), by its scores: info_nce at the temperature."""
        return info_nce(scores_bN * self.log_scale.exp().clamp(max=MAX_SCALE), positive_bN)


class FusedContrast(Contrast):
    """The aggregator, and its fused score."""

    def __init__(self, aggregator: Aggregator, temperature: float) -> None:
        super().__init__(temperature)
        self.aggregator = aggregator

    @property
    def network(self) -> Aggregator:
        return self.aggregator

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss of each query, (b,): the mean over its positives of info_nce. ``batch`` as Examples.draw gives."""
        visual_bD2 = self.aggregator(batch["images"], batch["mask"])
        weight = torch.sigmoid(self.aggregator.lamda)
        positive_bN = batch["label"][:, None] == batch["row_label"][None, :]
        # Scores above .25 would be .002 to .004 apart in bfloat16, more than what tells many rows apart.
        with torch.autocast(visual_bD2.device.type, enabled=False):
            scores_bN = (1 - weight) * batch["text"] @ batch["vlm"].T + weight * visual_bD2.float() @ batch["vision"].T
            return self.contrast(scores_bN, positive_bN)


def info_nce(scores_bN: Tensor, positive_bN: Tensor) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, eq. 4) with several positives a query, (b,).

    −log softmax of each positive among itself and all negatives, averaged over the positives: the positives of a
    query do not compete, as the images of one label should all score high. 0 for a query without negatives.
    """
    negatives_b1 = scores_bN.masked_fill(positive_bN, -torch.inf).logsumexp(dim=1, keepdim=True)
    each_bN = functional.softplus(negatives_b1 - scores_bN)
    return each_bN.masked_fill(~positive_bN, 0.0).sum(dim=1) / positive_bN.sum(dim=1)
