"""Whether Ray has room for what a stage asks for: on which nodes the stage may run, and how many actors they hold.

An actor that no node can hold stays pending without an error, so jobs, training and services look first. Nodes that an
autoscaler would start are not known to whoever uses a cluster: where there may be one, it is said what is waited for.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from cluster.labels import Labels, selects
from cluster.profile import Placement
from cluster.session import alive_nodes, in_process
from retrieval.errors import UserError

_NODE_GROUP = "ray.io/node-group"
"""Label of nodes of the cluster launcher and of KubeRay, which both bring an autoscaler."""
_UNIT = 10_000
"""Ray counts resources in such parts of one."""
log = logging.getLogger(__name__)


class Capacity(NamedTuple):
    """What a node has for actors, in use or not."""

    labels: Labels
    cpus: float
    gpus: float

    def holds(self, stage: Placement) -> float:
        """Return how many actors of a stage it has the CPUs and GPUs for."""
        asked = [(self.cpus, stage.cpus), (self.gpus, stage.gpus)]
        return min((round(has * _UNIT) // max(1, round(each * _UNIT)) for has, each in asked if each), default=math.inf)

    def __str__(self) -> str:
        own = {key: value for key, value in self.labels.items() if not key.startswith("ray.io/")}
        return _resources(self.cpus, self.gpus) + (f" ({_selector(own)})" if own else "")


class Trouble(NamedTuple):
    """What nodes cannot hold."""

    field: str
    """The setting that asks for it."""
    sentence: str
    """What was asked for, and what there is."""


class Demand(NamedTuple):
    """Actors that have to run at once."""

    what: str
    """In words."""
    field: str
    """Of the profile, that says what they ask for."""
    stage: Placement
    actors: int = 1
    shard: int | None = None

    def nodes(self, there: Sequence[Capacity]) -> tuple[int, ...]:
        """Return the places of the nodes that are allowed and can hold an actor."""
        stage = self.stage
        return tuple(i for i, node in enumerate(there) if _fits(stage, node, self.shard) and node.holds(stage))


def cluster_nodes() -> list[Capacity]:
    """Return the nodes that Ray has."""
    return [
        Capacity(node["Labels"], node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
        for node in alive_nodes()
    ]


def room(stage: Placement, there: Sequence[Capacity]) -> float:
    """Return how many actors of a stage all nodes hold that it may have."""
    return sum(node.holds(stage) for node in there if _fits(stage, node))


def preferred(stage: Placement, there: Sequence[Capacity], actors: int = 1) -> tuple[Labels, list[Capacity]]:
    """Return the first selector of a stage whose nodes hold so many actors, and these; if there is none, the first."""
    for selector in stage.selectors():
        nodes = [node for node in there if selects(selector, node.labels)]
        if sum(node.holds(stage) for node in nodes) >= actors:
            return selector, nodes
    return stage.selectors()[0], []


def may_grow(there: Sequence[Capacity]) -> bool:
    """Return whether an autoscaler may start other nodes than these."""
    return any(_NODE_GROUP in node.labels for node in there)


def check_room(*demands: Demand) -> None:
    """Refuse what Ray would wait for without end.

    Raises:
        UserError: no node can hold one of the actors, or all nodes together cannot hold all of them (``no-room``).
    """
    if in_process() or not (found := trouble(demands, there := cluster_nodes())):
        return
    if may_grow(there):
        log.warning("%s The autoscaler may start such nodes: waiting.", found.sentence)
        return
    remedy = "Change it or its fallback" if found.field.endswith(".labels") else "Lower it"
    raise UserError(
        f"{found.sentence} The profile's {found.field} says so. {remedy}, take another profile, or add nodes"
        " (docs/placement.md)",
        code="no-room",
        field=found.field,
    )


def trouble(demands: Sequence[Demand], there: Sequence[Capacity]) -> Trouble | None:
    """Return what these nodes cannot hold. That there is nothing is no promise: how actors share nodes is not tried."""
    has = f"There {'is' if len(there) == 1 else 'are'} {_several(there)}."
    for demand in demands:
        stage, nodes = demand.stage, demand.nodes(there)
        wanted, where = _resources(stage.cpus, stage.gpus), _where(demand)
        if not nodes:
            field = f"{demand.field}.{_lacks(demand, there)}"
            return Trouble(field, f"{demand.what} needs {wanted} on one node{where}, and there is none. {has}")
        if demand.actors > sum(there[i].holds(stage) for i in nodes):
            resource = "gpus" if stage.gpus else "cpus"
            return Trouble(
                f"{demand.field}.{resource}", f"{demand.what} needs {demand.actors} times {wanted}{where}. {has}"
            )
    for nodes in dict.fromkeys(demand.nodes(there) for demand in demands):
        inside = [demand for demand in demands if set(demand.nodes(there)) <= set(nodes)]
        for resource in ("cpus", "gpus"):
            needed = sum(getattr(demand.stage, resource) * demand.actors for demand in inside)
            if round(needed * _UNIT) > round(sum(getattr(there[i], resource) for i in nodes) * _UNIT):
                who = ", ".join(dict.fromkeys(demand.what for demand in inside))
                sentence = (
                    f"{who} together need {_counted(needed, resource[:-1].upper())} of the nodes they may have. {has}"
                )
                return Trouble(f"{inside[0].field}.{resource}", sentence)
    return None


def _fits(stage: Placement, node: Capacity, shard: int | None = None) -> bool:
    return any(selects(selector, node.labels) for selector in stage.selectors(shard))


def _lacks(demand: Demand, there: Sequence[Capacity]) -> str:
    """Name the setting that is to blame: labels, if a node would do but for them."""
    stage = demand.stage
    allowed = [node for node in there if _fits(stage, node, demand.shard)]
    if not allowed or any(node.holds(stage) for node in there):
        return "labels"
    return "gpus" if all(node.gpus < stage.gpus for node in allowed) else "cpus"


def _where(demand: Demand) -> str:
    selectors = demand.stage.selectors(demand.shard)
    return "" if {} in selectors else f" where {' or else '.join(map(_selector, selectors))}"


def _selector(selector: Labels) -> str:
    return ", ".join(f"{key}={value}" for key, value in selector.items())


def _resources(cpus: float, gpus: float) -> str:
    return _counted(cpus, "CPU") + (f" and {_counted(gpus, 'GPU')}" if gpus else "")


def _counted(count: float, what: str) -> str:
    return f"{count:g} {what}{'s' if count != 1 else ''}"


def _several(there: Sequence[Capacity]) -> str:
    kinds = Counter(map(str, there)).most_common()
    return "; ".join(f"{_counted(count, 'node')} of {kind}" for kind, count in kinds)
