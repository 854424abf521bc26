"""Over which network the workers of a run join."""

from __future__ import annotations

import os
from typing import Any

import psutil
import pytest
import ray
from ray.train.torch import TorchConfig

from training.gloo import INTERFACE, RayAddresses, use_interface_of_ray


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERFACE, "")  # so that it is restored
    monkeypatch.delenv(INTERFACE)


def test_gloo_uses_the_interface_whose_address_ray_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    use_interface_of_ray()
    assert "127.0.0.1" in [each.address for each in psutil.net_if_addrs()[os.environ[INTERFACE]]]


def test_what_the_environment_names_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv(INTERFACE, "ib0")
    use_interface_of_ray()
    assert os.environ[INTERFACE] == "ib0"


def test_an_address_of_no_interface_leaves_it_to_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "192.0.2.99")
    use_interface_of_ray()
    assert INTERFACE not in os.environ


def test_each_worker_is_told_before_ray_train_joins_them(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []

    class Group:
        def execute(self, what: Any) -> None:
            done.append(what)

    config = RayAddresses()
    monkeypatch.setattr(TorchConfig().backend_cls, "on_start", lambda self, group, given: done.append(given))
    config.backend_cls().on_start(Group(), config)
    assert done == [use_interface_of_ray, config]
