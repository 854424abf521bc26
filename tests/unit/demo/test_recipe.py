"""The training loop of the demo's models: killed and resumed, it ends as if it had not been."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from errors import refused
from torch import nn

from demo.recipe import Losses, Recipe, pixels, train

RECIPE = Recipe("tiny", steps=9, batch=4, learning_rate=0.05, warm_up=3, ema=0.8, seed=3)


class Killed(Exception):
    """Stands for the signal that ends a process."""


def new_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1))


def run(work: Path, recipe: Recipe = RECIPE, *, kill_at: int | None = None, nan_at: int | None = None) -> Any:
    """Train a new model; its data come from the step's generator, its noise and dropout from torch's."""
    work.mkdir(exist_ok=True)
    model = new_model()
    seen: list[float] = []

    def losses(rng: np.random.Generator) -> Losses:
        x = torch.from_numpy(rng.standard_normal((recipe.batch, 3)).astype(np.float32))
        seen.append(x.sum().item())
        if len(seen) - 1 == kill_at:
            raise Killed
        error = model(x + 0.1 * torch.randn_like(x)) - x.sum(dim=1, keepdim=True)
        squared = error.square().mean() * (float("nan") if len(seen) - 1 == nan_at else 1)
        return {"squared": squared, "size": 0.01 * model[0].weight.square().mean()}

    record = train(recipe, model, losses, work, every=3)
    return {"weights": model.state_dict(), "record": record, "seen": seen}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("ema", [0.0, 0.8])
@pytest.mark.parametrize("kill_at", [1, 3, 5, 8])
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path: Path, kill_at: int, ema: float) -> None:
    recipe = dataclasses.replace(RECIPE, ema=ema)
    whole = run(tmp_path / "whole", recipe)
    with pytest.raises(Killed):
        run(tmp_path / "killed", recipe, kill_at=kill_at)
    torch.manual_seed(99)
    resumed = run(tmp_path / "killed", recipe)
    assert len(resumed["seen"]) == 9 - kill_at // 3 * 3
    assert resumed["seen"] == whole["seen"][-len(resumed["seen"]) :]
    assert same(resumed["weights"], whole["weights"])
    assert resumed["record"].losses == whole["record"].losses


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    whole = run(tmp_path)
    again = run(tmp_path)
    assert again["seen"] == []
    assert same(again["weights"], whole["weights"])
    assert again["record"].losses == whole["record"].losses


def test_the_model_ends_with_the_averaged_weights(tmp_path: Path) -> None:
    averaged = run(tmp_path / "a")["weights"]
    last = run(tmp_path / "b", dataclasses.replace(RECIPE, ema=0.0))["weights"]
    assert not same(averaged, last)
    state = torch.load(tmp_path / "a" / "tiny.pt", weights_only=True)
    assert same(state["model"], last)


def test_training_learns_and_records_it(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, steps=90, batch=32)
    result = run(tmp_path, recipe)
    losses = result["record"].losses
    assert [entry["step"] for entry in losses] == list(range(3, 91, 3))
    assert set(losses[0]) == {"step", "squared", "size"}
    assert losses[-1]["squared"] < losses[0]["squared"] / 2
    assert result["record"].recipe == dataclasses.asdict(recipe)
    assert result["record"].versions["torch"] == version("torch")
    assert result["record"].cpu_minutes > 0


def test_another_recipe_of_the_same_name_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with refused("other-recipe", "tiny"):
        run(tmp_path, dataclasses.replace(RECIPE, learning_rate=0.01))


def test_a_loss_that_is_not_a_number_names_its_step_and_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="step 5"):
        run(tmp_path, nan_at=4)
    state = torch.load(tmp_path / "tiny.pt", weights_only=True)
    assert state["step"] == 3
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.pt"]


def test_the_rate_warms_up_and_ends_at_a_fiftieth() -> None:
    recipe = Recipe("r", steps=1000, batch=1, learning_rate=2.0, warm_up=10)
    assert recipe.rate(0) == pytest.approx(0.2)
    assert recipe.rate(9) == pytest.approx(2.0, rel=1e-3)
    assert recipe.rate(1000) == pytest.approx(0.04)
    rates = [recipe.rate(step) for step in range(10, 1000)]
    assert rates == sorted(rates, reverse=True)


def test_pixels_are_channels_first_between_zero_and_one() -> None:
    images_NHWC = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    images_NHWC[1, 3, 4] = 0, 128, 255
    found = pixels(images_NHWC)
    assert found.shape == (2, 3, 4, 5)
    assert found[1, :, 3, 4].tolist() == pytest.approx([0, 128 / 255, 1])
    assert found[0, 2, 1, 3].item() == pytest.approx(images_NHWC[0, 1, 3, 2] / 255)
