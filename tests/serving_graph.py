"""The service's graph in this process: Serve's local testing mode, without Ray."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import api, batching
from ray.serve.handle import DeploymentHandle

from serving.app import ServeArgs, plan
from serving.ingress import Service

# Ray 2.60: a batch queue looks for its replica, only to compare two settings, and in local testing mode there is none.
batching._BatchQueue._warn_if_max_batch_size_exceeds_max_ongoing_requests = lambda self: None
_make_handle = api.make_local_deployment_handle


def _handle_of_the_mode(*deployment: Any) -> DeploymentHandle:
    """Ray 2.60: with the throughput settings a handle takes its router to run in the caller's event loop, and that of
    local testing mode never does.
    """
    handle = _make_handle(*deployment)
    handle._init(_run_router_in_separate_loop=True)
    return handle


api.make_local_deployment_handle = _handle_of_the_mode


@serve.deployment
class Held:
    """Keeps what it was bound to: handles, once Serve has made them of the bound deployments."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def value(self) -> Any:
        return self._value


def local(bound: Any) -> Any:
    """Return ``bound`` with a handle in the place of every bound deployment; each of them runs in a thread here."""
    held = serve.run(Held.bind(bound), _local_testing_mode=True)
    return held.value.remote().result()


def local_service(**args: Any) -> Service:
    return local(plan(ServeArgs(**args)))
