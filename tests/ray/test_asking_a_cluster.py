"""What ``mindseye status`` and ``mindseye doctor`` learn of a cluster, here the suite's own Ray of one node."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from command_line import Run

from cluster import fleet
from cluster.doctor import Check
from cluster.drivers import running_jobs
from cluster.nodes import nodes
from cluster.progress import Stage, progress, stages


@pytest.fixture
def address(ray_session: None) -> str:
    return ray.get_runtime_context().gcs_address


def test_status_says_what_is_taken_of_a_node(address: str, run: Run) -> None:
    @ray.remote(num_cpus=1)
    class Taking:
        def ready(self) -> bool:
            return True

    taking = Taking.remote()
    assert ray.get(taking.ready.remote())
    deadline = time.monotonic() + 60
    while True:  # nodes report at intervals
        said = run("status", "--json", "--address", address)
        [node] = json.loads(said.out)["nodes"]
        if node["cpu"] == {"used": 1, "total": 2} or time.monotonic() > deadline:
            break
    ray.kill(taking)
    assert said.code == 0
    assert node["cpu"] == {"used": 1, "total": 2}
    assert node["object_store"]["total"] == 300 * 2**20
    assert Path(node["temp"]).is_dir()


def test_what_a_job_is_at_can_be_asked_while_it_runs(address: str) -> None:
    mine = ray.get_runtime_context().get_job_id()

    def counting() -> list[Stage]:
        return [stage for stage in stages().get(mine, []) if stage.what == "counting"]

    with progress("counting", 10) as counter:
        counter.add(4)
        counter.flush()
        [stage] = counting()
        assert stage[:3] == ("counting", 4, 10)
        assert stage.seconds >= 0
        assert mine not in [job.id for job in running_jobs()]  # whoever asks is no news
    deadline = time.monotonic() + 60
    while counting() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not counting()


def test_doctor_checks_a_node_from_a_process_on_it(address: str, run: Run, tmp_path: Path, profile_file: Path) -> None:
    said = run("doctor", "--address", address, "--profile", profile_file, "--uri", tmp_path)
    lines = said.out.splitlines()
    for what in ("Python", "mindseye", "ray", "torch", "faiss", "environment", "authentication", "vlm", "generator"):
        assert any(line.startswith(f"ok   {what}: ") for line in lines), (what, said.out)
    assert f"ok   read {tmp_path}: readable" in lines
    assert f"ok   write {tmp_path}: writable" in lines
    assert list(tmp_path.iterdir()) == []
    assert said.code == int(any(line.startswith("FAIL") for line in lines))
    missing = run("doctor", "--address", address, "--uri", "/proc/nothing").out
    assert "FAIL read /proc/nothing: " in missing


def test_a_node_that_does_not_answer_is_named_in_time(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleeping() -> None:
        time.sleep(3600)

    def without_ours() -> None:
        raise ModuleNotFoundError("No module named 'cluster'")

    def broken() -> None:
        raise KeyError("ours")

    monkeypatch.setattr(fleet, "NODE_SECONDS", 1)
    [node] = nodes().alive
    answers: dict[str, Check] = fleet._ask(sleeping, [(node, ())])
    assert "no answer within 1 s" in answers[node.name].found
    monkeypatch.undo()
    answers = fleet._ask(without_ours, [(node, ())])
    assert "No module named 'cluster'" in answers[node.name].found
    answers = fleet._ask(broken, [(node, ())])
    assert "the checks failed there" in answers[node.name].found  # no fault of the node's
    assert "install" not in answers[node.name].remedy
    answers = fleet._ask(without_ours, [(replace(node, id="0" * 56), ())])  # it was lost meanwhile
    assert not answers[node.name].ok
