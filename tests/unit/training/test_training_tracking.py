"""Where the metrics of a run go."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from training.tracking import Tracker

FIRST = {"step": 0, "loss": None, "map": 0.5, "weight": 0.5}
SECOND = {"step": 25, "loss": 0.25, "map": 0.75, "weight": 0.5}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_after_the_checkpoint_that_a_run_resumes_from_do_not_stay(tmp_path: Path) -> None:
    tracker = Tracker(str(tmp_path), "metrics.jsonl", "run", {})
    tracker.write([FIRST, SECOND, SECOND | {"step": 50}])
    tracker.write([FIRST, SECOND])
    assert lines(tmp_path) == [FIRST, SECOND]


def test_mlflow_gets_one_run_with_settings_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'mindseye[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    Tracker(str(tmp_path), "metrics.jsonl", "run", {"batch": 128}).write([FIRST])
    # As after a restart: another object, the same run.
    Tracker(str(tmp_path), "metrics.jsonl", "run", {"batch": 128}).write([FIRST, SECOND])
    [run] = mlflow.search_runs(experiment_names=["mindseye"], output_format="list")
    assert run.data.params == {"batch": "128"}
    assert run.data.metrics == {"loss": 0.25, "map": 0.75, "weight": 0.5}
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "map")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.5), (25, 0.75)]


def test_a_tracking_server_that_fails_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow", reason="pip install 'mindseye[mlflow]'")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())  # which MLflow 3 refuses by itself
    with caplog.at_level(logging.WARNING):
        Tracker(str(tmp_path), "metrics.jsonl", "run", {}).write([FIRST])
    assert lines(tmp_path) == [FIRST]
    assert "MLflow" in caplog.text
