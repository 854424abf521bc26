"""The contrastive loss against plain loops, and what its gradient reaches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from synthetic import D1, D2, directions
from torch.nn import functional

from retrieval.aggregator import Aggregator
from training.loss import MAX_SCALE, FusedContrast, info_nce


def plain_info_nce(scores: list[list[float]], positive: list[list[bool]]) -> list[float]:
    """Term by term, without any trick for large numbers."""
    losses = []
    for row, hits in zip(scores, positive, strict=True):
        negatives = sum(math.exp(score) for score, hit in zip(row, hits, strict=True) if not hit)
        terms = [-math.log(math.exp(s) / (math.exp(s) + negatives)) for s, hit in zip(row, hits, strict=True) if hit]
        losses.append(sum(terms) / len(terms))
    return losses


def batch_of(*, gallery: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Four queries of three labels, three images each, two gallery rows a query."""
    rng = np.random.default_rng(1)
    label = torch.tensor([0, 1, 2, 1])
    return {
        "text": torch.from_numpy(directions(4, D1, rng)),
        "images": torch.from_numpy(directions(12, D2, rng).reshape(4, 3, D2)),
        "mask": torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1], [1, 1, 0]], dtype=torch.bool),
        "label": label,
        "vlm": torch.from_numpy(directions(8, D1, rng)).to(gallery),
        "vision": torch.from_numpy(directions(8, D2, rng)).to(gallery),
        "row_label": label.repeat_interleave(2),
    }


def test_info_nce_equals_a_plain_loop() -> None:
    torch.manual_seed(0)
    scores = torch.randn(6, 9, dtype=torch.float64) * 4
    positive = torch.rand(6, 9) < 0.4
    positive[:, 0], positive[:, 1] = True, False
    assert len({int(n) for n in positive.sum(dim=1)}) > 2
    expected = plain_info_nce(scores.tolist(), positive.tolist())
    torch.testing.assert_close(info_nce(scores, positive), torch.tensor(expected, dtype=torch.float64))


def test_info_nce_of_one_positive_is_cross_entropy() -> None:
    torch.manual_seed(0)
    scores, label = torch.randn(5, 7), torch.tensor([3, 0, 6, 2, 2])
    expected = functional.cross_entropy(scores, label, reduction="none")
    torch.testing.assert_close(info_nce(scores, functional.one_hot(label, 7).bool()), expected)


def test_positives_of_a_query_do_not_compete() -> None:
    negatives = torch.tensor([0.5, -1.0, 2.0])
    for other in (-5.0, 0.0, 5.0, 50.0):
        scores = torch.tensor([[1.5, other, *negatives]], requires_grad=True)
        info_nce(scores, torch.tensor([[True, True, False, False, False]])).sum().backward()
        alone = torch.tensor([[1.5, *negatives]], requires_grad=True)
        info_nce(alone, torch.tensor([[True, False, False, False]])).sum().backward()
        # The first positive is pulled as if the other were not there, and each of them up.
        assert scores.grad[0, 0].item() == pytest.approx(alone.grad[0, 0].item() / 2)
        assert (scores.grad[0, :2] <= 0).all()


def test_extreme_scores_stay_finite_and_no_negative_is_no_loss() -> None:
    scores = torch.tensor([[1e4, -1e4, 1e4], [3.0, 2.0, 1.0]], requires_grad=True)
    losses = info_nce(scores, torch.tensor([[False, True, False], [True, True, True]]))
    assert losses.tolist() == pytest.approx([2e4 + math.log(2), 0.0])
    losses.sum().backward()
    assert torch.isfinite(scores.grad).all()


def test_loss_is_info_nce_of_the_fused_scores_over_the_temperature() -> None:
    torch.manual_seed(0)
    network = Aggregator(D2, dropout=0.0, init="identity")
    network.lamda.data.fill_(0.8)
    batch, weight = batch_of(), 1 / (1 + math.exp(-0.8))
    visual = network(batch["images"], batch["mask"]).detach()
    scores = [
        [
            ((1 - weight) * float(text @ c) + weight * float(v @ d)) / 0.05
            for c, d in zip(batch["vlm"], batch["vision"], strict=True)
        ]
        for text, v in zip(batch["text"], visual, strict=True)
    ]
    positive = (batch["label"][:, None] == batch["row_label"]).tolist()
    assert [sum(hits) for hits in positive] == [2, 4, 2, 4]  # a label that comes twice shares its rows
    losses = FusedContrast(network, temperature=0.05)(batch)
    assert losses.tolist() == pytest.approx(plain_info_nce(scores, positive), rel=1e-4)


def test_temperature_has_a_least_value() -> None:
    loss = FusedContrast(Aggregator(D2, dropout=0.0), temperature=1 / MAX_SCALE)
    least = loss(batch_of())
    loss.log_scale.data.fill_(20.0)
    torch.testing.assert_close(loss(batch_of()), least)


@pytest.mark.parametrize("init", ["identity", "reference"])
def test_gradient_reaches_the_weight_the_temperature_and_the_network(init: str) -> None:
    torch.manual_seed(0)
    loss = FusedContrast(Aggregator(D2, layers=2, init=init), temperature=0.05)  # type: ignore[arg-type]
    loss(batch_of()).mean().backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
    assert {"aggregator.lamda", "log_scale", "aggregator.layers.1.out_proj.weight"} <= dict(
        loss.named_parameters()
    ).keys()


def test_an_absent_image_has_no_part() -> None:
    batch = batch_of()
    loss = FusedContrast(Aggregator(D2, dropout=0.0), temperature=0.05)
    expected = loss(batch)
    batch["images"][~batch["mask"]] = torch.nan
    torch.testing.assert_close(loss(batch), expected)


def test_scores_and_loss_are_of_float32_under_autocast() -> None:
    loss, batch = FusedContrast(Aggregator(D2, dropout=0.0), temperature=1 / MAX_SCALE), batch_of()
    visual = functional.normalize(torch.randn(4, D2, generator=torch.Generator().manual_seed(0)), dim=1)
    loss.aggregator.forward = lambda images, mask: visual  # type: ignore[method-assign, assignment]
    expected = loss(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
