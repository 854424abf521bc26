"""The loop that every tiny model is trained with: resumable, deterministic in its data, and it keeps a record."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from retrieval.errors import UserError

Losses = Mapping[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """What one training run does. The learning rate warms up linearly, then follows a cosine down to a fiftieth."""

    name: str
    steps: int
    batch: int
    learning_rate: float
    weight_decay: float = 0.01
    warm_up: int = 100
    clip: float = 1.0
    ema: float = 0.0
    seed: int = 0

    def rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self.warm_up)
        return self.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))


@dataclass
class Record:
    """How a model was made; written beside its weights."""

    recipe: dict
    losses: list[dict] = field(default_factory=list)
    cpu_minutes: float = 0.0
    versions: dict[str, str] = field(
        default_factory=lambda: {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "diffusers", "transformers", "open_clip_torch", "timm")},
        }
    )


def train(
    recipe: Recipe,
    model: nn.Module,
    losses: Callable[[np.random.Generator], Losses],
    work: Path,
    *,
    every: int = 100,
) -> Record:
    """Minimise the sum of ``losses(rng)`` and return the record; ``model`` ends with the EMA weights if the recipe has
    EMA.

    ``rng`` depends on the recipe's seed and the step alone, so a run that was killed resumes as if it had not been:
    the full state is saved in ``work`` every ``every`` steps and loaded by the next call with the same recipe.

    Raises:
        UserError: ``work`` holds an unfinished run of another recipe with this name.
        FloatingPointError: the loss was not a number.
    """
    torch.manual_seed(recipe.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1]
    rest = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.ema), use_buffers=True
    )
    record = Record(asdict(recipe))
    checkpoint = work / f"{recipe.name}.pt"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise UserError(
                f"{checkpoint} is of another recipe; delete it to train {recipe.name} from the start",
                code="other-recipe",
                field=recipe.name,
            )
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["rng"])
        start, record.losses, record.cpu_minutes = state["step"], state["losses"], state["cpu_minutes"]

    model.train()
    window: list[dict[str, float]] = []
    clock, wall = time.process_time(), time.monotonic()
    for step in range(start, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step)
        parts = losses(np.random.default_rng([recipe.seed, step]))
        loss = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{recipe.name}: the loss is {loss.item()} at step {step + 1}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimiser.step()
        if recipe.ema:
            averaged.update_parameters(model)
        window.append({key: value.item() for key, value in parts.items()})
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            record.losses.append(
                {"step": step + 1, **{key: round(float(np.mean([one[key] for one in window])), 5) for key in parts}}
            )
            record.cpu_minutes += (time.process_time() - clock) / 60
            rate = (step + 1 - start) / (time.monotonic() - wall)
            left = (recipe.steps - step - 1) / rate / 60
            print(
                f"{recipe.name}: {json.dumps(record.losses[-1])}  {rate:.2f} steps/s, {left:.0f} min left", flush=True
            )
            clock, window = time.process_time(), []
            _save(checkpoint, recipe, model, averaged, optimiser, step + 1, record)
    if recipe.ema:
        model.load_state_dict(averaged.module.state_dict())
    return record


def _save(
    file: Path,
    recipe: Recipe,
    model: nn.Module,
    averaged: nn.Module,
    optimiser: torch.optim.Optimizer,
    step: int,
    record: Record,
) -> None:
    partial = file.with_suffix(".partial")
    state = {
        "recipe": asdict(recipe),
        "model": model.state_dict(),
        "averaged": averaged.state_dict(),
        "optimiser": optimiser.state_dict(),
        "rng": torch.get_rng_state(),
        "step": step,
        "losses": record.losses,
        "cpu_minutes": record.cpu_minutes,
    }
    torch.save(state, partial)
    partial.replace(file)


def write_records(file: Path, **records: Record) -> None:
    """Write how the parts of one model were made, as JSON."""
    text = json.dumps({name: asdict(record) for name, record in records.items()}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")


def pixels(images_NHWC: np.ndarray) -> Tensor:
    """Turn uint8 images (N, H, W, 3) into float32 (N, 3, H, W) in [0, 1]."""
    return torch.tensor(np.asarray(images_NHWC)).permute(0, 3, 1, 2).float() / 255
