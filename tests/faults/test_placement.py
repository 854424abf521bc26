"""Stages run on the nodes that the profile names, and nodes are lost: on a simulated cluster, by labelled_nodes.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from tiny_artifacts import Collection

from pipelines import job
from pipelines.queries import imagine
from retrieval.artifacts import Gallery, Index, QuerySet, TrainedAggregator
from retrieval.artifacts.columns import matrix
from retrieval.artifacts.queryset import vision_vectors

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500)]

ON_GPUS = {"_described", "Embedder", "_embedded", "Imaginer", "worker"}
ON_INDEX = {"_train", "_build_shard", "_queries", "_found_and_exact"}


@pytest.fixture(scope="module")
def profile_at(models_folder: Path, profile_settings: dict[str, Any]) -> Path:
    file = models_folder.parent / "placed.yaml"
    file.write_text(yaml.safe_dump(profile_settings))
    return file


def report(mode: str, folder: Path, profile: Path, target: Path | None = None) -> dict[str, Any]:
    """Run the program; return what it reports."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    # A lost node is noticed after three seconds, in the place of fifteen and more.
    environment |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
    script = Path(__file__).parent / "labelled_nodes.py"
    command = [sys.executable, *map(str, [script, mode, folder, profile, target or folder / "target"])]
    with (folder / "output").open("w") as output:
        done = subprocess.run(command, env=environment, stdout=output, stderr=output, check=False, timeout=1200)
    print((folder / "output").read_text()[-8000:])
    assert done.returncode == 0
    text = (folder / "report.json").read_text()
    print(text)
    said: dict[str, Any] = json.loads(text)
    return said


def test_every_stage_runs_on_the_pool_that_the_profile_names(profile_at: Path, tmp_path: Path) -> None:
    said = report("placed", tmp_path, profile_at)
    pools = said["pools"]
    assert pools.keys() >= ON_GPUS | ON_INDEX
    for stage in ON_GPUS:
        assert pools[stage] == ["gpu"], stage
    for stage in ON_INDEX:
        assert pools[stage] == ["index"], stage
    served = {name: set(pools) for name, pools in said["served"].items()}
    expected = {
        "Ingress": "cpu",
        "Ranker": "cpu",
        "VLMTowers": "gpu",
        "VisionTower": "gpu",
        "ImaginingGenerator": "gpu",
    }
    expected |= {"Shard0": "index", "Shard1": "index"}
    assert {name: pools for name, pools in served.items() if name in expected} == {
        name: {pool} for name, pool in expected.items()
    }
    assert said["shards"][0] != said["shards"][1]
    assert said["shards_answered"] == [2, 2]
    assert "needs 0.5 CPUs and 1 GPU on one node where mindseye/pool=tpu, and there is none" in said["said"]
    assert "2 nodes of 2 CPUs and 2 GPUs (mindseye/pool=gpu)" in said["said"]
    assert said["said_after"] < 5


def test_nodes_that_are_lost_cost_no_row(profile_at: Path, tmp_path: Path) -> None:
    disturbed, calm = tmp_path / "disturbed", tmp_path / "calm"
    said = report("jobs", disturbed, profile_at)
    assert said["attempts"] >= 2  # the training was begun again
    assert TrainedAggregator.open(disturbed / "aggregator").manifest
    job.index(disturbed / "images", calm / "target", profile_at, shards=2, factory="IVF2,Flat", address="none")
    imagine(disturbed / "classes.csv", calm / "queries", profile_at, address="none")
    folders = disturbed, calm
    one, two = (pa.concat_tables(Gallery.open(each / "target/gallery").tables()).sort_by("id") for each in folders)
    assert one.num_rows == two.num_rows == 120
    for name in ("id", "path", "label"):
        assert one[name].to_pylist() == two[name].to_pylist()
    for name in ("vlm", "vision"):
        np.testing.assert_allclose(matrix(one[name]), matrix(two[name]), atol=2**-10, rtol=0)
    assert Index.open(disturbed / "target/index").manifest.rows == 120
    made, undisturbed = (QuerySet.open(each / "queries").table().sort_by("id") for each in folders)
    assert made["id"].to_pylist() == undisturbed["id"].to_pylist()
    np.testing.assert_allclose(vision_vectors(made)[0], vision_vectors(undisturbed)[0], atol=2**-9, rtol=0)


def test_a_shard_whose_node_is_lost_costs_no_answer(profile_at: Path, collection: Collection, tmp_path: Path) -> None:
    said = report("service", tmp_path / "service", profile_at, collection.folder)
    assert said["apart"]
    assert said["before"] > 40
    assert said["partial"] > 0
    assert said["failed_later"] == []
    # Those on their way when the node was lost: one of each of the four that ask.
    assert len(said["in_flight"]) <= 4
