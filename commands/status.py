"""``mindseye status``: what a cluster consists of, which jobs run on it, and what it serves."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from commands.console import out

if TYPE_CHECKING:  # take seconds to import
    from cluster.drivers import Job
    from cluster.nodes import Nodes, Use
    from serving.running import ApplicationState

Joined = Annotated[
    str | None,
    Parameter(help="Ray cluster, such as head:6379; by default RAY_ADDRESS, else the one this machine is part of."),
]
GIB = 2**30


def status(*, address: Joined = None, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Report what a cluster has and does: its nodes, the jobs that run and what they are at, and what it serves.

    Parameters
    ----------
    as_json
        Print one JSON object, with sizes in bytes and times in seconds since the epoch.
    """
    from cluster.drivers import running_jobs
    from cluster.nodes import nodes
    from cluster.session import check_ray, cluster_address, session
    from serving.running import applications

    check_ray(address, "the status of a cluster")
    with session(cluster_address(address) or "auto"):
        found, jobs, served = nodes(), running_jobs(), applications()
    if as_json:
        out.print(as_text(found, jobs, served), soft_wrap=True)
        return
    print_nodes(found)
    print_jobs(jobs, time.time())
    print_applications(served)


def as_text(found: Nodes, jobs: list[Job], served: list[ApplicationState]) -> str:
    """Return all of it as JSON."""
    content: dict[str, Any] = {
        "nodes": [asdict(node) for node in found.alive],
        "starting_nodes": found.starting,
        "waiting": [asdict(each) for each in found.waiting],
        "jobs": [{**asdict(job), "stages": [stage._asdict() for stage in job.stages]} for job in jobs],
        "applications": [asdict(one) for one in served],
    }
    return json.dumps(content, indent=2)


def print_nodes(found: Nodes) -> None:
    """Print a table of the nodes, and what waits for room on them."""
    table = Table()
    for heading in ("node", "address", "CPUs", "GPUs", "memory asked for", "object store"):
        table.add_column(heading, justify="left" if heading in ("node", "address") else "right", no_wrap=True)
    for node in found.alive:
        sizes = _size(node.memory), _size(node.object_store)
        table.add_row(node.name, node.ip, _count(node.cpu), _count(node.gpu), *sizes)
    out.print(f"nodes: {len(found.alive)}{f', and {found.starting} starting' if found.starting else ''}")
    out.print(table)
    for each in found.waiting:
        asked = ", ".join(f"{amount:g} {resource}" for resource, amount in each.resources.items()) or "nothing"
        out.print(f"waiting for room: {each.count:,} × ({asked})")


def print_jobs(jobs: list[Job], now: float) -> None:
    """Print which jobs run, for how long, and what they are at."""
    out.print(f"jobs: {len(jobs) or 'none'}")
    for job in jobs:
        out.print(
            f"  {job.submitted or job.id}, {_duration(now - job.since)}, on {job.host}: {job.command}", soft_wrap=True
        )
        for stage in job.stages:
            of = f" of {stage.total:,} ({stage.done / stage.total:.0%})" if stage.total else ""
            rate = f", {stage.done / stage.seconds:,.1f}/s" if stage.done and stage.seconds else ""
            out.print(f"    {stage.what}: {stage.done:,}{of} in {_duration(stage.seconds)}{rate}", soft_wrap=True)


def print_applications(served: list[ApplicationState]) -> None:
    """Print what Serve runs, which versions it serves, and what is wrong with its deployments."""
    out.print(f"applications: {len(served) or 'none'}")
    for one in served:
        out.print(f"  {one.name}: {one.status}, {f'at {one.url}' if one.url else 'not to be reached from here'}")
        if one.served:
            version = f"version {one.served.name}, {one.served.rows:,} images in {one.served.shards:,} shards"
            out.print(f"    serves {one.served.version} ({version})", soft_wrap=True)
        if one.message and one.status != "RUNNING":
            out.print(f"    {_first_line(one.message)}", soft_wrap=True)
        for each in one.deployments:
            running = each.replicas.get("RUNNING", 0)
            others = ", ".join(f"{count} {state}" for state, count in each.replicas.items() if state != "RUNNING")
            out.print(
                f"    {each.name}: {each.status}, {running} of {each.wanted} replicas{f' ({others})' if others else ''}"
            )
            if each.message and each.status != "HEALTHY":
                out.print(f"      {_first_line(each.message)}", soft_wrap=True)


def _count(use: Use) -> str:
    return f"{use.used:g} of {use.total:g}" if use.total else "none"


def _size(use: Use) -> str:
    return f"{use.used / GIB:.1f} of {use.total / GIB:.1f} GiB"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0] if message.strip() else ""
