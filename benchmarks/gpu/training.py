"""Steps a second of training the aggregator, batches drawn meanwhile, against a plain loop that draws none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.gpu.figures import Figure
from benchmarks.gpu.measure import in_turns, operations_of, peak_of, product_limit
from benchmarks.gpu.sizes import Size
from cluster.profile import Training
from retrieval.aggregator import Aggregator
from retrieval.fusion import unit
from retrieval.models.devices import has_fast_bfloat16
from training.examples import Batch, Examples, stream
from training.learner import Learner
from training.loss import FusedContrast

WANTED = 0.95
ROWS_OF_LABEL, POSITIVES = 16, 4


def measure(size: Size, device: torch.device) -> Iterator[Figure]:
    """Measure the training of the size."""
    shape = size.training
    settings = Training(
        batch=shape["batch"], positives=POSITIVES, rows_per_label=ROWS_OF_LABEL, steps=1000, validate_every=1000
    )
    given = examples(shape["labels"], shape["images"], shape["dim"])
    drawing = {"batch": settings.batch, "positives": POSITIVES, "seed": settings.seed}
    drawn = [given.draw(step, **drawing) for step in range(shape["steps"])]
    learner = Learner(settings, shape["dim"], device=device)
    plain = PlainLoop(settings, shape["dim"], device)

    def ours() -> None:
        for batch in stream(given, range(shape["steps"]), **drawing):
            learner.step(batch)

    def peer() -> None:
        for batch in drawn:
            plain.step(batch)

    seconds = in_turns({"ours": ours, "plain": peer}, device, rounds=size.rounds)
    rate = shape["steps"] / seconds["ours"]
    dtype = torch.bfloat16 if plain.reduced else torch.float32
    yield Figure(
        f"training, batches of {settings.batch}",
        "steps/s",
        "a plain loop of PyTorch whose batches are drawn beforehand",
        WANTED,
        ours=rate,
        peer=shape["steps"] / seconds["plain"],
        limit=rate * operations_of(lambda: learner.step(drawn[0])) / product_limit(device, dtype),
        peak=peak_of(ours, device),
        details={"images": shape["images"], "dim": shape["dim"], "steps": shape["steps"]},
    )


def examples(labels: int, images: int, dim: int) -> Examples:
    """Return random vectors: a query and ROWS_OF_LABEL gallery rows of each label."""
    rng = np.random.default_rng(0)
    row_label = np.repeat(np.arange(labels), ROWS_OF_LABEL)

    def vectors(*shape: int) -> np.ndarray:
        return unit(rng.standard_normal((*shape, dim), np.float32))

    return Examples(
        [f"label {i}" for i in range(labels)],
        vectors(labels),
        vectors(labels, images),
        np.ones((labels, images), bool),
        np.arange(labels),
        vectors(len(row_label)).astype(np.float16),
        vectors(len(row_label)).astype(np.float16),
        row_label,
    )


class PlainLoop:
    """The same network, loss and optimiser in the loop that a tutorial would write."""

    def __init__(self, settings: Training, dim: int, device: torch.device) -> None:
        torch.manual_seed(settings.seed)
        network = Aggregator(dim, settings.heads, settings.layers, settings.dropout, init=settings.init)
        self.module = FusedContrast(network, settings.temperature).to(device)
        self.device, self.clip = device, settings.clip
        self.reduced = device.type == "cuda" and has_fast_bfloat16(device)
        self.optimiser = torch.optim.AdamW(self.module.parameters(), lr=settings.learning_rate)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, settings.steps)

    def step(self, batch: Batch) -> float:
        """One step, and its loss."""
        self.module.train()
        tensors = {name: torch.as_tensor(values).to(self.device) for name, values in batch.items()}
        tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.reduced):
            loss = self.module(tensors).mean()
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self.optimiser.step()
        self.schedule.step()
        return loss.item()
