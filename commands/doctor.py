"""``mindseye doctor``: what this machine has and lacks, or each node of a cluster."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from commands.console import Profile, out, say_next

if TYPE_CHECKING:
    from cluster.doctor import Check
    from cluster.fleet import Finding

NAMED = 3
"""Nodes that are named where nothing is wrong with them."""


def doctor(
    *,
    profile: Profile = "tiny",
    address: Annotated[
        str | None,
        Parameter(
            help="Ray cluster whose nodes are checked, such as head:6379; by default RAY_ADDRESS, else this machine"
            " alone, as with none."
        ),
    ] = None,
    uri: Annotated[list[str] | None, Parameter(negative="")] = None,
) -> None:
    """Check this machine, or each node of a cluster; say what is missing and what to do.

    On a cluster models are looked for, and neither loaded nor downloaded.

    Parameters
    ----------
    uri
        Folder that every node must be able to read and to write, such as s3://bucket/work; can be given more than once.
    """
    from cluster.session import IN_PROCESS, cluster_address, session
    from retrieval.errors import UserError

    place = cluster_address(address)
    if place not in (None, IN_PROCESS):
        from cluster.fleet import examine_nodes, read_profile
        from cluster.nodes import nodes

        read = read_profile(profile)
        with session(place):
            alive = nodes().alive
            findings = examine_nodes(alive, read, uri or ())
        print_findings(findings, [node.name for node in alive])
        if any(not finding.check.ok for finding in findings):
            sys.exit(1)
        return
    if uri:
        raise UserError(
            "URIs are checked from the nodes of a cluster: give its --address too", code="missing", field="address"
        )
    from cluster.doctor import examine

    ok = True
    for check in examine(profile):
        _print(check)
        ok = ok and check.ok
    if not ok:
        sys.exit(1)
    say_next("mindseye demo")


def print_findings(findings: list[Finding], nodes: list[str]) -> None:
    """Print what was found on the nodes of a cluster, a line for those that are alike, and a sum."""
    from cluster.fleet import wrong

    out.print(f"{_number(nodes)}: {', '.join(nodes)}", soft_wrap=True)
    for finding in findings:
        _print(finding.check, _where(finding, len(nodes)))
    faulty = wrong(findings)
    if well := [node for node in nodes if not faulty[node]]:
        out.print(f"{_number(well)}: ok")
    for count in sorted(set(faulty.values())):
        named = ", ".join(node for node in nodes if faulty[node] == count)
        out.print(f"{named}: {count} thing{'s' if count > 1 else ''} to put right", style="red", soft_wrap=True)


def _where(finding: Finding, nodes: int) -> str:
    count = len(finding.nodes)
    if count == nodes:
        return ""
    named = not finding.check.ok or count <= NAMED
    return f"  [{', '.join(finding.nodes) if named else _number(finding.nodes)}]"


def _number(nodes: list[str]) -> str:
    return f"{len(nodes):,} node{'s' if len(nodes) != 1 else ''}"


def _print(check: Check, where: str = "") -> None:
    word, style = ("ok  ", "") if check.ok else ("FAIL", "red")
    out.print(f"{word} {check.what}: {check.found}{where}", style=style, soft_wrap=True)
    if not check.ok:
        out.print(f"     {check.remedy}", soft_wrap=True)
