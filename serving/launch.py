"""``mindseye serve``: start the service on Ray, say where it is, and stay until told to end."""

from __future__ import annotations

import logging
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from urllib.request import urlopen

from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions

from cluster.profile import ServeSettings, load_profile
from cluster.session import cluster_address, lacking, session
from serving.app import LOGGING, ServeArgs, front, index_uri, plan, store_uri
from serving.deployments.calls import Deadline
from serving.deployments.pointer import pointer
from serving.guards.middleware import check_exposure, read_keys
from serving.memory.store import open_store

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
APPLICATION = "mindseye"
READY_SECONDS = 600


@dataclass(frozen=True)
class Prepared:
    """A service that can be started: everything that a person may have got wrong has been looked at."""

    application: Application
    settings: ServeSettings
    shards: int
    host: str
    port: int


def prepare(given: Mapping[str, str | None], *, host: str | None = None, port: int | None = None) -> Prepared:
    """Look at all that a service is made of, before anything is started.

    Args:
        given: the fields of ``app.ServeArgs``.
        host, port: in the place of the profile's.

    Raises:
        ValueError: an artifact, the profile, the keys or the port are not fit.
    """
    args = ServeArgs.model_validate(given)
    profile = load_profile(args.profile)
    settings = profile.serve
    host, port = host or settings.host, port or settings.port
    check_exposure(host, read_keys(settings.keys_file) if settings.keys_file else [])
    _check_free(host, port)
    store, index = store_uri(args.store, profile), index_uri(args.target)
    # What an earlier run was switched to is not what is asked for now.
    open_store(store).set_setting(pointer(index), index)
    service = plan(args.model_copy(update={"store": store}))
    return Prepared(front(service), settings, service.shards, host, port)


def launch(prepared: Prepared, *, address: str | None, up: Callable[[str], None]) -> None:
    """Start a service, call ``up`` with its URL when it answers, and stay until Ctrl-C or SIGTERM.

    Args:
        address: of a Ray cluster; by default as ``cluster.session``.

    Raises:
        ValueError: a model or a shard can not be loaded, or there is no room for the deployments.
    """
    with suppress(KeyboardInterrupt), session(address):
        signal.signal(signal.SIGTERM, _leave)  # now, because Ray's core has set a handler of its own
        with running(prepared, everywhere=bool(cluster_address(address))) as url:
            up(url)
            while True:
                time.sleep(3600)


@contextmanager
def running(prepared: Prepared, *, everywhere: bool = False) -> Iterator[str]:
    """Run a service in the session that is open; yield its URL once it is ready to answer.

    On a cluster (``everywhere``) each node listens, and the service is taken down at the end; a local Ray takes it
    along when it ends.

    Raises:
        ValueError: as ``launch``.
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
            with suppress(TimeoutError):  # the controller goes on with it
                serve.delete(APPLICATION)


def _run(application: Application) -> None:
    """Deploy, and wait until every deployment runs. What a constructor has to say is raised as it said it."""
    try:
        serve.run(application, name=APPLICATION, logging_config=LOGGING)
    except RuntimeError as error:
        found = serve.status().applications.get(APPLICATION)
        said = [deployment.message for deployment in found.deployments.values()] if found else []
        for message in (*said, str(error)):
            if reason := re.search(r"ValueError: (.+)", _COLOURS.sub("", message)):
                raise ValueError(reason[1]) from error
        raise


def _check_room(settings: ServeSettings, shards: int) -> None:
    """Say what Serve would wait for without end, where no further node will come."""
    deployments = [settings.ingress, settings.vlm, settings.vision, settings.generator, settings.ranker]
    least = [*deployments, *[settings.shards] * shards]
    cpus = sum(one.cpus * one.min_replicas for one in least)
    gpus = sum(one.gpus * one.min_replicas for one in least)
    for resource, needed, there in lacking(cpus, gpus):
        raise ValueError(
            f"the deployments need {needed:g} {resource}s at least, and this Ray has {there:g}: lower"
            f" {resource.lower()}s of serve.ingress, vlm, vision, generator, ranker or shards in the profile"
        )


def _wait_until_ready(url: str) -> None:
    deadline = Deadline(READY_SECONDS)
    while deadline.left:
        with suppress(OSError), urlopen(f"{url}/readyz", timeout=5) as response:
            if response.status == 200:
                return
        time.sleep(0.2)
    raise ValueError(f"{url}/readyz does not become ready; Serve's logs are under /tmp/ray/session_latest/logs/serve")


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"can not listen on {host}, port {port} ({error.strerror}); give another --port, or send a running"
                " service to another index with: mindseye serve --index INDEX"
            ) from error


def _leave(signal: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
