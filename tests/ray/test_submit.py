"""``mindseye submit``, ``status`` and ``doctor``, as a shell gives them, on a simulated cluster of four nodes."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from cluster.ports import free_port

HERE = Path(__file__).parent
pytestmark = pytest.mark.long
# The commands that the cluster runs are found as those of this environment.
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(HERE.parents[1]),
}


class Simulated(NamedTuple):
    address: str
    dashboard: str


@pytest.fixture(scope="module")
def simulated() -> Iterator[Simulated]:
    port = free_port()
    pipe = subprocess.PIPE
    command = [sys.executable, str(HERE / "simulated_cluster.py"), str(port)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    try:
        address = process.stdout.readline().strip()
        assert address
        yield Simulated(address, f"http://127.0.0.1:{port}")
    finally:
        process.communicate(timeout=120)


def mindseye(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mindseye", *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=500)


def test_status_knows_the_pools_and_what_each_job_is_at(simulated: Simulated) -> None:
    said = mindseye("status", "--json", "--address", simulated.address)
    content = json.loads(said.stdout)
    assert [node["pool"] for node in content["nodes"]] == ["cpu", "cpu", "gpu", "head"]
    assert [node["gpu"]["total"] for node in content["nodes"]] == [0, 0, 7, 0]
    [job] = content["jobs"]
    assert "simulated_cluster.py" in job["command"]
    assert [(stage["what"], stage["done"], stage["total"]) for stage in job["stages"]] == [("counting", 4, 10)]
    assert said.stderr == ""


def test_doctor_names_the_node_that_differs(simulated: Simulated) -> None:
    said = mindseye("doctor", "--address", simulated.address)
    [wrong] = [line for line in said.stdout.splitlines() if "Ray counts 7" in line]
    assert wrong.startswith("FAIL GPUs: ")
    assert "(gpu)" in wrong
    assert "(head)" not in wrong
    assert said.returncode == 1


def test_a_job_runs_on_the_cluster_with_the_files_of_here_and_its_exit_code_is_kept(
    simulated: Simulated, tmp_path: Path, models_folder: Path, profile_settings: dict[str, Any]
) -> None:
    settings = copy.deepcopy(profile_settings)
    settings["models"] |= {role: f"local-dir:{models_folder / role}" for role in ("vlm", "vision")}
    settings["models"]["generator"]["uri"] = str(models_folder / "generator")
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(settings))
    said = mindseye("submit", "--address", simulated.dashboard, "doctor", "--profile", file)
    assert "ok   profile: own" in said.stdout, said
    assert said.stdout.startswith("4 nodes: ")  # RAY_ADDRESS of a job is its cluster; and none of Ray's own lines
    assert said.returncode == 1  # that of doctor, for the GPUs that are not there
    assert "has failed with exit code 1" in said.stderr
    said = mindseye("submit", "--address", simulated.dashboard, "index", "status", tmp_path / "nothing")
    assert said.returncode == 2
    assert "there is no gallery" in said.stdout


def test_ctrl_c_leaves_the_job_running_and_says_how_to_follow_it(simulated: Simulated) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    command = [sys.executable, "-m", "mindseye", "submit", "--address", simulated.dashboard, "doctor"]
    pipe = subprocess.PIPE
    # Whatever runs the tests in the background may have them ignore Ctrl-C, and their processes with them.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True, preexec_fn=heard)
    assert process.stderr
    job = process.stderr.readline().split()[0]
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 130, (printed, said)
    assert f"ray job logs --follow --address {simulated.dashboard} {job}" in said
    assert "Traceback" not in said
    assert JobSubmissionClient(simulated.dashboard).get_job_info(job).status != JobStatus.STOPPED
    sent = mindseye("submit", "--address", simulated.dashboard, "--no-wait", "doctor")
    assert sent.returncode == 0, sent
    assert sent.stdout.strip() in sent.stderr


def test_a_dashboard_asks_for_the_token_of_its_cluster(simulated: Simulated) -> None:
    said = mindseye("submit", "--address", simulated.dashboard, "doctor", RAY_AUTH_TOKEN="0" * 64)
    assert said.returncode == 2
    assert "RAY_AUTH_TOKEN" in said.stderr
    assert "Traceback" not in said.stderr
