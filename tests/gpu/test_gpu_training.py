"""Training on a GPU learns what it learns on a CPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu.training import POSITIVES, examples
from cluster.profile import Training
from training.learner import Learner

LOSSES, MAP = 0.05, 0.05
"""Largest difference of the losses, relative, and of mAP, absolute: the GPU multiplies in bfloat16."""


def test_losses_and_map_are_those_of_a_cpu() -> None:
    settings = Training(batch=16, positives=POSITIVES, steps=20, validate_every=20, dropout=0.0)
    given = examples(20, 4, 32)
    learners = [Learner(settings, 32, device=torch.device(device)) for device in ("cpu", "cuda")]
    for step in range(settings.steps):
        batch = given.draw(step, batch=settings.batch, positives=POSITIVES, seed=0)
        expected, found = (learner.step(batch).loss for learner in learners)
        assert found == pytest.approx(expected, rel=LOSSES)
    expected, found = (learner.validate(given) for learner in learners)
    assert found == pytest.approx(expected, abs=MAP)


def test_a_gpus_run_resumes_on_a_cpu() -> None:
    settings = Training(batch=16, positives=POSITIVES, steps=20, validate_every=20)
    given = examples(20, 4, 32)
    on_gpu, on_cpu = (Learner(settings, 32, device=torch.device(device)) for device in ("cuda", "cpu"))
    on_gpu.step(given.draw(0, batch=settings.batch, positives=POSITIVES, seed=0))
    on_cpu.load(on_gpu.state())
    assert on_cpu.step_number == 1
    for name, tensor in on_cpu.network.state_dict().items():
        torch.testing.assert_close(tensor, on_gpu.network.state_dict()[name].cpu())
