"""The loop of a run: steps, validations, checkpoints, and when it ends. Where it runs is ``training.workers``'."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from cluster.profile import Training
from cluster.progress import ProgressCounter
from retrieval.folder import Folder
from training import checkpoint
from training.examples import Drawn, stream
from training.learner import Learner
from training.tracking import Tracker

T = TypeVar("T")
Line = dict[str, Any]
"""What a validation measured: step, loss (mean since the last, None at the start), map, weight (λ), scale."""


@dataclass(frozen=True, eq=False)
class Run:
    """What every worker of a run is given."""

    settings: Training
    checkpoints: str
    """URI of the folder of the run's checkpoints."""
    training: Drawn
    validation: Drawn
    counter: ProgressCounter
    tracker: Tracker
    learner: Callable[..., Learner] = Learner
    """What is trained: a Learner, given the settings, ``dim`` of the examples, and where it runs."""

    @property
    def dim(self) -> int:
        """What the network is given of, such as D2."""
        return self.training.dim


class Worker(Protocol):
    """One of the workers that train together: its place among them, and what they do together."""

    rank: int
    world: int
    """How many there are."""
    device: torch.device

    def wrap(self, module: nn.Module) -> nn.Module:
        """Put a module on the device, such that all workers see the same gradients."""

    def agree(self, value: T) -> T:
        """Return the value that the first worker has. All workers call it together."""

    def keep(self, line: Line, state: Mapping[str, Any] | None) -> None:
        """Keep a checkpoint. All workers call it together; the first one brings the state."""


@dataclass
class Best:
    """The network at the validation with the highest mAP."""

    network: dict[str, torch.Tensor] = field(default_factory=dict)
    step: int = 0
    map: float = -1.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    best: Best
    history: list[Line]
    """A line for each validation."""
    fault: str = ""
    """Why it had to stop, if it had to."""


def train_loop(run: Run, worker: Worker) -> Outcome:
    """Train to the end, or until validation stops it, from the newest checkpoint on. Every worker calls this."""
    settings = run.settings
    learner = run.learner(settings, run.dim, device=worker.device, wrap=worker.wrap, world=worker.world)
    best, history = Best(), []
    if state := checkpoint.newest(Folder(run.checkpoints)):
        learner.load(state["learner"])
        best, history = Best(state["best"], state["best_step"], state["best_map"]), state["history"]
    drawing = {"batch": settings.batch, "positives": settings.positives, "seed": settings.seed}
    steps = range(learner.step_number, settings.steps)
    counted = run.counter.done()
    losses: list[float] = []
    if not history:
        best = _validate(run, worker, learner, best, history, losses)
    for batch in stream(run.training, steps, **drawing, rank=worker.rank, world=worker.world):
        if _patience_is_over(history, settings):
            break
        done = learner.step(batch, worker.rank)
        # The gradient is the same on all workers, so all of them stop here.
        if not math.isfinite(done.norm):
            return Outcome(best, history, _explain(learner, done.loss, run.training, drawing))
        losses.append(done.loss)
        if worker.rank == 0 and learner.step_number > counted:  # after a restart, what was done before counts as well
            run.counter.add(learner.step_number - counted)
            counted = learner.step_number
        if learner.step_number % settings.validate_every == 0 or learner.step_number == settings.steps:
            best = _validate(run, worker, learner, best, history, losses)
            losses = []
    return Outcome(best, history)


def _validate(run: Run, worker: Worker, learner: Learner, best: Best, history: list[Line], losses: list[float]) -> Best:
    """Measure mAP on held-out labels, add a line to the history, and write a checkpoint; return the best so far.

    The first worker measures and writes; all of them know the result, by which they stop together.
    """
    first = worker.rank == 0
    accuracy = worker.agree(learner.validate(run.validation) if first else 0.0)
    line: Line = {
        "step": learner.step_number,
        "loss": round(learner.mean_over_workers(sum(losses) / len(losses)), 6) if losses else None,
        "map": round(accuracy, 6),
        "weight": round(learner.network.fusion_weight, 6),
        "scale": round(learner.plain.log_scale.exp().item(), 4),
    }
    history.append(line)
    if accuracy > best.map:
        network = {name: tensor.detach().cpu().clone() for name, tensor in learner.network.state_dict().items()}
        best = Best(network, learner.step_number, accuracy)
    if not first:
        worker.keep(line, None)
        return best
    run.tracker.write(history)
    state = {"best": best.network, "best_step": best.step, "best_map": best.map, "history": history}
    worker.keep(line, state | {"learner": learner.state()})
    return best


def _patience_is_over(history: list[Line], settings: Training) -> bool:
    best = max(range(len(history)), key=lambda i: history[i]["map"])
    return len(history) - 1 - best >= settings.patience


def _explain(learner: Learner, loss: float, examples: Drawn, drawing: dict[str, int]) -> str:
    labels = examples.draw(learner.step_number, **drawing)["label"]
    names = [examples.labels[i] for i in labels[:8]]
    return (
        f"the gradient is not a number at step {learner.step_number + 1} (loss {loss}); its batch has the labels"
        f" {', '.join(names)}{' …' if len(labels) > 8 else ''}. Look for vectors that are not finite in the gallery"
        " and the query set, or lower train.learning_rate in the profile."
    )
