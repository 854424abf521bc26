"""Training by Ray Train is training in this process, whatever the number of workers, and survives kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from training_world import (
    SETTINGS,
    World,
    assert_same_weights,
    checkpoints,
    lines_of,
    step_of,
    train,
    write_world,
)
from waiting import wait_until

from training import trainer
from training.sampling import sample_rows
from training.trainer import Trained

ONE = {"address": None, "min_workers": 1, "max_workers": 1}
"""By Ray Train, with one worker."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def calm(world: World, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run in this process that nothing disturbs."""
    return train(world, tmp_path_factory.mktemp("calm"))


def test_two_workers_end_with_the_weights_of_one(world: World, tmp_path: Path, ray_session: None) -> None:
    # An odd batch, so that one worker has a query more; without dropout, which each worker draws for itself.
    changes: dict[str, Any] = {"dropout": 0.0, "batch": 9, "steps": 20, "validate_every": 20}
    one = train(world, tmp_path / "one", **changes)
    two = train(world, tmp_path / "two", address=None, min_workers=2, max_workers=2, **changes)
    assert_same_weights(two, one, atol=1e-5)
    assert one.best_step == two.best_step == 20
    for ours, theirs in zip(two.history, one.history, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    calm: Trained, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
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
    disturbed = train(world, target, **ONE)
    assert killed.exists()
    assert disturbed.history == calm.history
    assert lines_of(target) == calm.history
    assert_same_weights(disturbed, calm, atol=1e-6)
    assert not (target / "runs").exists()


@pytest.mark.long
def test_the_same_call_resumes_after_its_driver_was_killed(
    calm: Trained, world: World, tmp_path: Path, ray_session: None
) -> None:
    script = Path(__file__).with_name("stopped_training.py")
    driver = subprocess.Popen(
        [sys.executable, script, world.gallery.uri, world.queries.uri, tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: len(lines_of(tmp_path)) >= 4 or driver.poll() is not None)
        assert driver.poll() is None, "the driver ended by itself"
        started = psutil.Process(driver.pid).children(recursive=True)
    finally:
        driver.kill()
        driver.wait()
    _, alive = psutil.wait_procs(started, timeout=10)  # Ray's agents ask for a minute where their driver is
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    assert lines_of(tmp_path)[-1]["step"] == 15
    assert not (tmp_path / "manifest.json").exists()
    step = step_of(checkpoints(tmp_path)[-1])
    assert 0 < step < SETTINGS.steps

    logged: list[str] = []
    resumed = train(world, tmp_path, logged.append, **ONE)
    assert f"step {step} " in logged[0]
    assert resumed.history == lines_of(tmp_path) == calm.history
    assert_same_weights(resumed, calm, atol=1e-6)
    assert not (tmp_path / "runs").exists()


def test_ray_samples_the_same_rows(world: World, ray_session: None) -> None:
    wanted = {"class b", "class e", "no such label"}
    sampled = sample_rows(world.gallery, wanted, 5, seed=0)
    with trainer.session("none"):
        plain = sample_rows(world.gallery, wanted, 5, seed=0)
    assert sampled.equals(plain)
    assert sampled.num_rows == 10
