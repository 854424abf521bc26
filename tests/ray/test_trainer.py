"""The whole training job: what it publishes, and that workers, kills and half-written files change nothing of it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from synthetic import D1, D2, directions, models, write_gallery, write_queries

from cluster.profile import Generator, IndexSettings, Models, Profile, Queries, Stage, Training
from cluster.session import session
from retrieval.artifacts import Gallery, QuerySet, TrainedAggregator
from retrieval.fusion import unit
from training import trainer
from training.trainer import Trained, train_aggregator

pytestmark = [pytest.mark.slow, pytest.mark.ray]

CLASSES = [f"class {chr(97 + i)}" for i in range(12)]
ROWS, K = 12, 4
SETTINGS = Training(
    cpus=0.5, layers=2, heads=2, dropout=0.1, batch=8, positives=2, rows_per_label=10, steps=30, warm_up=5,
    learning_rate=0.02, validate_every=5, patience=100,
)  # fmt: skip


def profile_of(**changes: Any) -> Profile:
    """A profile of these training settings; it names no models, as training loads none."""
    stage = Stage(max_actors=1, batch=1)
    unused = Generator(uri="unused", steps=1, guidance=0, batch=1)
    return Profile(
        name="test", models=Models(vlm="unused", vision="unused", generator=unused), embed=stage, imagine=stage,
        queries=Queries(images=K, templates="none"), index=IndexSettings(rows_per_shard=1000),
        train=SETTINGS.model_copy(update=changes),
    )  # fmt: skip


class World(NamedTuple):
    gallery: Gallery
    queries: QuerySet


def write_world(folder: Path, *, spoilt_rows: slice = slice(0)) -> World:
    """Twelve classes of twelve images and two queries each; half of the vision coordinates are noise."""
    rng = np.random.default_rng(0)
    text_centres, centres = directions(len(CLASSES), D1, rng), directions(len(CLASSES), D2 // 2, rng)

    def texts(of: np.ndarray) -> np.ndarray:
        return unit(text_centres[of] + 2.0 * directions(len(of), D1, rng))

    def images(of: np.ndarray, noise: float) -> np.ndarray:
        told = centres[of] + 0.1 * rng.standard_normal((len(of), D2 // 2))
        return unit(np.concatenate([told, noise * directions(len(of), D2 // 2, rng)], axis=1))

    row_label, query_label = np.repeat(np.arange(12), ROWS), np.repeat(np.arange(12), 2)
    vlm, vision = texts(row_label), images(row_label, 1.0)
    vision[spoilt_rows, 0] = np.nan
    imagined = [images(np.repeat(label, 1 + q % K), 2.0) for q, label in enumerate(query_label)]
    return World(
        write_gallery(folder / "gallery", vlm, vision, labels=[CLASSES[i] for i in row_label]),
        write_queries(folder / "queries", texts(query_label), imagined, labels=[CLASSES[i] for i in query_label]),
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("world"))


def train(world: World, target: Path, say: Callable[[str], None] = lambda line: None, **changes: Any) -> Trained:
    with session():
        return train_aggregator(*world, str(target), profile_of(**changes), say=say)


def lines_of(target: Path) -> list[dict[str, Any]]:
    file = target / trainer.HISTORY
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def assert_same_weights(one: Trained, other: Trained, *, atol: float) -> None:
    ours, theirs = (dict(made.aggregator.network().state_dict()) for made in (one, other))
    for name in ours:
        if name.endswith("in_proj_bias"):
            # The bias of the keys shifts all attention scores alike: it has no effect and no gradient but rounding,
            # which AdamW scales up to a step.
            ours[name], theirs[name] = (torch.cat([bias[:D2], bias[2 * D2 :]]) for bias in (ours[name], theirs[name]))
        np.testing.assert_allclose(ours[name].numpy(), theirs[name].numpy(), rtol=0, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def calm(world: World, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Trained:
    """A run of one worker that nothing disturbs."""
    return train(world, tmp_path_factory.mktemp("calm"), min_workers=1, max_workers=1)


def test_an_aggregator_is_published_with_its_record(calm: Trained, world: World) -> None:
    target = calm.aggregator.folder.local_path
    assert target is not None
    assert sorted(path.name for path in target.iterdir()) == [
        "curves.png", "manifest.json", "metrics.jsonl", "weights.safetensors",
    ]  # fmt: skip
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


def test_history_is_written_line_by_line_and_the_best_step_is_kept(calm: Trained) -> None:
    target = Path(calm.aggregator.uri)
    assert lines_of(target) == calm.history
    assert [line["step"] for line in calm.history] == list(range(0, 31, 5))
    assert calm.history[0]["loss"] is None
    assert calm.history[-1]["loss"] < 0.8 * calm.history[1]["loss"]
    record = calm.aggregator.manifest.training
    best = max(calm.history, key=lambda line: line["map"])
    assert (record["best_step"], round(record["validation_map"], 6)) == (best["step"], best["map"])
    assert best["map"] > calm.history[0]["map"]
    assert calm.aggregator.network().fusion_weight == pytest.approx(best["weight"], abs=1e-6)
    assert calm.aggregator.manifest.weight == pytest.approx(best["weight"], abs=1e-6)


def test_curves_are_a_picture(calm: Trained) -> None:
    with Image.open(BytesIO(calm.aggregator.folder.read_bytes("curves.png"))) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > picture.height > 200
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10


def test_training_in_process_is_the_same(calm: Trained, world: World, tmp_path: Path) -> None:
    inside = train(world, tmp_path, min_workers=0, max_workers=0)
    assert inside.history == calm.history
    assert_same_weights(inside, calm, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "curves.png", "manifest.json", "metrics.jsonl", "weights.safetensors",
    ]  # fmt: skip


def test_two_workers_end_with_the_weights_of_one(world: World, tmp_path: Path, ray_session: None) -> None:
    # An odd batch, so that one worker has a query more; without dropout, which each worker draws for itself.
    changes: dict[str, Any] = {"dropout": 0.0, "batch": 9, "steps": 20, "validate_every": 20}
    one = train(world, tmp_path / "one", min_workers=0, max_workers=0, **changes)
    two = train(world, tmp_path / "two", min_workers=2, max_workers=2, **changes)
    assert_same_weights(two, one, atol=1e-5)
    assert one.aggregator.manifest.training["best_step"] == two.aggregator.manifest.training["best_step"] == 20
    for ours, theirs in zip(two.history, one.history, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_training_stops_when_validation_gets_no_better(world: World, tmp_path: Path, ray_session: None) -> None:
    settled = train(world, tmp_path, min_workers=0, max_workers=0, learning_rate=1e-12, patience=2)
    assert [line["step"] for line in settled.history] == [0, 5, 10]
    assert settled.aggregator.manifest.training["best_step"] == 0


def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    calm: Trained, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, target = tmp_path / "killed", tmp_path / "target"

    class Deadly(trainer.Tracker):
        """Ends its worker, once, at the third validation: written down, and not yet a checkpoint."""

        def write(self, history: list[dict[str, Any]]) -> None:
            super().write(history)
            if len(history) == 3 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(trainer, "Tracker", Deadly)
    disturbed = train(world, target, min_workers=1, max_workers=1)
    assert killed.exists()
    assert disturbed.history == calm.history
    assert lines_of(target) == calm.history
    assert_same_weights(disturbed, calm, atol=1e-6)
    assert not (target / "runs").exists()


DRIVER = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import ray
from cluster.session import data_defaults
from test_trainer import World, train
from training import trainer
from retrieval.artifacts import Gallery, QuerySet
from pathlib import Path

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         object_store_memory=100 * 2**20)
data_defaults()

class Slow(trainer.Tracker):
    def write(self, history):
        super().write(history)
        if len(history) == 4:  # the fourth is written down, and three checkpoints are there
            import time
            time.sleep(600)

trainer.Tracker = Slow
world = World(Gallery.open({gallery!r}), QuerySet.open({queries!r}))
train(world, Path({target!r}), say=print, min_workers=1, max_workers=1)
"""


@pytest.fixture(scope="module")
def stopped(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The target of a run whose driver, a process with a Ray of its own, was killed after its fourth validation."""
    target, here = tmp_path_factory.mktemp("stopped"), Path(__file__).parents[1]
    script = DRIVER.format(
        tests=str(here), root=str(here.parent), gallery=world.gallery.uri, queries=world.queries.uri, target=str(target)
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(lines_of(target)) >= 4 or driver.poll() is not None, "the fourth validation")
        assert driver.poll() is None, "the driver ended by itself"
        started = psutil.Process(driver.pid).children(recursive=True)
    finally:
        driver.kill()
        driver.wait()
    _, alive = psutil.wait_procs(started, timeout=10)  # Ray's agents ask for a minute where their driver is
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    assert lines_of(target)[-1]["step"] == 15
    assert not (target / "manifest.json").exists()
    yield target
    shutil.rmtree(target)


def checkpoints(target: Path) -> list[Path]:
    return sorted(target.glob("runs/*/step-*/state.pt"))


def go_on(world: World, stopped: Path, target: Path) -> tuple[Trained, list[str]]:
    """The same call again, on a copy of what the killed one left behind; also what it said."""
    said: list[str] = []
    return train(world, target, said.append, min_workers=1, max_workers=1), said


def test_the_same_call_goes_on_where_a_killed_driver_stopped(
    calm: Trained, world: World, stopped: Path, tmp_path: Path
) -> None:
    target = shutil.copytree(stopped, tmp_path / "copy")
    step = int(checkpoints(target)[-1].parent.name.split("-")[1])
    assert 0 < step < SETTINGS.steps
    resumed, said = go_on(world, stopped, target)
    assert said[0] == f"going on from step {step} of an earlier run"
    assert resumed.history == lines_of(target) == calm.history
    assert_same_weights(resumed, calm, atol=1e-6)
    assert not (target / "runs").exists()


def test_a_half_written_checkpoint_is_passed_over(
    calm: Trained, world: World, stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = shutil.copytree(stopped, tmp_path / "copy")
    *_, before, newest = checkpoints(target)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    with caplog.at_level(logging.WARNING, "training.checkpoint"):
        resumed, said = go_on(world, stopped, target)
    assert f"{newest.parent.name} is half-written; the one before it is used" in caplog.text
    assert said[0] == f"going on from step {int(before.parent.name.split('-')[1])} of an earlier run"
    assert resumed.history == calm.history
    assert_same_weights(resumed, calm, atol=1e-6)


def test_other_settings_start_afresh(world: World, stopped: Path, tmp_path: Path, ray_session: None) -> None:
    target, said = shutil.copytree(stopped, tmp_path / "copy"), []
    afresh = train(world, target, said.append, min_workers=0, max_workers=0, seed=1, steps=5)
    assert not any(line.startswith("going on") for line in said)
    assert [line["step"] for line in afresh.history] == [0, 5]


@pytest.mark.parametrize("workers", [0, 1])
def test_vectors_that_are_not_numbers_stop_the_run_and_are_named(
    workers: int, tmp_path: Path, ray_session: None
) -> None:
    world = write_world(tmp_path, spoilt_rows=slice(0, None, 6))  # two of each class
    with pytest.raises(
        ValueError, match=r"not a number at step \d+ \(loss nan\); its batch has the labels class "
    ) as e:
        train(world, tmp_path / "target", min_workers=workers, max_workers=workers, batch=6)
    assert type(e.value) is ValueError
    assert not (tmp_path / "target" / "manifest.json").exists()


def test_a_target_that_holds_an_aggregator_is_refused(calm: Trained, world: World) -> None:
    manifest = Path(calm.aggregator.uri, "manifest.json").read_bytes()
    with pytest.raises(ValueError, match=r"already holds an aggregator; give another target"):
        train_aggregator(*world, calm.aggregator.uri, profile_of())
    assert Path(calm.aggregator.uri, "manifest.json").read_bytes() == manifest


def test_labels_of_the_evaluation_set_are_refused_by_name(world: World, tmp_path: Path, ray_session: None) -> None:
    labels = ["class b", None, "class k", "owl"]
    rng = np.random.default_rng(1)
    evaluation = write_queries(tmp_path / "q", directions(4, D1, rng), [directions(2, D2, rng)] * 4, labels=labels)
    with pytest.raises(ValueError, match=r"2 labels of the training set are also in .*: class b, class k\."):
        train_aggregator(*world, str(tmp_path / "target"), profile_of(), evaluation=evaluation)
    assert not (tmp_path / "target").exists()


def test_fewer_than_three_labels_are_refused(world: World, tmp_path: Path, ray_session: None) -> None:
    rng = np.random.default_rng(1)
    images, labels = [directions(2, D2, rng)] * 3, ["class b", "class c", "class c"]
    queries = write_queries(tmp_path / "q", directions(3, D1, rng), images, labels=labels)
    with pytest.raises(ValueError, match="2 labels with queries and images: training needs at least three"):
        train_aggregator(world.gallery, queries, str(tmp_path / "target"), profile_of())
    assert not (tmp_path / "target").exists()
