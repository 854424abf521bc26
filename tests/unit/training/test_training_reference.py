"""Importing the checkpoint that the method's authors released."""

from __future__ import annotations

import contextvars
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from errors import refused
from synthetic import D1, D2, directions, write_gallery

from cluster.hold import hold
from retrieval.aggregator import Aggregator
from retrieval.artifacts import Gallery, TrainedAggregator
from retrieval.folder import Folder
from training.reference import import_reference


def released(network: Aggregator, prefix: str = "") -> dict[str, torch.Tensor]:
    """The state dict as the authors save it: their names, and a template that is never used."""
    state = {f"{prefix}self_attn.{name}": tensor for name, tensor in network.state_dict().items() if name != "lamda"}
    template = {f"{prefix}attn_layer.in_proj_weight": torch.zeros(3, 3)}
    return state | template | {f"{prefix}lamda": network.lamda.detach().reshape(1)}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    rng = np.random.default_rng(0)
    return write_gallery(tmp_path_factory.mktemp("world") / "gallery", directions(5, D1, rng), directions(5, D2, rng))


@pytest.fixture
def network() -> Aggregator:
    torch.manual_seed(0)
    network = Aggregator(D2, layers=3).eval()
    with torch.no_grad():
        network.lamda.fill_(0.7)
    return network


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_imported_checkpoint_pools_as_the_network_it_was_saved_from(
    tmp_path: Path, gallery: Gallery, network: Aggregator, wrap: Any, prefix: str
) -> None:
    torch.save(wrap(released(network, prefix)), tmp_path / "released.pth")
    import_reference(tmp_path / "released.pth", str(tmp_path / "aggregator"), gallery)
    opened = TrainedAggregator.open(tmp_path / "aggregator")
    features = torch.from_numpy(directions(8, D2, np.random.default_rng(1)).reshape(2, 4, D2))
    assert torch.equal(opened.network()(features), network(features))
    assert opened.manifest.weight == pytest.approx(network.fusion_weight)
    assert opened.manifest.models == gallery.manifest.models
    assert opened.manifest.training["imported"]["file"] == "released.pth"
    opened.check_fits(gallery)


def test_a_checkpoint_of_another_dimension_is_refused_with_both(tmp_path: Path, gallery: Gallery) -> None:
    torch.save(released(Aggregator(D2 + 4)), tmp_path / "released.pth")
    with refused("dimensions-differ", "like") as error:
        import_reference(tmp_path / "released.pth", str(tmp_path / "aggregator"), gallery)
    for fact in (f"of {D2 + 4} dimensions", f"gallery have {D2};"):
        assert fact in str(error.value)
    assert not (tmp_path / "aggregator").exists()


class Foreign:
    """What a checkpoint may not hold."""


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (Foreign(), "Foreign"),
        ({"epoch": 3}, "no state dict"),
        ({"layers.0.weight": torch.zeros(2)}, "self_attn.layers.0.out_proj.weight"),
    ],
)
def test_what_is_no_checkpoint_is_refused_and_never_run(
    tmp_path: Path, gallery: Gallery, content: Any, fact: str
) -> None:
    torch.save(content, tmp_path / "released.pth")
    with refused("not-a-checkpoint", "file") as error:
        import_reference(tmp_path / "released.pth", str(tmp_path / "aggregator"), gallery)
    assert fact in str(error.value)


def test_a_missing_file_and_a_taken_target_are_named(tmp_path: Path, gallery: Gallery, network: Aggregator) -> None:
    with refused("no-such-file", "file"):
        import_reference(tmp_path / "nowhere.pth", str(tmp_path / "aggregator"), gallery)
    TrainedAggregator.save(tmp_path / "taken", network, gallery.manifest.models, {})
    torch.save(released(network), tmp_path / "released.pth")
    with refused("target-exists", "target"):
        import_reference(tmp_path / "released.pth", str(tmp_path / "taken"), gallery)


def test_a_target_that_another_job_writes_to_is_refused(tmp_path: Path, gallery: Gallery, network: Aggregator) -> None:
    torch.save(released(network), tmp_path / "released.pth")
    target = tmp_path / "aggregator"
    with hold(Folder(target), "mindseye train"), refused("locked", "target"):
        import_reference(tmp_path / "released.pth", str(target), gallery)
    assert not (target / "weights.safetensors").exists()
    another, elsewhere = hold(Folder(target), "mindseye train"), contextvars.copy_context()
    elsewhere.run(another.__enter__)
    import_reference(tmp_path / "released.pth", str(target), gallery, take_over=True)
    elsewhere.run(another.__exit__, None, None, None)
    assert TrainedAggregator.open(target)


def test_a_target_that_another_job_took_over_meanwhile_is_left_to_it(
    tmp_path: Path, gallery: Gallery, network: Aggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(released(network), tmp_path / "released.pth")
    target, looked = Folder(tmp_path / "aggregator"), list[Folder]()

    def look(folder: Folder) -> None:
        """The second time is after this job has the lock."""
        looked.append(folder)
        if len(looked) == 2:
            with hold(target, "mindseye train", take_over=True):
                pass

    monkeypatch.setattr(TrainedAggregator, "check_new", look)
    with refused("lock-lost", "target"):
        import_reference(tmp_path / "released.pth", target.uri, gallery)
    assert len(looked) == 2
    assert target.files() == []
