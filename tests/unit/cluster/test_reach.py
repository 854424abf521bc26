"""Whether a cluster answers is known in seconds, and what is said where none does."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from errors import refused
from ray.exceptions import AuthenticationError, RpcError

from cluster import reach, session
from cluster.reach import check_cluster


@pytest.fixture
def listener() -> Iterator[str]:
    """HOST:PORT where something listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_where_nothing_listens_is_said_long_before_ray_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.ray, "init", lambda **_: pytest.fail("Ray is asked"))
    began = time.monotonic()
    with refused("unreachable", "address"), session.session("127.0.0.1:1"):
        pytest.fail("it is used")
    assert time.monotonic() - began < 20  # Ray gives up after 40 s


def test_where_this_machine_is_part_of_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_instance(_: str) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    for answer in (lambda _: None, no_instance):
        monkeypatch.setattr(reach, "canonicalize_bootstrap_address", answer)
        with refused("unreachable", "address") as error:
            check_cluster("auto")
        assert "part of no Ray cluster" in str(error.value)
    monkeypatch.setattr(reach, "canonicalize_bootstrap_address", lambda _: "127.0.0.1:1")
    with refused("unreachable", "address"):  # of a cluster that has ended
        check_cluster("auto")


@pytest.mark.parametrize("address", ["head", "head:port", ":6379"])
def test_what_is_no_address_of_a_cluster(address: str) -> None:
    with refused("malformed", "address"):
        check_cluster(address)


def test_a_dashboard_is_told_from_a_cluster() -> None:
    with refused("dashboard", "address"):
        check_cluster("http://head:8265")


def test_a_cluster_that_asks_for_its_token_says_so(listener: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def asking(address: str) -> None:
        assert address == listener
        raise AuthenticationError("RPC error: InvalidAuthToken")

    monkeypatch.setattr(reach, "gcs", asking)
    with refused("not-authenticated", "address"):
        check_cluster(listener)


def test_what_listens_there_and_is_no_cluster(listener: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(address: str) -> None:
        raise RpcError("Timed out while waiting for GCS to become available.")

    monkeypatch.setattr(reach, "gcs", silent)
    monkeypatch.setattr(reach, "check_token", lambda: None)
    with refused("unreachable", "address"):
        check_cluster(listener)
