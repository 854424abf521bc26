"""``mindseye serve``: start the service on Ray and stay until told to end; or switch a running one to an index."""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions

from cluster.profile import Profile, ServeSettings, load_profile
from cluster.room import check_room
from cluster.session import check_ray, cluster_address, node_count, session
from retrieval.errors import UserError
from retrieval.folder import Folder
from serving.app import LOGGING, ServeArgs, check_store, demands, front, plan
from serving.client import ServiceFault, switch_index
from serving.deployments.calls import Deadline
from serving.guards.keys import check_exposure, read_keys
from serving.instance import ROUTE, Instance
from serving.protocol import Info
from serving.ray_names import user_error_in

APPLICATION = "mindseye"
READY_SECONDS = 600
PROXY_SECONDS = 30


@dataclass(frozen=True)
class Prepared:
    """A service that can be started: everything that a person may have got wrong has been checked."""

    application: Application
    settings: ServeSettings
    shards: int
    store: str
    host: str
    port: int
    name: str
    """Of the application."""


def prepare(
    given: Mapping[str, Any],
    *,
    host: str | None = None,
    port: int | None = None,
    name: str = APPLICATION,
    address: str | None = None,
) -> Prepared:
    """Check all that a service is made of, before anything is started.

    Args:
        given: the fields of ``app.ServeArgs``.
        host, port: in the place of the profile's. Where Serve runs on a cluster already, its own are used.
        name: of the application.
        address: as that of ``launch``.

    Raises:
        UserError: an artifact, the profile, the keys or the port cannot be used.
    """
    check_ray(address, "a service")
    args = ServeArgs.model_validate(given)
    settings = args.load_profile().serve
    host, port = host or settings.host, settings.port if port is None else port
    if not 0 < port < 2**16:
        raise UserError(f"the port must be from 1 to {2**16 - 1}, not {port}", code="out-of-range", field="port")
    _check_exposure(host, settings)
    if not cluster_address(address):
        _check_free(host, port)
    service = plan(args)
    return Prepared(front(service), settings, service.shards, service.store, host, port, name)


def launch(prepared: Prepared, *, address: str | None, up: Callable[[str], None]) -> None:
    """Start a service, call ``up`` with its URL when it answers, and stay until Ctrl-C or SIGTERM.

    Args:
        address: of a Ray cluster; by default as ``cluster.session``.

    Raises:
        UserError: a model or a shard cannot be loaded, or there is no room for the deployments.
    """
    with suppress(KeyboardInterrupt), session(address):
        signal.signal(signal.SIGTERM, _leave)  # now, because Ray's core has set a handler of its own
        with running(prepared, everywhere=bool(cluster_address(address))) as url:
            up(url)
            while True:
                time.sleep(3600)


def switch(
    index: str, profile: str | Path | Profile = "tiny", *, host: str | None = None, port: int | None = None
) -> tuple[str, Info]:
    """Have the service that runs at this host and port serve another index; return its URL and what it serves now.

    Args:
        index: URI of an index, or of one version of it.
        host, port: in the place of the profile's.

    Raises:
        UserError: the service refuses that index.
        OSError: no service runs there.
    """
    settings = load_profile(profile).serve
    url = f"http://{host or settings.host}:{port or settings.port}"
    try:
        return url, switch_index(url, Folder(index).uri)
    except ServiceFault as fault:
        raise UserError(f"{url} stays with its index: {fault}", code=fault.fault.code, field="index") from fault
    except URLError as error:
        raise UserError(
            f"no service answers at {url} ({error.reason}): start one there, or give its --host and --port",
            code="unreachable",
            field="port",
        ) from error


@contextmanager
def running(prepared: Prepared, *, everywhere: bool = False) -> Iterator[str]:
    """Run a service in the session that is open; yield its URL once it is ready to answer.

    On a cluster (``everywhere``) each node that has a replica listens, and the service is deleted at the end, unless
    somebody has put another in its place; a local Ray ends with all that runs on it.

    Raises:
        UserError: as ``launch``; or, on a cluster, the name is taken, the store is not shared by the nodes, or no proxy
            can be reached from here.
    """
    check_room(*demands(prepared.settings, prepared.shards))
    if everywhere:
        _check_cluster(prepared)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    location = "EveryNode" if everywhere else "HeadOnly"
    options = HTTPOptions(host=prepared.host, port=prepared.port, location=location)
    if Instance.running() is None:
        serve.start(http_options=options, logging_config=LOGGING)
    since: float | None = None
    try:
        _run(prepared.application, prepared.name)
        since = _deployed(prepared.name)
        url = _reachable_url()
        _wait_until_ready(url)
        yield url
    finally:
        # Before it was started there was none of this name.
        if everywhere and since in (None, _deployed(prepared.name)):
            with suppress(TimeoutError):  # the controller continues
                serve.delete(prepared.name)


def _check_cluster(prepared: Prepared) -> None:
    """Check what only the cluster can tell, before anything on it is changed."""
    check_store(prepared.store, prepared.settings, node_count())
    if instance := Instance.running():
        instance.check_vacant(prepared.name)
        _check_exposure(instance.host, prepared.settings)
    else:
        _check_free(prepared.host, prepared.port)


def _deployed(name: str) -> float | None:
    instance = Instance.running()
    return instance.deployed.get(name) if instance else None


def _reachable_url() -> str:
    """The URL of a proxy that can be reached from this node; proxies start once replicas run on their node."""
    node, deadline = ray.get_runtime_context().get_node_id(), Deadline(PROXY_SECONDS)
    while deadline.left:
        if (instance := Instance.running()) and (url := instance.url(node)):
            return url
        time.sleep(0.2)
    raise UserError(
        "the service's proxies cannot be reached from this node, which has none: they listen on the loopback of"
        f" {', '.join(instance.proxies.values()) if instance else 'no node'}. Run the command there, or give a --host"
        " that other nodes reach, with API keys",
        code="unreachable",
        field="host",
    )


def _run(application: Application, name: str) -> None:
    """Deploy, and wait until every deployment runs. A constructor's UserError is raised again here."""
    try:
        serve.run(application, name=name, route_prefix=ROUTE, logging_config=LOGGING)
    except RuntimeError as error:
        found = serve.status().applications.get(name)
        messages = [deployment.message for deployment in found.deployments.values()] if found else []
        if reason := user_error_in([*messages, str(error)]):
            raise UserError(reason, code="cannot-start") from error
        raise


def _wait_until_ready(url: str) -> None:
    deadline = Deadline(READY_SECONDS)
    while deadline.left:
        with suppress(OSError), urlopen(f"{url}/readyz", timeout=5) as response:
            if response.status == 200:
                return
        time.sleep(0.2)
    raise UserError(
        f"{url}/readyz is not ready after {READY_SECONDS} s; Serve's logs are under /tmp/ray/session_latest/logs/serve",
        code="not-ready",
    )


def _check_exposure(host: str, settings: ServeSettings) -> None:
    check_exposure(host, read_keys(settings.keys_file) if settings.keys_file else [])


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"cannot listen on {host}, port {port} ({error.strerror}); give another --port, or switch a"
                " running service to another index with: mindseye serve --index INDEX",
                code="port-taken",
                field="port",
            ) from error


def _leave(signal: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
