"""The trained aggregator: it answers as before it was saved, on a disk and on S3."""

from __future__ import annotations

from pathlib import Path

import torch
from errors import refused
from made_up_artifacts import MODELS

from retrieval.aggregator import Aggregator
from retrieval.artifacts import TrainedAggregator


def test_a_saved_aggregator_answers_as_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Aggregator(8, heads=2, layers=3, dropout=0.25).eval()
    with torch.no_grad():
        network.lamda.fill_(0.7)
    TrainedAggregator.save(tmp_path, network, MODELS, {"steps": 5})
    opened = TrainedAggregator.open(tmp_path)
    features_BKD = torch.randn(4, 5, 8)
    loaded = opened.network()
    assert not loaded.training
    assert torch.equal(loaded(features_BKD), network(features_BKD))
    assert loaded.config == network.config
    assert opened.manifest.weight == network.fusion_weight
    assert opened.manifest.training == {"steps": 5}
    assert opened.manifest.models == MODELS


def test_weights_that_are_not_the_manifests_are_damaged(tmp_path: Path) -> None:
    opened = TrainedAggregator.save(tmp_path, Aggregator(8), MODELS, {})
    file = tmp_path / TrainedAggregator.WEIGHTS
    data = file.read_bytes()
    for content in (b"", data[: len(data) // 2], Aggregator(12).to_bytes()):
        file.write_bytes(content)
        with refused("damaged", file.as_posix()):
            opened.network()
    file.unlink()
    with refused("damaged", file.as_posix()):
        opened.network()


def test_an_aggregator_on_s3(bucket: str) -> None:
    network = Aggregator(8).eval()
    TrainedAggregator.save(f"s3://bucket/aggregator?{bucket}", network, MODELS, {})
    features_BKD = torch.randn(2, 3, 8)
    opened = TrainedAggregator.open(f"s3://bucket/aggregator?{bucket}")
    assert torch.equal(opened.network()(features_BKD), network(features_BKD))
