"""What the service uses of Ray Serve's private names and texts is there, in the Ray that is installed. No Ray starts.

When one of these fails: put ``serving/ray_names.py`` right, and then the bound of Ray in ``pyproject.toml``.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
import traceback
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from ray.serve import batching
from ray.serve._private import client, deployment_state, replica
from ray.serve._private.http_util import ASGIReceiveProxy
from ray.serve.handle import DeploymentHandle

from retrieval.errors import DamagedError, UserError
from serving import ray_names
from serving.deployments.encoders import VisionTower
from serving.ingress import Ingress
from serving.ray_names import BY_VALUE_BYTES, LateBoundApp, fetched_when_asked, sized_for, user_error_in


def failed_constructor(error: Exception) -> str:
    """The text that Serve's controller keeps of what a constructor raised."""
    try:
        raise error
    except Exception as raised:
        task = RayTaskError("__init__", traceback.format_exc(), raised, "ray::Shard0", 1, "127.0.0.1")
    return str(task.as_instanceof_cause())


def test_the_message_of_a_constructor_is_found_in_what_serve_keeps() -> None:
    message = failed_constructor(UserError("there is no index at s3://a/b: make one", code="missing"))
    text = f"A replica failed to start with exception. Retrying 1 more time(s). Error:\n{message}"
    assert user_error_in(["", text]) == "there is no index at s3://a/b: make one"
    assert user_error_in([f"\x1b[31m{text}\x1b[39m"]) == "there is no index at s3://a/b: make one"
    assert user_error_in([failed_constructor(DamagedError("shard 1 is cut short"))]) == "shard 1 is cut short"
    assert user_error_in([failed_constructor(RuntimeError("ours")), failed_constructor(ValueError("ours"))]) is None


def test_the_last_of_chained_errors_is_the_one() -> None:
    cause, error = UserError("the file is damaged"), UserError("the index cannot be opened")
    error.__cause__ = cause
    assert user_error_in([failed_constructor(error)]) == "the index cannot be opened"


def test_serve_keeps_a_constructors_exception_as_this_text() -> None:
    wrapper = inspect.getsource(deployment_state)
    assert "return ReplicaStartupStatus.FAILED, str(e.as_instanceof_cause())" in wrapper
    assert 'f"Error:\\n{error_msg}"' in wrapper


def test_a_deployment_that_fails_is_a_runtime_error_of_run() -> None:
    source = inspect.getsource(client.ServeControllerClient._wait_for_application_running)
    assert "raise RuntimeError(" in source
    assert "status.app_status.message" in source


def test_a_large_argument_goes_by_reference() -> None:
    assert "_by_reference" in inspect.signature(DeploymentHandle.options).parameters

    class Handle:
        def options(self, **given: Any) -> dict[str, Any]:
            return given

    assert sized_for(Handle(), "encode", BY_VALUE_BYTES) == {"method_name": "encode", "_by_reference": None}
    assert sized_for(Handle(), "encode", BY_VALUE_BYTES + 1) == {"method_name": "encode", "_by_reference": True}


def test_serve_asks_the_ingress_for_its_app_under_this_name() -> None:
    assert hasattr(LateBoundApp, replica.SERVE_BUILD_ASGI_APP_METHOD)
    assert hasattr(Ingress.func_or_class, replica.SERVE_BUILD_ASGI_APP_METHOD)
    assert not hasattr(VisionTower.func_or_class, replica.SERVE_BUILD_ASGI_APP_METHOD)


def test_nothing_of_a_request_is_fetched_before_it_is_asked_for() -> None:
    calls: list[str] = []
    messages = [b"first", b"last"]

    async def fetch(request: str) -> bytes:
        calls.append(request)
        body = messages.pop(0) if messages else None
        message = {"type": "http.request", "body": body, "more_body": bool(messages)}
        return pickle.dumps([message if body else {"type": "http.disconnect"}])

    async def check() -> None:
        proxied = ASGIReceiveProxy({"type": "http"}, "request", fetch)  # type: ignore[arg-type]
        fetching = asyncio.create_task(proxied.fetch_until_disconnect())  # as Serve does
        receive = fetched_when_asked(proxied)
        for count, body in enumerate([b"first", b"last"], 1):
            await asyncio.sleep(0.01)
            assert len(calls) == count - 1
            assert (await receive())["body"] == body
            assert len(calls) == count
        await asyncio.sleep(0.01)
        assert calls == ["request"] * 2  # nobody asked whether the client had gone
        assert await receive() == {"type": "http.disconnect"}
        await fetching
        assert await receive() == {"type": "http.disconnect"}
        assert len(calls) == 3

    asyncio.run(check())


def test_what_comes_without_a_proxy_is_received_as_it_is() -> None:
    async def receive() -> Any:
        return {}

    assert fetched_when_asked(receive) is receive


def test_the_check_that_local_testing_skips_is_there() -> None:
    """``tests/serving_graph.py`` takes it out of a batch queue, where it looks for a replica."""
    assert "def _warn_if_max_batch_size_exceeds_max_ongoing_requests(self" in inspect.getsource(batching)


def test_these_names_stand_in_one_file(pytestconfig: pytest.Config) -> None:
    names = ("_by_reference", "_receive_asgi_messages", "__serve_build_asgi_app__", "\\x1b[")
    for file in sorted((pytestconfig.rootpath / "serving").rglob("*.py")):
        if file.name != "ray_names.py":
            assert not [name for name in names if name in file.read_text(encoding="utf-8")], file


def test_serve_can_be_asked_what_it_runs_and_where() -> None:
    assert inspect.signature(ray_names._get_global_client).parameters["raise_if_no_controller_running"]
    assert inspect.signature(client.ServeControllerClient.get_serve_details)
    assert client.ServeControllerClient.http_config
    assert {"proxies", "applications"} <= set(ray_names.ServeInstanceDetails.model_fields)
