"""Whether nodes have room for stages: which are allowed, how many actors they hold, and what is said if they do not."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import ray
from errors import refused

import cluster.room as module
from cluster.profile import Placement, Shards
from cluster.room import Capacity, Demand, check_room, preferred, room, trouble
from cluster.session import session

HEAD, CPU = Capacity({"pool": "head"}, 0, 0), Capacity({"pool": "cpu"}, 4, 0)
GPU = Capacity({"pool": "gpu", "ray.io/node-id": "7f"}, 8, 2)
NODES = [HEAD, CPU, CPU, GPU]


def place(pool: str | None = None, cpus: float = 1, gpus: float = 0, **fallback: Any) -> Placement:
    return Placement(labels={"pool": pool} if pool else {}, cpus=cpus, gpus=gpus, **fallback)


@pytest.mark.parametrize(
    ("stage", "count"),
    [
        (place(), 16),
        (place("gpu", fallback=[]), 8),
        (place("gpu"), 16),
        (place("gpu", gpus=1), 2),
        (place("cpu", cpus=3, fallback=[]), 2),
        (place("cpu", cpus=3, fallback=[{"pool": "gpu"}]), 4),
        (place("none", fallback=[]), 0),
        (place("gpu", cpus=0.1, fallback=[]), 80),
        (place("cpu", cpus=0, fallback=[]), math.inf),
    ],
)
def test_room_is_what_the_nodes_hold_that_a_stage_may_have(stage: Placement, count: float) -> None:
    assert room(stage, NODES) == count


def test_the_first_selector_is_preferred_that_has_room() -> None:
    stage = place("cpu", cpus=3, fallback=[{"pool": "gpu"}, {}])
    assert preferred(stage, NODES) == ({"pool": "cpu"}, [CPU, CPU])
    assert preferred(stage.resized(5), NODES) == ({"pool": "gpu"}, [GPU])
    assert preferred(stage, NODES, 3) == ({}, NODES)
    assert preferred(stage.resized(9), NODES) == ({"pool": "cpu"}, [])


def demand(stage: Placement, actors: int = 1, shard: int | None = None) -> Demand:
    return Demand("imagining", "imagine", stage, actors, shard)


@pytest.mark.parametrize(
    "demands",
    [
        [],
        [demand(place("gpu", cpus=8, gpus=2, fallback=[]))],
        [demand(place("tpu", cpus=8, gpus=2))],
        [demand(place(gpus=0.5), 4)],
        [demand(place("head", cpus=0, fallback=[]), 3)],
        [demand(place("gpu", gpus=1, fallback=[])), demand(place("gpu", gpus=1, fallback=[]))],
        [demand(Shards(labels={"pool": "in(cpu,x{shard})"}, fallback=[], cpus=4), 2, shard=1)],
    ],
)
def test_there_is_room(demands: list[Demand]) -> None:
    assert trouble(demands, NODES) is None


@pytest.mark.parametrize(
    ("demands", "field", "says"),
    [
        ([demand(place("tpu", fallback=[]))], "imagine.labels", "needs 1 CPU on one node where pool=tpu,"),
        ([demand(place("gpu", fallback=[{"pool": "tpu"}], cpus=9))], "imagine.cpus", "pool=gpu or else pool=tpu"),
        ([demand(place("cpu", gpus=1, fallback=[]))], "imagine.labels", "1 CPU and 1 GPU on one node where pool=cpu,"),
        ([demand(place("head", fallback=[]))], "imagine.labels", "1 node of 0 CPUs (pool=head)"),
        ([demand(place(cpus=9))], "imagine.cpus", "9 CPUs on one node"),
        ([demand(place(gpus=3))], "imagine.gpus", "1 node of 8 CPUs and 2 GPUs (pool=gpu)"),
        ([demand(place(cpus=3), 5)], "imagine.cpus", "5 times 3 CPUs"),
        ([demand(place("gpu", gpus=2)), demand(place(gpus=0.5))], "imagine.gpus", "need 2.5 GPUs"),
        ([demand(place("cpu", cpus=3, fallback=[]), 2), demand(place(cpus=4), 3)], "imagine.cpus", "18 CPUs"),
        (
            [demand(place("cpu", cpus=3, fallback=[]), 2), demand(place("cpu", cpus=1.5, fallback=[]), 2)],
            "imagine.cpus",
            "9 CPUs",
        ),
        ([demand(Shards(labels={"n": "{shard}"}, fallback=[]), shard=7)], "imagine.labels", "n=7"),
    ],
)
def test_what_no_nodes_hold_is_said_with_what_there_is(demands: list[Demand], field: str, says: str) -> None:
    found = trouble(demands, NODES)
    assert found
    assert found.field == field
    assert says in found.sentence
    assert "2 nodes of 4 CPUs (pool=cpu); " in found.sentence
    assert "ray.io" not in found.sentence


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Capacity]], None]:
    """Set the nodes that Ray has."""
    monkeypatch.setattr(module, "in_process", lambda: False)

    def there(nodes: list[Capacity]) -> None:
        resources = [{"CPU": node.cpus, "GPU": node.gpus} for node in nodes]
        of_ray = [
            {"Labels": node.labels, "Resources": has, "Alive": True} for node, has in zip(nodes, resources, strict=True)
        ]
        of_ray.append({"Labels": {"pool": "lost"}, "Resources": {"CPU": 99.0}, "Alive": False})
        monkeypatch.setattr(ray, "nodes", lambda: of_ray)

    return there


def test_what_no_node_will_hold_is_refused_at_once(nodes: Callable[[list[Capacity]], None]) -> None:
    nodes(NODES)
    check_room(demand(place(cpus=8)))
    with refused("no-room", "imagine.cpus") as error:
        check_room(demand(place(cpus=64)))
    assert "64 CPUs on one node, and there is none" in str(error.value)
    with refused("no-room", "imagine.labels"):
        check_room(demand(place("lost", fallback=[])))


def test_an_autoscaler_may_start_what_is_missing_which_is_said(
    nodes: Callable[[list[Capacity]], None], caplog: pytest.LogCaptureFixture
) -> None:
    nodes([HEAD._replace(labels={"pool": "head", "ray.io/node-group": "head"}), CPU])
    with caplog.at_level(logging.WARNING):
        check_room(demand(place("gpu", gpus=1, fallback=[])))
    assert "imagining needs 1 CPU and 1 GPU on one node where pool=gpu" in caplog.text
    assert "waiting" in caplog.text


def test_in_this_process_nothing_waits_for_room() -> None:
    with session("none"):
        check_room(demand(place(cpus=10_000)))
