"""The nodes of the cluster that this process is connected to, what is taken of each, and what waits for room."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler.v2.sdk import get_cluster_status

from cluster.session import alive_nodes

POOL = "mindseye/pool"
"""The label of a node that says what it is for: head, cpu, gpu or index."""


@dataclass(frozen=True)
class Use:
    """How much there is of a resource, and how much is taken: CPUs, GPUs, or bytes."""

    used: float
    total: float


@dataclass(frozen=True)
class Node:
    """A node that is alive.

    Attributes:
        name: its host's, and its pool in brackets, if it has one; with a part of its id where hosts share a name.
        temp: the folder of Ray's session on it.
    """

    id: str
    name: str
    ip: str
    pool: str | None
    labels: dict[str, str]
    cpu: Use
    gpu: Use
    memory: Use
    """Bytes that tasks and actors have asked for, not what their processes take."""
    object_store: Use
    temp: str


@dataclass(frozen=True)
class Waiting:
    """So many tasks, actors or bundles of one shape that no node has room for."""

    resources: dict[str, float]
    count: int


@dataclass(frozen=True)
class Nodes:
    """The nodes at one moment, sorted by pool and name."""

    alive: list[Node]
    starting: int
    """Nodes that the autoscaler has asked for."""
    waiting: list[Waiting]


def nodes() -> Nodes:
    """Return what the cluster consists of."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    usage = {
        node.node_id: {each.resource_name: each for each in node.resource_usage.usage} if node.resource_usage else {}
        for node in [*status.active_nodes, *status.idle_nodes]
    }
    alive = alive_nodes()
    hosts = Counter(node["NodeManagerHostname"] for node in alive)
    found = [_node(node, usage.get(node["NodeID"], {}), hosts[node["NodeManagerHostname"]] > 1) for node in alive]
    demands = status.resource_demands
    asked = [*demands.ray_task_actor_demand, *demands.placement_group_demand, *demands.cluster_constraint_demand]
    waiting = [Waiting(dict(each.bundle), each.count) for demand in asked for each in demand.bundles_by_count]
    starting = sum(launch.count for launch in status.pending_launches) + len(status.pending_nodes)
    return Nodes(sorted(found, key=lambda node: (node.pool or "", node.name)), starting, waiting)


def _node(node: dict[str, Any], usage: dict[str, Any], shared_host: bool) -> Node:
    def use(resource: str) -> Use:
        known = usage.get(resource)
        return Use(known.used, known.total) if known else Use(0, node["Resources"].get(resource, 0))

    labels = {key: value for key, value in node["Labels"].items() if not key.startswith("ray.io/")}
    pool = labels.get(POOL)
    name = node["NodeManagerHostname"] + (f"-{node['NodeID'][:6]}" if shared_host else "")
    return Node(
        node["NodeID"],
        f"{name} ({pool})" if pool else name,
        node["NodeManagerAddress"],
        pool,
        labels,
        use("CPU"),
        use("GPU"),
        use("memory"),
        use("object_store_memory"),
        str(Path(node["RayletSocketName"]).parents[1]),
    )
