"""Workers of a run find one another at the addresses that Ray has for them.

Gloo, which joins workers on CPUs, listens where the host's own name leads: on Debian and what is made from it that is
127.0.1.1, which no other host reaches. Ray knows an address at which the others do.
"""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig

INTERFACE = "GLOO_SOCKET_IFNAME"


class RayAddresses(TorchConfig):
    """Ray Train's way to join the workers, after each has been told which network to use."""

    @property
    def backend_cls(self) -> Any:
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]  # the class itself has a private name
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(use_interface_of_ray)
        super().on_start(worker_group, backend_config)


def use_interface_of_ray() -> None:
    """Have Gloo use the interface with the address that Ray has for this node, unless the environment names one."""
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            os.environ.setdefault(INTERFACE, name)
            return
