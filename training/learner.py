"""One training run without Ray: the network, its optimiser, its schedule, and the state they resume from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cluster.profile import Training
from retrieval.aggregator import Aggregator
from retrieval.metrics import average_precision
from retrieval.models.devices import has_fast_bfloat16
from retrieval.models.transfer import to_device
from training.examples import Batch, Examples
from training.loss import Contrast, FusedContrast

END_OF_COSINE = 0.02
_SCORES_AT_ONCE = 20_000_000


@dataclass(frozen=True)
class Step:
    """What one step did. ``loss`` is this worker's share of the mean over the batch, ``norm`` the gradient's, before
    clipping.
    """

    loss: float
    norm: float


class Learner:
    """A Contrast, that of the aggregator, trained by AdamW: linear warm-up, then a cosine; one learning rate, and no
    decay for vectors.

    Args:
        dim: D2, or whatever the network of a subclass takes.
        wrap: puts the module where it runs and behind DDP, if there are several workers.
        world: number of workers. Each gives the sum of its losses over B / world, so that DDP's mean over workers is
            the mean over the batch, even if the shares differ by one query.
    """

    def __init__(
        self,
        settings: Training,
        dim: int,
        *,
        device: torch.device | None = None,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
        world: int = 1,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.device = device or torch.device("cpu")
        self.plain = self._contrast(dim).to(self.device)
        self.module = wrap(self.plain)
        self.world = world
        self.step_number = 0
        parameters = list(self.plain.parameters())
        self._optimiser = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=(0.9, 0.98),
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, self._rate)

    def _contrast(self, dim: int) -> Contrast:
        settings = self.settings
        network = Aggregator(dim, settings.heads, settings.layers, settings.dropout, init=settings.init)
        return FusedContrast(network, settings.temperature)

    @property
    def network(self) -> Any:
        return self.plain.network

    def _rate(self, step: int) -> float:
        done = min(1.0, step / self.settings.steps)
        cosine = END_OF_COSINE + (1 - END_OF_COSINE) * 0.5 * (1 + math.cos(math.pi * done))
        return min(1.0, (step + 1) / self.settings.warm_up) * cosine

    def step(self, batch: Batch, rank: int = 0) -> Step:
        """One optimiser step; the parameters stay as they are if the gradient is not finite."""
        # Dropout by step and worker, so that a run that resumes drops what it would have dropped.
        seeds = np.random.SeedSequence([self.settings.seed, self.step_number, rank])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        self.module.train()
        tensors = {name: to_device(values, self.device) for name, values in batch.items()}
        tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
        with self._precision():
            loss = self.module(tensors).sum() * self.world / self.settings.batch
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.plain.parameters(), self.settings.clip)
        if torch.isfinite(norm):
            self._optimiser.step()
            self._schedule.step()
            self.step_number += 1
        return Step(loss.item(), norm.item())

    def mean_over_workers(self, value: float) -> float:
        """The mean of a number that each worker has its own of."""
        if self.world == 1:
            return value
        total = torch.tensor(value, device=self.device)
        torch.distributed.all_reduce(total)
        return total.item() / self.world

    def _precision(self) -> torch.autocast:
        # On CPUs with bfloat16 the matrices here are too small to gain.
        fast = self.device.type == "cuda" and has_fast_bfloat16(self.device)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=fast)

    def state(self) -> dict[str, Any]:
        """Everything the run resumes from: tensors, numbers and strings only."""
        return {
            "model": self.plain.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "step": self.step_number,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.plain.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self.step_number = state["step"]

    @torch.inference_mode()
    def validate(self, examples: Examples) -> float:
        """mAP (trapezoids) of the fused ranking, all images of each query, over the rows of ``examples``.

        Rows of label -1 are relevant to no query.
        """
        network = self.network.eval()
        put: Callable[[np.ndarray], Tensor] = lambda values: torch.from_numpy(np.array(values)).to(self.device)  # noqa: E731
        rows = torch.cat([put(examples.vlm_ND1), put(examples.vision_ND2)], dim=1).float()
        weight = network.fusion_weight
        precisions = []
        size = max(1, _SCORES_AT_ONCE // len(rows))
        for start in range(0, len(examples.query_label_Q), size):
            part = slice(start, start + size)
            visual = network(put(examples.images_QKD2[part]), put(examples.mask_QK[part]))
            joint = torch.cat([(1 - weight) * put(examples.text_QD1[part]), weight * visual], dim=1)
            ranking = (joint @ rows.T).argsort(dim=1, descending=True, stable=True).cpu().numpy()
            relevant = examples.row_label_N[ranking] == examples.query_label_Q[part, None]
            precisions += [average_precision(np.flatnonzero(hits), int(hits.sum())) for hits in relevant]
        return float(np.mean(precisions))
