"""Serve as it runs on a cluster, perhaps for others too: which applications it has, and where it listens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from retrieval.errors import UserError
from serving.guards.keys import is_loopback
from serving.ray_names import serve_details

ROUTE = "/"
"""Where our application is on every proxy: its page and its answers name addresses from there."""


@dataclass(frozen=True)
class Instance:
    """What Serve is at one moment.

    Attributes:
        host, port: of all proxies; they cannot be changed while Serve runs.
        proxies: the IP of each node that has a healthy proxy, by the node's id. Not every node has one.
        deployed: when each application was deployed, by its name.
        routes: which application answers where.
    """

    host: str
    port: int
    proxies: Mapping[str, str]
    deployed: Mapping[str, float]
    routes: Mapping[str, str]

    @classmethod
    def running(cls) -> Self | None:
        """Return what Serve is on the cluster that this process is connected to; None if it does not run there."""
        found = serve_details()
        if found is None:
            return None
        options, details = found
        return cls(
            options.host or "127.0.0.1",
            options.port,
            {node: proxy.node_ip or "" for node, proxy in details.proxies.items() if proxy.status == "HEALTHY"},
            {name: one.last_deployed_time_s for name, one in details.applications.items()},
            {one.route_prefix: name for name, one in details.applications.items() if one.route_prefix},
        )

    def check_vacant(self, name: str) -> None:
        """Check that an application of that name can be added without replacing one.

        Raises:
            UserError: there is one of that name (``name-taken``), or one where ours would answer (``route-taken``).
        """
        if name in self.deployed:
            raise UserError(
                f"this cluster runs an application {name!r} already, at port {self.port}: switch it to another index"
                f" with mindseye serve --index INDEX --port {self.port}, end the command that started it, or delete it"
                " with Serve's own means",
                code="name-taken",
                field="name",
            )
        if other := self.routes.get(ROUTE):
            raise UserError(
                f"on this cluster the application {other!r} answers at {ROUTE} of port {self.port}, where mindseye"
                " would: move it to another route_prefix, or use another cluster",
                code="route-taken",
                field="address",
            )

    def url(self, node: str) -> str | None:
        """Return the URL of a proxy that programs on a node can ask, its own if there is one; None if there is none."""
        everywhere = self.host in ("0.0.0.0", "::")
        if node in self.proxies:
            host = "127.0.0.1" if everywhere else self.host
        elif self.proxies and not is_loopback(self.host):
            host = min(self.proxies.values()) if everywhere else self.host
        else:
            return None
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
