"""Whether a Ray answers at an address, and lets this process in: known within seconds, where Ray itself would go on
trying for 20 to 40.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import AuthenticationError, RpcError

from retrieval.errors import UserError

CONNECT_SECONDS = 5
ANSWER_SECONDS = 10
NOT_AUTHENTICATED = (
    "the Ray at {address} lets in who has its token, and this process has none, or another, or does not use it: set"
    " RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names or in"
    " ~/.ray/auth_token (docs/security.md)"
)


def check_cluster(address: str) -> str:
    """Return the address of a cluster that answers, as ``HOST:PORT``.

    Args:
        address: ``HOST:PORT`` of its head, or ``auto`` for the cluster that this machine is part of.

    Raises:
        UserError: it is no such address (``malformed``), no cluster answers there (``unreachable``), or it asks for a
            token that this process does not have (``not-authenticated``).
    """
    found = _host_and_port(address)
    check_listening(address, *found, "start Ray there (ray start --head), or give another address")
    place = f"{found[0]}:{found[1]}"
    with silent_stderr(), token_asked_for(address):
        check_token()
        try:
            gcs(place).check_alive([], timeout=ANSWER_SECONDS)
        except RpcError as error:
            raise UserError(
                f"what listens at {address} does not answer as a Ray cluster ({error}): give HOST:PORT of its head,"
                " whose port is 6379 unless Ray was started with another",
                code="unreachable",
                field="address",
            ) from error
    return place


def check_token() -> None:
    """Check that there is a token where one is to be used: without one Ray's core would end the process.

    Raises:
        AuthenticationError: there is none.
    """
    ensure_token_if_auth_enabled(create_token_if_missing=False)


def gcs(address: str) -> Any:
    """Return Ray's own client of a cluster's GCS, which asks it without becoming a driver. None is public."""
    return ray._raylet.GcsClient(address=address)


def check_listening(address: str, host: str, port: int, remedy: str) -> None:
    """Check that something listens at a port.

    Raises:
        UserError: nothing does (``unreachable``).
    """
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"nothing answers at {address} ({error.strerror or error}): {remedy}", code="unreachable", field="address"
        ) from error


@contextmanager
def token_asked_for(address: str) -> Iterator[None]:
    """Say that a cluster asks for its token.

    Raises:
        UserError: it does, and has refused this process (``not-authenticated``).
    """
    try:
        yield
    except AuthenticationError as error:
        message = NOT_AUTHENTICATED.format(address=address)
        raise UserError(message, code="not-authenticated", field="address") from error


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Keep from the terminal what Ray's core writes to the file descriptor itself; its errors are exceptions."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _host_and_port(address: str) -> tuple[str, int]:
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"{address} is the address of a dashboard: give the cluster's own, such as head:6379, on one of its"
            " machines",
            code="dashboard",
            field="address",
        )
    found = _this_machines() if address == "auto" else address
    if found is None:
        raise UserError(
            "this machine is part of no Ray cluster: start one with ray start, or give the address of one",
            code="unreachable",
            field="address",
        )
    host, colon, port = found.rpartition(":")
    if not (colon and host and port.isdecimal()):
        raise UserError(
            f"{address!r} is no address of a Ray cluster: give HOST:PORT of its head, such as head:6379",
            code="malformed",
            field="address",
        )
    return host.strip("[]"), int(port)


def _this_machines() -> str | None:
    """Return the address of the cluster that this machine is part of, else None."""
    try:
        return canonicalize_bootstrap_address("auto")  # no public function says it
    except (ConnectionError, ValueError):  # there is none; RAY_ADDRESS, which Ray asks first, is not of a cluster
        return None
