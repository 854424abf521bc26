"""Which proxy of a cluster is asked, what is never replaced there, and which stores its nodes share."""

from __future__ import annotations

import pytest
from errors import refused

from cluster.profile import Replicas, ServeSettings
from serving.app import check_store
from serving.instance import Instance

HERE, THERE = "node-here", "node-there"


def on(host: str, *nodes: str) -> Instance:
    proxies = {node: f"10.0.0.{i}" for i, node in enumerate(nodes, 1)}
    return Instance(host, 8000, proxies, {"mindseye": 1.0, "other": 2.0}, {"/": "mindseye", "/other": "other"})


@pytest.mark.parametrize(
    ("instance", "url"),
    [
        (on("127.0.0.1", THERE, HERE), "http://127.0.0.1:8000"),
        (on("0.0.0.0", THERE, HERE), "http://127.0.0.1:8000"),
        (on("0.0.0.0", THERE), "http://10.0.0.1:8000"),
        (on("10.1.1.1", THERE), "http://10.1.1.1:8000"),
        (on("::1", HERE), "http://[::1]:8000"),
        (on("127.0.0.1", THERE), None),
        (on("0.0.0.0"), None),
    ],
)
def test_a_proxy_that_exists_is_asked(instance: Instance, url: str | None) -> None:
    assert instance.url(HERE) == url


def test_what_runs_already_is_not_replaced() -> None:
    for name in ("mindseye", "other"):
        with refused("name-taken", "name"):
            on("127.0.0.1", HERE).check_vacant(name)
    with refused("route-taken", "address"):
        on("127.0.0.1", HERE).check_vacant("third")
    Instance("127.0.0.1", 8000, {}, {"other": 2.0}, {"/other": "other"}).check_vacant("mindseye")


@pytest.mark.parametrize("store", ["sqlite:/tmp/x", "unix:///run/redis", "memory:"])
def test_a_store_of_one_node_is_refused_on_several(store: str) -> None:
    settings = ServeSettings(ingress=Replicas(ongoing=256, max_replicas=2))
    check_store(store, settings, nodes=1)
    check_store("redis://memory:6379/0", settings, nodes=2)
    with refused("store-not-shared", "store"):
        check_store(store, settings, nodes=2)
    check_store("memory:", ServeSettings(), nodes=2)  # of one replica alone
