"""The whole training job in this process: what it publishes, what it refuses, and that it resumes where it stopped."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import refused
from PIL import Image
from synthetic import D1, D2, directions, models, write_queries
from training_world import (
    CLASSES,
    PUBLISHED,
    ROWS,
    SETTINGS,
    K,
    World,
    assert_same_weights,
    checkpoints,
    lines_of,
    profile_of,
    step_of,
    train,
    write_world,
)

import training.trainer
from cluster.hold import HOLDS, hold
from retrieval.artifacts import TrainedAggregator
from retrieval.folder import Folder
from training.trainer import Trained


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def calm(world: World, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run that nothing disturbs."""
    return train(world, tmp_path_factory.mktemp("calm"))


def test_an_aggregator_is_published_with_its_record(calm: Trained, world: World) -> None:
    target = calm.aggregator.folder.local_path
    assert target is not None
    assert sorted({path.name for path in target.iterdir()} - {HOLDS}) == PUBLISHED
    manifest = TrainedAggregator.open(target).manifest
    assert manifest.models == world.queries.manifest.models == models()
    assert (manifest.dim, manifest.heads, manifest.layers, manifest.dropout) == (D2, 2, 2, 0.1)
    record = manifest.training
    labels = record["labels"] + record["validation_labels"]
    assert (len(record["labels"]), sorted(labels)) == (9, CLASSES)
    assert TrainedAggregator.open(target).learned_labels == labels
    assert record["images"] == [1, K]
    assert (record["gallery"]["uri"], record["gallery"]["rows"]) == (world.gallery.uri, 12 * ROWS)
    assert (record["queries"]["uri"], record["queries"]["count"]) == (world.queries.uri, 24)
    for name in ("batch", "steps", "learning_rate", "seed", "rows_per_label", "temperature"):
        assert record["settings"][name] == getattr(SETTINGS, name)
    assert set(record["versions"]) == {"torch", "ray"}
    assert record["history"] == calm.history
    assert (record["best_step"], record["validation_map"]) == (calm.best_step, calm.best_map)


def test_history_is_written_line_by_line_and_the_best_step_is_kept(calm: Trained) -> None:
    assert lines_of(Path(calm.aggregator.uri)) == calm.history
    assert [line["step"] for line in calm.history] == list(range(0, 31, 5))
    assert calm.history[0]["loss"] is None
    assert calm.history[-1]["loss"] < 0.8 * calm.history[1]["loss"]
    best = max(calm.history, key=lambda line: line["map"])
    assert (calm.best_step, round(calm.best_map, 6)) == (best["step"], best["map"])
    assert best["map"] > calm.history[0]["map"]
    assert calm.aggregator.network().fusion_weight == pytest.approx(best["weight"], abs=1e-6)
    assert calm.aggregator.manifest.weight == pytest.approx(best["weight"], abs=1e-6)


def test_curves_are_a_picture(calm: Trained) -> None:
    with Image.open(BytesIO(calm.aggregator.folder.read_bytes("curves.png"))) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > picture.height > 200
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10


def test_artifacts_may_be_given_by_their_uris(calm: Trained, world: World, tmp_path: Path) -> None:
    gallery, queries = world
    made = training.trainer.train(gallery.uri, Path(queries.uri), tmp_path, profile_of(), address="none")
    assert made.history == calm.history


def test_training_stops_when_validation_gets_no_better(world: World, tmp_path: Path) -> None:
    settled = train(world, tmp_path, learning_rate=1e-12, patience=2)
    assert [line["step"] for line in settled.history] == [0, 5, 10]
    assert settled.best_step == settled.aggregator.manifest.training["best_step"] == 0


# A run that stopped.


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def stopped(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The target of a run that ended as its fourth validation was written down, and not yet a checkpoint."""
    target = tmp_path_factory.mktemp("stopped")

    class Stopping(training.trainer.Tracker):
        def write(self, history: list[dict[str, Any]]) -> None:
            super().write(history)
            if len(history) == 4:
                raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.trainer, "Tracker", Stopping)
        with pytest.raises(Stopped):
            train(world, target)
    assert lines_of(target)[-1]["step"] == 15
    assert [step_of(file) for file in checkpoints(target)] == [5, 10]
    assert not (target / "manifest.json").exists()
    yield target
    shutil.rmtree(target)


def test_the_same_call_resumes_where_it_stopped(calm: Trained, world: World, stopped: Path, tmp_path: Path) -> None:
    target, logged = shutil.copytree(stopped, tmp_path / "copy"), []
    resumed = train(world, target, logged.append)
    assert "step 10 " in logged[0]
    assert resumed.history == lines_of(target) == calm.history
    assert_same_weights(resumed, calm, atol=0)
    assert sorted({path.name for path in target.iterdir()} - {HOLDS}) == PUBLISHED


def test_a_half_written_checkpoint_is_skipped(
    calm: Trained, world: World, stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target, logged = shutil.copytree(stopped, tmp_path / "copy"), []
    _, newest = checkpoints(target)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    with caplog.at_level(logging.WARNING, "training.checkpoint"):
        resumed = train(world, target, logged.append)
    assert newest.parent.name in caplog.text
    assert "step 5 " in logged[0]
    assert resumed.history == calm.history
    assert_same_weights(resumed, calm, atol=0)


def test_other_settings_start_over(world: World, stopped: Path, tmp_path: Path) -> None:
    target, logged = shutil.copytree(stopped, tmp_path / "copy"), []
    anew = train(world, target, logged.append, seed=1, steps=5)
    assert not any("resuming" in line for line in logged)
    assert [line["step"] for line in anew.history] == [0, 5]


# Two runs on one target.


def at_the_second_validation(patch: pytest.MonkeyPatch, happening: Callable[[], Any]) -> None:
    """Have something happen in the middle of the next run."""

    class Disturbed(training.trainer.Tracker):
        def write(self, history: list[dict[str, Any]]) -> None:
            super().write(history)
            if len(history) == 2:
                patch.undo()
                happening()

    patch.setattr(training.trainer, "Tracker", Disturbed)


def test_the_second_of_two_is_refused_and_told_who_has_the_target(
    calm: Trained, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def second() -> None:
        with refused("locked", "target") as error:
            train(world, tmp_path, seed=1)
        told.append(str(error.value))

    at_the_second_validation(monkeypatch, second)
    assert train(world, tmp_path).history == calm.history
    [message] = told
    assert f"locked by mindseye train of process {os.getpid()} " in message
    assert not Folder(tmp_path).files(HOLDS)


def test_a_run_that_lost_its_target_publishes_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken_over() -> None:
        with hold(Folder(tmp_path), "another", take_over=True):
            pass

    at_the_second_validation(monkeypatch, taken_over)
    with refused("lock-lost", "target"):
        train(world, tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left & set(PUBLISHED) == {training.trainer.HISTORY}  # which is written while a run goes on


def test_a_target_can_be_taken_over(world: World, tmp_path: Path) -> None:
    another = {"job": "another", "host": "elsewhere", "pid": 1, "since": "today"}
    Folder(tmp_path).write_json(f"{HOLDS}/another.json", another)
    with refused("locked"):
        train(world, tmp_path)
    made = training.trainer.train(*world, tmp_path, profile_of(steps=5), take_over=True, address="none")
    assert TrainedAggregator.open(tmp_path).manifest == made.aggregator.manifest


# What is refused.


def test_vectors_that_are_not_numbers_stop_the_run_and_are_named(tmp_path: Path) -> None:
    world = write_world(tmp_path, spoilt_rows=slice(0, None, 6))  # two of each class
    with refused("not-finite") as error:
        train(world, tmp_path / "target", batch=6)
    assert "loss nan" in str(error.value)
    assert sum(name in str(error.value) for name in CLASSES) == 6
    assert not (tmp_path / "target" / "manifest.json").exists()


def test_a_target_that_holds_an_aggregator_is_refused(calm: Trained, world: World) -> None:
    manifest = Path(calm.aggregator.uri, "manifest.json").read_bytes()
    with refused("target-exists", "target"):
        train(world, Path(calm.aggregator.uri))
    assert Path(calm.aggregator.uri, "manifest.json").read_bytes() == manifest


def test_labels_of_the_evaluation_set_are_refused_by_name(world: World, tmp_path: Path) -> None:
    labels = ["class b", None, "class k", "owl"]
    rng = np.random.default_rng(1)
    evaluation = write_queries(tmp_path / "q", directions(4, D1, rng), [directions(2, D2, rng)] * 4, labels=labels)
    with pytest.raises(ValueError, match=r"class b, class k"):
        training.trainer.train(*world, tmp_path / "target", profile_of(), evaluation=evaluation.uri, address="none")
    assert [path.name for path in (tmp_path / "target").iterdir()] == [HOLDS]


def test_fewer_than_three_labels_are_refused(world: World, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    images, labels = [directions(2, D2, rng)] * 3, ["class b", "class c", "class c"]
    queries = write_queries(tmp_path / "q", directions(3, D1, rng), images, labels=labels)
    with refused("too-few-labels", "label"):
        train(World(world.gallery, queries), tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == [HOLDS]
