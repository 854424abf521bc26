"""Where jobs run: on a Ray cluster if there is one, on a local Ray that ends with the command, or in this process."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.cores import usable_cores
from cluster.imports import ours_first
from cluster.reach import check_cluster, silent_stderr, token_asked_for
from retrieval.errors import UserError
from retrieval.folder import Folder

IN_PROCESS = "none"
"""The address that runs jobs in this process."""
_in_process: ContextVar[bool] = ContextVar("in_process", default=False)


def in_process() -> bool:
    """Return whether jobs run in this process: a session says so, or there is no Ray to run them on."""
    return _in_process.get() or not ray.is_initialized()


def alive_nodes() -> list[dict[str, Any]]:
    """Return the nodes that Ray has, as it tells of them, without those that were lost."""
    return [node for node in ray.nodes() if node["Alive"]]


def node_count() -> int:
    """Return how many machines the cluster has; 1 where there is no Ray."""
    return len(alive_nodes()) if ray.is_initialized() else 1


def check_shared(folder: Folder, name: str) -> None:
    """Check that every node sees a file that this one has written: what the others write must be found as well.

    Raises:
        UserError: a node does not see it (``not-shared``).
    """
    if in_process():
        return
    asked = []
    for node in alive_nodes():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)  # it may be lost meanwhile
        seen = _exists.options(scheduling_strategy=there).remote(folder, name)
        asked.append((node["NodeManagerHostname"], seen))
    for host, seen in asked:
        if not ray.get(seen):
            raise UserError(
                f"{host} does not see {folder.uri}/{name}, which {platform.node()} has written: give a target that"
                " every machine has at the same path, or one in an object store",
                code="not-shared",
                field="target",
            )


@ray.remote(num_cpus=0)
def _exists(folder: Folder, name: str) -> bool:
    return folder.exists(name)


def cluster_address(given: str | None) -> str | None:
    """Return the address of the cluster to use: the one given, else ``RAY_ADDRESS``; None for a local Ray."""
    address = given or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address or None


def check_ray(address: str | None, what: str) -> None:
    """Refuse to run in this process what cannot.

    Raises:
        UserError: the address asks for it (``needs-ray``).
    """
    if cluster_address(address) == IN_PROCESS:
        raise UserError(
            f"{what} needs Ray, and the address (or RAY_ADDRESS) is none: give another",
            code="needs-ray",
            field="address",
        )


@contextmanager
def session(address: str | None = None) -> Iterator[None]:
    """Connect to the Ray cluster at ``address`` (or ``RAY_ADDRESS``), or start a local one; leave it as it was found.

    The address ``none`` starts no Ray: jobs run in this process, one step after the other. Inside a session that is
    already open, that one is used. A UserError or OSError of a worker is raised as itself.

    Raises:
        UserError: the address is one of Ray Client, which Ray Data does not work over (``ray-client``), or nothing
            answers there, or asks for a token that this process does not have (as ``cluster.reach``).
    """
    address = cluster_address(address) or "local"
    if address.startswith("ray://"):
        raise UserError(
            f"{address} is an address of Ray Client, which Ray Data does not work over: give the cluster's own, such as"
            " head:6379, on one of its machines",
            code="ray-client",
            field="address",
        )
    if address == IN_PROCESS:
        token = _in_process.set(True)
        try:
            yield
        finally:
            _in_process.reset(token)
        return
    if _in_process.get() or ray.is_initialized():
        with _plain_errors():
            yield
        return
    # One CPU more than there are, for tasks that read and write: see pipelines.ray_executor.actor_pool.
    local: dict[str, Any] = {"include_dashboard": False, "num_cpus": usable_cores() + 1} if address == "local" else {}
    if not local:
        address = check_cluster(address)
    with silent_stderr(), token_asked_for(address):
        ray.init(address=address, runtime_env=ours_first(), log_to_driver=False, logging_level=logging.ERROR, **local)
    data_defaults()
    try:
        with _plain_errors():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise what a person can put right without Ray's wrapping, whose message is the worker's coloured traceback. That
    traceback is what a bug of ours needs, so any other error keeps it.
    """
    try:
        yield
    except RayTaskError as error:
        cause: BaseException = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, UserError | OSError):
            raise cause from error
        raise


def data_defaults() -> None:
    """Set what all our datasets need of Ray Data: to start soon, and nothing of its own on the terminal (bars, notes,
    second copies of errors).
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # The newer reader of Parquet starts actors to read footers and list files, for each dataset: some eight seconds on
    # two cores, for files whose names and rows are known.
    context.use_datasource_v2 = False
    # Else an error of a worker arrives as a UserCodeException, which no longer knows what was raised.
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
