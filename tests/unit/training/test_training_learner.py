"""One training run without Ray: it learns, measures as the method does, resumes to the bit, survives bad batches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import D1, D2, directions

from cluster.profile import Training
from retrieval.folder import Folder
from retrieval.fusion import score, unit
from retrieval.metrics import average_precision
from training import checkpoint
from training.examples import Examples
from training.learner import Learner

K = 4
SETTINGS = Training(
    batch=16, positives=2, steps=60, warm_up=5, learning_rate=0.03, validate_every=10, dropout=0.1, heads=2
)
DRAWING = {"batch": SETTINGS.batch, "positives": SETTINGS.positives, "seed": SETTINGS.seed}


def noisy_world(labels: int = 24, rows: int = 6, *, seed: int = 0) -> Examples:
    """Labels are distinguished by half of the coordinates; the other half is noise, and louder in imagined images.

    A mean of the images keeps the noise, so what ignores it ranks far better. Texts say little.
    """
    rng = np.random.default_rng(seed)
    half = D2 // 2
    centres, text_centres = directions(labels, half, rng), directions(labels, D1, rng)
    label_Q, label_N = np.repeat(np.arange(labels), 2), np.repeat(np.arange(labels), rows)

    def images(of: np.ndarray, noise: float) -> np.ndarray:
        known = centres[of] + 0.1 * rng.standard_normal((len(of), half))
        return unit(np.concatenate([known, noise * directions(len(of), half, rng)], axis=1))

    def texts(of: np.ndarray) -> np.ndarray:
        return unit(text_centres[of] + 2.0 * directions(len(of), D1, rng))

    imagined = images(np.repeat(label_Q, K), 2.0).reshape(-1, K, D2)
    mask = np.ones((len(label_Q), K), bool)
    mask[::5, -1] = False
    return Examples(
        [f"label {i}" for i in range(labels)],
        texts(label_Q),
        imagined * mask[..., None],
        mask,
        label_Q,
        texts(label_N).astype(np.float16),
        images(label_N, 1.0).astype(np.float16),
        label_N,
    )


def train(learner: Learner, examples: Examples, until: int) -> list[float]:
    return [learner.step(examples.draw(step, **DRAWING)).loss for step in range(learner.step_number, until)]


def parameters(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in learner.plain.state_dict().items()}


def assert_same(one: Any, other: Any, at: str = "") -> None:
    """Equal to the bit, through all dicts and lists of a state."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), at
        for key in one:
            assert_same(one[key], other[key], f"{at}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), at
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{at}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), at
    else:
        assert one == other, at


def test_it_learns_to_ignore_noise_also_on_labels_it_never_saw() -> None:
    examples = noisy_world()
    seen, unseen = examples.of_labels(list(range(16))), examples.of_labels(list(range(16, 24)), rows_of_all=True)
    learner = Learner(SETTINGS, D2)
    before, weight = learner.validate(unseen), learner.network.fusion_weight
    losses = train(learner, seen, SETTINGS.steps)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert learner.validate(unseen) > before + 0.2
    assert learner.network.fusion_weight > weight + 0.1  # texts say little here


def test_validation_equals_average_precision_of_the_fused_scores() -> None:
    part = noisy_world().of_labels([2, 5, 7, 11], rows_of_all=True)
    learner = Learner(SETTINGS, D2)
    train(learner, noisy_world(), 3)
    network, precisions = learner.network.eval(), []
    for q, label in enumerate(part.query_label_Q):
        with torch.inference_mode():
            visual = network(torch.from_numpy(part.images_QKD2[q][part.mask_QK[q]])[None]).numpy()
        scores = score(part.text_QD1[q], visual, network.fusion_weight, part.vlm_ND1, part.vision_ND2)[0]
        hits = part.row_label_N[np.argsort(-scores, kind="stable")] == label
        precisions.append(average_precision(np.flatnonzero(hits), 6))
    assert 0.05 < np.mean(precisions) < 0.95
    assert learner.validate(part) == pytest.approx(np.mean(precisions), abs=1e-9)


def test_validation_in_small_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    part, learner = noisy_world(), Learner(SETTINGS, D2)
    whole = learner.validate(part)
    monkeypatch.setattr("training.learner._SCORES_AT_ONCE", 5 * len(part.row_label_N))
    assert learner.validate(part) == pytest.approx(whole, abs=1e-9)


def test_validation_leaves_training_as_it_was() -> None:
    examples = noisy_world()
    one, other = Learner(SETTINGS, D2), Learner(SETTINGS, D2)
    for step in range(6):
        one.validate(examples)
        one.step(examples.draw(step, **DRAWING))
    train(other, examples, 6)
    assert_same(one.state(), other.state())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_run_that_resumes_equals_one_that_never_stopped(dropout: float, tmp_path: Path) -> None:
    examples, settings = noisy_world(), SETTINGS.model_copy(update={"dropout": dropout})
    whole = Learner(settings, D2)
    losses = train(whole, examples, 20)
    first = Learner(settings, D2)
    start = train(first, examples, 10)
    checkpoint.write(Folder(tmp_path / checkpoint.folder_name(10)), {"learner": first.state()})
    saved = checkpoint.newest(Folder(tmp_path))
    assert saved is not None
    second = Learner(settings.model_copy(update={"seed": 99}), D2)  # starts elsewhere
    second.settings = settings
    second.load(saved["learner"])
    assert second.step_number == 10
    assert start + train(second, examples, 20) == losses
    assert_same(second.state(), whole.state())


def test_dropout_depends_on_the_step_and_the_worker() -> None:
    examples, settings = noisy_world(), SETTINGS.model_copy(update={"dropout": 0.5})
    batch = examples.draw(0, **DRAWING)
    again = [Learner(settings, D2).step(batch, rank).loss for rank in (0, 0, 1)]
    assert again[0] == again[1]
    assert again[0] != again[2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    examples, learner, other = noisy_world(), Learner(SETTINGS, D2), Learner(SETTINGS, D2)
    train(learner, examples, 3)
    train(other, examples, 3)
    before = copy.deepcopy(learner.state())
    batch = examples.draw(3, **DRAWING)
    spoilt = batch | {"vision": batch["vision"].copy()}
    spoilt["vision"][0, 0] = bad
    assert not np.isfinite(learner.step(spoilt).norm)
    assert_same(learner.state(), before)
    # And nothing of it stays behind.
    assert learner.step(batch) == other.step(batch)
    assert_same(learner.state(), other.state())


def test_gallery_in_half_precision_is_learned_from_as_in_full() -> None:
    batch = noisy_world().draw(0, **DRAWING)
    assert batch["vision"].dtype == np.float16
    one, other = Learner(SETTINGS, D2), Learner(SETTINGS, D2)
    wide = batch | {name: batch[name].astype(np.float32) for name in ("vlm", "vision")}
    assert one.step(batch) == other.step(wide)
    assert_same(parameters(one), parameters(other))


def test_rate_rises_to_its_height_and_falls_to_a_fiftieth() -> None:
    settings = SETTINGS.model_copy(update={"steps": 100, "warm_up": 10, "learning_rate": 1.0})
    learner = Learner(settings, D2)
    rates = [learner._rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0, abs=0.03)
    assert np.argmax(rates) == 9
    assert (np.diff(rates[9:]) <= 0).all()
    assert rates[100] == pytest.approx(0.02)


def test_workers_shares_give_the_gradient_of_the_whole_batch() -> None:
    examples, settings = noisy_world(), SETTINGS.model_copy(update={"dropout": 0.0, "batch": 17})
    drawing = DRAWING | {"batch": 17}
    whole = Learner(settings, D2)
    whole.step(examples.draw(0, **drawing))
    expected = {name: p.grad.clone() for name, p in whole.plain.named_parameters()}
    for world in (2, 3):
        mean = {name: torch.zeros_like(gradient) for name, gradient in expected.items()}
        for rank in range(world):
            learner = Learner(settings.model_copy(update={"clip": 1e9}), D2, world=world)
            learner.step(examples.draw(0, **drawing, rank=rank, world=world), rank)
            for name, parameter in learner.plain.named_parameters():
                mean[name] += parameter.grad / world
        norm = torch.sqrt(sum((g**2).sum() for g in mean.values()))
        scale = min(1.0, settings.clip / float(norm))
        for name, gradient in mean.items():
            torch.testing.assert_close(gradient * scale, expected[name], atol=1e-5, rtol=1e-4)
