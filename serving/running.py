"""What Ray Serve runs on the cluster that this process is connected to, and which versions of which index it serves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import ray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from serving.deployments.messages import Served
from serving.instance import Instance
from serving.ray_names import handle_without_a_loop, serve_details

ANSWER_SECONDS = 10
RANKER = "Ranker"
"""The deployment that knows what is served."""


@dataclass(frozen=True)
class DeploymentState:
    """A deployment: how it is, and how many of its replicas there are in each state."""

    name: str
    status: str
    wanted: int
    replicas: dict[str, int]
    message: str


@dataclass(frozen=True)
class ApplicationState:
    """An application of Serve.

    Attributes:
        url: where it answers programs on this node; None if that is nowhere.
        served: which version of which index; None for an application that is not mindseye's, or does not answer.
    """

    name: str
    status: str
    message: str
    url: str | None
    since: float
    served: Served | None
    deployments: list[DeploymentState]


def applications() -> list[ApplicationState]:
    """Return the applications of Serve, by name; none where it does not run."""
    found, instance = serve_details(), Instance.running()
    if found is None or instance is None:
        return []
    url = instance.url(ray.get_runtime_context().get_node_id())
    states = []
    for name, one in sorted(found[1].applications.items()):
        deployments = [
            DeploymentState(
                each.name,
                each.status.value,
                each.target_num_replicas,
                dict(Counter(replica.state.value for replica in each.replicas)),
                each.message,
            )
            for _, each in sorted(one.deployments.items())
        ]
        route = (one.route_prefix or "").rstrip("/")
        states.append(
            ApplicationState(
                name,
                one.status.value,
                one.message,
                f"{url}{route}" if url and one.route_prefix else None,
                one.last_deployed_time_s,
                _served(name, deployments),
                deployments,
            )
        )
    return states


def _served(application: str, deployments: list[DeploymentState]) -> Served | None:
    if not any(each.name == RANKER and each.replicas.get("RUNNING") for each in deployments):
        return None
    try:
        served = handle_without_a_loop(RANKER, application).served.remote().result(timeout_s=ANSWER_SECONDS)
    except (RayError, RayServeException, TimeoutError, AttributeError):  # another's Ranker, or one that hangs
        return None
    return served if isinstance(served, Served) else None
