"""``mindseye status``: what is printed of a cluster."""

from __future__ import annotations

import json

import pytest
from command_line import Run, one_line_error

from cluster.drivers import Job, command_in
from cluster.nodes import Node, Nodes, Use, Waiting
from cluster.progress import Stage
from commands.status import as_text, print_applications, print_jobs, print_nodes
from serving.deployments.messages import Served
from serving.running import ApplicationState, DeploymentState

GIB = 2**30
HEAD = Node("aa", "head-1 (head)", "10.0.0.1", "head", {}, Use(0, 0), Use(0, 0), Use(0, GIB), Use(0, GIB), "/tmp/ray/x")
GPU = Node(
    "bb", "gpu-1 (gpu)", "10.0.0.2", "gpu", {"mindseye/pool": "gpu"}, Use(2.5, 8), Use(1, 1), Use(GIB, 4 * GIB),
    Use(GIB / 2, 2 * GIB), "/tmp/ray/x",
)  # fmt: skip
NODES = Nodes([GPU, HEAD], 2, [Waiting({"CPU": 1, "GPU": 1}, 3)])
STAGES = [Stage("embedding images", 1_500, 6_000, 30.0), Stage("building shards", 0, None, 1.0)]
JOBS = [Job("01000000", "raysubmit_x", "mindseye index s3://a s3://b", 1_000.0, "10.0.0.1", STAGES)]
SERVED = Served("s3://b/index/2", "2", "s3://b/gallery", 10_368, 3, {}, 0.5)
APPLICATIONS = [
    ApplicationState(
        "mindseye", "RUNNING", "", "http://10.0.0.1:8000", 1_000.0, SERVED,
        [
            DeploymentState("Ranker", "HEALTHY", 2, {"RUNNING": 2}, ""),
            DeploymentState("Shard0", "UPSCALING", 2, {"RUNNING": 1, "STARTING": 1}, "no node has\nso many GPUs"),
        ],
    ),
    ApplicationState("other", "DEPLOYING", "it starts", None, 1_000.0, None, []),
]  # fmt: skip


def test_a_cluster_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    print_nodes(NODES)
    rows = [line for line in capsys.readouterr().out.splitlines() if "10.0.0" in line or line[0].isalpha()]
    cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
    assert cells == [
        ["nodes: 2, and 2 starting"],
        ["gpu-1 (gpu)", "10.0.0.2", "2.5 of 8", "1 of 1", "1.0 of 4.0 GiB", "0.5 of 2.0 GiB"],
        ["head-1 (head)", "10.0.0.1", "none", "none", "0.0 of 1.0 GiB", "0.0 of 1.0 GiB"],
        ["waiting for room: 3 × (1 CPU, 1 GPU)"],
    ]


def test_jobs_say_what_they_are_at(capsys: pytest.CaptureFixture[str]) -> None:
    print_jobs(JOBS, now=1_090.0)
    assert capsys.readouterr().out.splitlines() == [
        "jobs: 1",
        "  raysubmit_x, 1 min 30 s, on 10.0.0.1: mindseye index s3://a s3://b",
        "    embedding images: 1,500 of 6,000 (25%) in 30 s, 50.0/s",
        "    building shards: 0 in 1 s",
    ]
    print_jobs([], now=0)
    assert capsys.readouterr().out == "jobs: none\n"


def test_a_service_says_which_version_it_serves(capsys: pytest.CaptureFixture[str]) -> None:
    print_applications(APPLICATIONS)
    assert capsys.readouterr().out.splitlines() == [
        "applications: 2",
        "  mindseye: RUNNING, at http://10.0.0.1:8000",
        "    serves s3://b/index/2 (version 2, 10,368 images in 3 shards)",
        "    Ranker: HEALTHY, 2 of 2 replicas",
        "    Shard0: UPSCALING, 1 of 2 replicas (1 STARTING)",
        "      no node has",
        "  other: DEPLOYING, not to be reached from here",
        "    it starts",
    ]
    print_applications([])
    assert capsys.readouterr().out == "applications: none\n"


def test_all_of_it_is_json_for_programs() -> None:
    content = json.loads(as_text(NODES, JOBS, APPLICATIONS))
    assert content["nodes"][0]["cpu"] == {"used": 2.5, "total": 8}
    assert content["waiting"] == [{"resources": {"CPU": 1, "GPU": 1}, "count": 3}]
    assert content["jobs"][0]["stages"][0] == {"what": "embedding images", "done": 1500, "total": 6000, "seconds": 30.0}
    assert content["applications"][0]["served"]["version"] == "s3://b/index/2"


@pytest.mark.parametrize(
    ("entrypoint", "command"),
    [
        ("/venv/bin/python /venv/bin/mindseye index 'my photos' out", "mindseye index 'my photos' out"),
        ("mindseye serve s3://b", "mindseye serve s3://b"),
        ("python -m mindseye index a b", "mindseye index a b"),
        ("python -c 'import time' mindseye's", "python -c 'import time' mindseye's"),
        ("python job.py", "python job.py"),
    ],
)
def test_the_command_of_a_job_is_what_a_person_gave(entrypoint: str, command: str) -> None:
    assert command_in(entrypoint) == command


def test_it_says_in_seconds_that_no_cluster_answers(run: Run) -> None:
    one_line_error(run("status", "--address", "127.0.0.1:1"), "nothing answers at 127.0.0.1:1")
    one_line_error(run("status", "--address", "http://head:8265"), "mindseye submit")
    one_line_error(run("status", "--address", "none"), "needs Ray")
    one_line_error(run("doctor", "--address", "127.0.0.1:1"), "nothing answers")
    one_line_error(run("doctor", "--uri", "/tmp"), "--address")
