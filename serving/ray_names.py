"""What the service uses of Ray Serve that is no documented interface: names, and the text of a message.

Verified with Ray 2.60. ``tests/unit/serving/test_serving_ray_names.py`` fails when Ray changes one of them.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve._private.http_util import ASGIReceiveProxy
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ServeInstanceDetails
from starlette.types import Message, Receive

from retrieval.errors import DamagedError, UserError

BY_VALUE_BYTES = 512 * 1024
"""Larger arguments go through Ray's object store: what is sent along with a call is limited, and slow when large."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_USER_ERROR = re.compile(rf"\b(?:{UserError.__name__}|{DamagedError.__name__}): (.+)")


def sized_for(handle: Any, method: str, size: int) -> Any:
    """Return the method of a deployment handle for a call with an argument of so many bytes.

    Serve decides for a whole process whether arguments are sent along or as references; the option for a single call is
    private.
    """
    return handle.options(method_name=method, _by_reference=size > BY_VALUE_BYTES or None)


def fetched_when_asked(receive: Receive) -> Receive:
    """Return a ``receive`` in the place of the one that Serve gave to an ASGI application: it fetches when it is asked.

    Serve calls its proxy for the body of each request, and then again to hear of the client's leaving, whether or not
    anybody wants to know, and each time that is the call of an actor. When the client leaves, the proxy cancels the
    request in any case. Has to be called before the application first waits for anything.
    """
    if not isinstance(receive, ASGIReceiveProxy):  # there is no proxy between
        return receive
    proxied, fetch, wanted = receive, receive._receive_asgi_messages, asyncio.Event()

    async def fetch_when_wanted(request: Any) -> bytes:
        await wanted.wait()
        wanted.clear()
        return await fetch(request)

    async def asked() -> Message:
        if proxied.queue.empty():
            wanted.set()
        return await proxied()

    proxied._receive_asgi_messages = fetch_when_wanted
    return asked


def serve_details() -> tuple[HTTPOptions, ServeInstanceDetails] | None:
    """Return where Serve listens, and what its REST API says of it, without the dashboard that this would need; None if
    Serve does not run. (Of options that were not given, the API shows other defaults than those that hold.)
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    return (client.http_config, ServeInstanceDetails(**client.get_serve_details())) if client else None


def handle_without_a_loop(deployment: str, application: str) -> DeploymentHandle:
    """Return a handle that any thread of this process may use. With the throughput settings, Serve's own belongs to the
    event loop in which it was first used, and ends Serve's shutdown with an error once that loop is closed.
    """
    handle = serve.get_deployment_handle(deployment, application)
    if not handle.is_initialized:
        handle._init(_run_router_in_separate_loop=True)
    return handle


class LateBoundApp(ABC):
    """Base of a class under ``@serve.ingress()``: Serve asks it for its ASGI app when it has been constructed.

    By ``@serve.ingress(app)`` the app would exist before the replica does, and travel to it.
    """

    @abstractmethod
    def asgi_app(self) -> FastAPI:
        """Return the application that answers this replica's requests."""

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self.asgi_app()


def user_error_in(messages: Iterable[str]) -> str | None:
    """Return the message of a ``UserError`` that a replica's constructor raised; None if none of ``messages`` has one.

    Of such an exception Serve's controller keeps a message alone, with a coloured traceback in it.
    """
    for message in messages:
        if found := _USER_ERROR.findall(_COLOURS.sub("", message)):
            return found[-1].strip()  # those before it are what it was raised from
    return None
