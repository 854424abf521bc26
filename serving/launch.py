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
from urllib.request import urlopen

from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions

from cluster.profile import Profile, ServeSettings, load_profile
from cluster.session import cluster_address, lacking, session
from retrieval.errors import UserError
from retrieval.folder import Folder
from serving.app import LOGGING, ServeArgs, front, plan
from serving.client import ServiceFault, switch_index
from serving.deployments.calls import Deadline
from serving.guards.keys import check_exposure, read_keys
from serving.protocol import Info
from serving.ray_names import user_error_in

APPLICATION = "mindseye"
READY_SECONDS = 600


@dataclass(frozen=True)
class Prepared:
    """A service that can be started: everything that a person may have got wrong has been checked."""

    application: Application
    settings: ServeSettings
    shards: int
    host: str
    port: int


def prepare(given: Mapping[str, Any], *, host: str | None = None, port: int | None = None) -> Prepared:
    """Check all that a service is made of, before anything is started.

    Args:
        given: the fields of ``app.ServeArgs``.
        host, port: in the place of the profile's.

    Raises:
        UserError: an artifact, the profile, the keys or the port cannot be used.
    """
    args = ServeArgs.model_validate(given)
    profile = load_profile(args.profile)
    settings = profile.serve
    host, port = host or settings.host, port or settings.port
    check_exposure(host, read_keys(settings.keys_file) if settings.keys_file else [])
    _check_free(host, port)
    service = plan(args)
    return Prepared(front(service), settings, service.shards, host, port)


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


@contextmanager
def running(prepared: Prepared, *, everywhere: bool = False) -> Iterator[str]:
    """Run a service in the session that is open; yield its URL once it is ready to answer.

    On a cluster (``everywhere``) each node listens, and the service is deleted at the end; a local Ray ends with all
    that runs on it.

    Raises:
        UserError: as ``launch``.
    """
    if not everywhere:
        _check_room(prepared.settings, prepared.shards)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    location = "EveryNode" if everywhere else "HeadOnly"
    options = HTTPOptions(host=prepared.host, port=prepared.port, location=location)
    serve.start(http_options=options, logging_config=LOGGING)
    try:
        _run(prepared.application)
        url = f"http://{'127.0.0.1' if prepared.host == '0.0.0.0' else prepared.host}:{prepared.port}"
        _wait_until_ready(url)
        yield url
    finally:
        if everywhere:
            with suppress(TimeoutError):  # the controller continues
                serve.delete(APPLICATION)


def _run(application: Application) -> None:
    """Deploy, and wait until every deployment runs. A constructor's UserError is raised again here."""
    try:
        serve.run(application, name=APPLICATION, logging_config=LOGGING)
    except RuntimeError as error:
        found = serve.status().applications.get(APPLICATION)
        messages = [deployment.message for deployment in found.deployments.values()] if found else []
        if reason := user_error_in([*messages, str(error)]):
            raise UserError(reason, code="cannot-start") from error
        raise


def _check_room(settings: ServeSettings, shards: int) -> None:
    """Refuse what Serve would wait for without end, where no further node will come."""
    deployments = [settings.ingress, settings.vlm, settings.vision, settings.generator, settings.ranker]
    least = [*deployments, *[settings.shards] * shards]
    cpus = sum(one.cpus * one.min_replicas for one in least)
    gpus = sum(one.gpus * one.min_replicas for one in least)
    for resource, needed, there in lacking(cpus, gpus):
        raise UserError(
            f"the deployments need {needed:g} {resource}s at least, and this Ray has {there:g}: lower"
            f" {resource.lower()}s of serve.ingress, vlm, vision, generator, ranker or shards in the profile",
            code="no-room",
            field="profile",
        )


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
