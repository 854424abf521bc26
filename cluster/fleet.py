"""Whether every node of a cluster can do the work of a profile: each is asked at once, and nodes alike are one line."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.doctor import Check
from cluster.node_checks import Probe, Software, compare, first_line, inspect, software, write_and_delete
from cluster.nodes import Node
from cluster.profile import Profile, load_profile
from retrieval.errors import UserError
from retrieval.folder import Folder

NODE_SECONDS = 180
"""How long a node may take for each of the two things that it is asked: its software, and all else."""
_NOT_INSTALLED = (ImportError, AttributeError, RuntimeError)
"""What a node raises that has another version of mindseye, or none."""
log = logging.getLogger(__name__)


class Finding(NamedTuple):
    """What was found alike on some nodes."""

    check: Check
    nodes: list[str]


class Read(NamedTuple):
    """A profile as it was read, and whether it could be."""

    check: Check
    profile: Profile | None


def read_profile(given: str | Path) -> Read:
    """Read the profile whose models the nodes are to have, before a session begins: Ray may replace the files that were
    sent along with a job once its driver connects.
    """
    try:
        profile = load_profile(given)
    except UserError as error:
        return Read(Check("profile", False, str(error), "correct the profile, or give another"), None)
    return Read(Check("profile", True, profile.name), profile)


def examine_nodes(nodes: Sequence[Node], read: Read, uris: Sequence[str] = ()) -> list[Finding]:
    """Check nodes of the cluster that this process is connected to.

    Args:
        nodes: to check.
        read: the profile whose models they must find.
        uris: folders that each must be able to read and to write.

    Returns:
        For each thing that was checked, in order, what was found: that of the most nodes first.
    """
    reports = {node.name: [read.check] for node in nodes}
    look = software()
    here = Software(*look())
    found = _ask(look, [(node, ()) for node in nodes])
    for node in nodes:
        answer = found[node.name]
        reports[node.name] += [answer] if isinstance(answer, Check) else list(compare(Software(*answer), here))
    able = [node for node in nodes if not isinstance(found[node.name], Check)]
    with _probes(uris) as probes:
        inspected = _ask(inspect, [(node, (node, read.profile, probes)) for node in able])
    for node in able:
        answer = inspected[node.name]
        reports[node.name] += [answer] if isinstance(answer, Check) else answer
    return grouped(reports)


def grouped(reports: Mapping[str, Sequence[Check]]) -> list[Finding]:
    """Return each thing that was checked once for each answer, with the nodes that gave it."""
    nodes: dict[Check, list[str]] = {}
    for node, checks in reports.items():
        for check in checks:
            nodes.setdefault(check, []).append(node)
    order = {what: place for place, what in enumerate(dict.fromkeys(check.what for check in nodes))}
    findings = [Finding(check, names) for check, names in nodes.items()]
    return sorted(findings, key=lambda finding: (order[finding.check.what], -len(finding.nodes)))


def wrong(findings: Sequence[Finding]) -> Counter[str]:
    """Return how many things are not right on each node that has such."""
    return Counter(node for finding in findings if not finding.check.ok for node in finding.nodes)


def _ask(question: Callable[..., Any], asked: Sequence[tuple[Node, tuple[Any, ...]]]) -> dict[str, Any]:
    """Return what a function returns on each node that it is asked, with its arguments; a Check that failed, where that
    does not answer.
    """
    answers = {}
    for node, arguments in asked:
        # Resources of 0 are never waited for. A node that is lost has not the answer of another.
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        task = ray.remote(question).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        answers[node.name] = task.remote(*arguments)
    if answers:
        ray.wait(list(answers.values()), num_returns=len(answers), timeout=NODE_SECONDS)
    return {name: _answer(answer) for name, answer in answers.items()}


def _answer(asked: Any) -> Any:
    ready, _ = ray.wait([asked], timeout=0)
    if not ready:
        with suppress(RayError):
            ray.cancel(asked, force=True)
        return Check(
            "answers",
            False,
            f"no answer within {NODE_SECONDS} s",
            "see raylet.out and the logs of its workers there, or replace the node",
        )
    try:
        return ray.get(asked)
    except (RayError, *_NOT_INSTALLED) as error:
        cause = error.cause if hasattr(error, "cause") and isinstance(error.cause, BaseException) else error
        if isinstance(error, RayTaskError) and not isinstance(cause, _NOT_INSTALLED):
            log.exception("the checks failed on a node")
            return Check("answers", False, f"the checks failed there: {first_line(cause)}", "report it, with the log")
        return Check(
            "answers",
            False,
            f"the checks cannot run there: {first_line(cause)}",
            "install on that node the mindseye of this machine, and start its Ray with that Python",
        )


@contextmanager
def _probes(uris: Sequence[str]) -> Iterator[list[Probe]]:
    """Write a file to each URI for the nodes to find, and delete it; of a folder that was not there, that as well."""
    probes, made = [], []
    for uri in dict.fromkeys(uris):
        path = Folder(uri).local_path
        if path and not path.exists():
            made.append(path)
        probes.append(Probe(Folder(uri).uri, write_and_delete(uri, keep=True)[1]))
    try:
        yield probes
    finally:
        for probe in probes:
            if probe.file:
                with suppress(OSError):
                    Folder(probe.uri).delete(probe.file)
        for path in made:
            with suppress(OSError):
                path.rmdir()
