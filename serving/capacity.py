"""What a service takes: replicas of each deployment for a load, what one ranker can ask, what goes over the network.

The formulas are explained in docs/capacity.md; what a ranker's calls cost is measured by ``benchmarks.fan_out``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cluster.profile import Profile, Replicas
from cluster.sheet import Figure, Sheet
from retrieval.index.kinds import memory_of
from serving.deployments.shards import NUMBERS, deployment_count, rows_to_send

PART_BYTES = 700
"""What the answer of a shard takes on the wire beside its rows (``benchmarks.fan_out``)."""
RANKINGS = 2
"""Of a fused request: by the text first, then by its images. A remembered one that is no stream takes one."""
MONTH_S = 730 * 3600
SMALL = 0.05
"""Of the time that shards have, what a ranking may cost the ranker before fewer calls are advised."""


@dataclass
class Machines:
    """Figures of all deployments: CPUs, GPUs and bytes of memory of all their replicas."""

    cpus: list[Figure] = field(default_factory=list)
    gpus: list[Figure] = field(default_factory=list)
    memory: list[Figure] = field(default_factory=list)


def deployments_of(sheet: Sheet, profile: Profile) -> int:
    """Return how many deployments the shards are, 0 where each ranker holds them itself."""
    cut, settings = sheet.cut, profile.serve
    files = cut.shards * (memory_of(cut.factory, cut.rows, cut.dim) + cut.rows * 2 * cut.dim)
    return deployment_count(cut.shards, files, settings)


def add_fan_out(sheet: Sheet, profile: Profile) -> Figure:
    """Add what a ranking costs the ranker, and how many deployments it can ask in time; return the CPU milliseconds."""
    settings, cut, k = profile.serve, sheet.cut, sheet.workload.k
    calls = deployments_of(sheet, profile)
    sheet.add("fan-out", "calls of a ranking", "", "deployments of shards", lambda: calls)
    merging = sheet.add(
        "fan-out",
        "merging",
        "ms",
        "S × part_ms + k × row_ms, CPU of the ranker",
        lambda part, row: cut.shards * part + k * row,
        "part_ms",
        "row_ms",
    )
    ranking = sheet.add(
        "fan-out",
        "ranking",
        "ms",
        "calls × call_ms + merging",
        lambda call, rest: calls * call + rest,
        "call_ms",
        merging,
    )
    room = settings.shard_timeout_ms
    most = sheet.add(
        "fan-out",
        "deployments within shard_timeout_ms",
        "",
        "((1 − busy) × shard_timeout_ms − merging) / call_ms: a ranker that is busy is 1 / (1 − busy) times as slow",
        lambda busy, call, rest: max(0, math.floor(((1 - busy) * room - rest) / call)),
        "busy",
        "call_ms",
        merging,
    )
    if ranking.value and ranking.value > SMALL * room:
        advised = sheet.add(
            "fan-out",
            "shards of a deployment, advised",
            "",
            "S × call_ms / merging: then calls cost no more than merging does",
            lambda call, rest: min(cut.shards, math.ceil(cut.shards * call / rest)),
            "call_ms",
            merging,
        )
        if most.value is not None and calls > most.value:
            sheet.notes.append(
                f"a ranker that is busy asks {most.value:,.0f} deployments within serve.shard_timeout_ms, and there are"
                f" {calls:,}: raise serve.shards_per_deployment, to {advised.value:,.0f} or what a node has memory for"
            )
    return ranking


def add_service(sheet: Sheet, profile: Profile, ranking: Figure) -> Machines:
    """Add the replicas for the load. ``ranking`` is the CPU milliseconds of a ranker for one."""
    settings, workload, cut = profile.serve, sheet.workload, sheet.cut
    new, images = workload.load * (1 - workload.hits), profile.queries.images
    machines, calls = Machines(), deployments_of(sheet, profile)
    rankings = workload.load * RANKINGS

    def replicas(
        name: str, of: Replicas, how: str, per_s: float, rate: str | Figure, deployments: int = 1, cores: float = 0
    ) -> Figure:
        """``rate`` is what a replica does in a second; or, of one that does several at once on its ``cores``, the
        milliseconds of one.
        """

        def count(value: float, busy: float) -> float:
            of_one = 1000 * max(1, cores) / value if cores else value
            return deployments * max(1, of.min_replicas, math.ceil(per_s / (of_one * busy)))

        found = sheet.add("service", f"{name}, replicas", "", how, count, rate, "busy")
        each = f"{name}, all replicas"
        machines.cpus.append(sheet.add("service", each, "CPU", f"× {of.cpus:g}", lambda n: n * of.cpus, found))
        if of.gpus:
            machines.gpus.append(sheet.add("service", each, "GPU", f"× {of.gpus:g}", lambda n: n * of.gpus, found))
        if found.value and found.value > deployments * of.max_replicas:
            field = "shards" if deployments > 1 else name
            sheet.notes.append(
                f"serve.{field}.max_replicas is {of.max_replicas}, and {found.value / deployments:,.0f} are needed"
            )
        return found

    replicas("ingress", settings.ingress, "load / (requests_per_s × busy)", workload.load, "requests_per_s")
    replicas("vlm", settings.vlm, "new queries / (texts_per_s × busy)", new, "texts_per_s")
    if settings.generator.max_replicas:
        how = "new queries × K / (generator_images_per_s × busy)"
        replicas("generator", settings.generator, how, new * images, "generator_images_per_s")
        how = "new queries × K / (pictures_per_s × busy)"
        replicas("vision", settings.vision, how, new * images, "pictures_per_s")
    how = f"{RANKINGS} × load × ranking / busy"
    ranker = replicas("ranker", settings.ranker, how, rankings, _on_one_core(sheet, ranking, calls), cores=1)
    held, holders = cut.shards, ranker
    if calls:
        held = min(cut.shards, settings.shards_per_deployment)
        search = sheet.add(
            "service",
            "search of a deployment",
            "ms",
            f"{held} shards × shard_search_ms",
            lambda each: held * each,
            "shard_search_ms",
        )
        how = f"deployments × {RANKINGS} × load × search / (cpus × busy)"
        holders = replicas(
            "shards", settings.shards, how, rankings, search, deployments=calls, cores=settings.shards.cpus
        )
    of_shard = memory_of(cut.factory, cut.rows, cut.dim)
    each = sheet.add(
        "service",
        "a replica with shards",
        "B",
        f"memory: {held} × (index + row table)",
        lambda row: held * (of_shard + cut.rows * (row + 1)),
        "row_bytes",
    )
    machines.memory.append(
        sheet.add("service", "all replicas with shards", "B", "memory", lambda *of: math.prod(of), each, holders)
    )
    return machines


def add_network(sheet: Sheet, profile: Profile) -> list[Figure]:
    """Add what goes over the network; return what leaves for clients in a month."""
    settings, workload, cut = profile.serve, sheet.workload, sheet.cut
    rows, calls = workload.images, deployments_of(sheet, profile)
    sheet.add("network", "sources, read once", "B", "N × source_bytes", lambda each: rows * each, "source_bytes")
    held = min(cut.shards, settings.shards_per_deployment) if calls else cut.shards
    of_shard = memory_of(cut.factory, cut.rows, cut.dim)
    sheet.add(
        "network",
        "index, to a node with one replica",
        "B",
        f"{held} × files of a shard; once a node, whatever its replicas",
        lambda row: held * (of_shard + cut.rows * (2 * cut.dim + row)),
        "row_file_bytes",
    )
    leaving = []
    if calls:
        ranking = sheet.add(
            "network",
            "a ranking",
            "B",
            f"calls × 4D + S × (rows sent × ({NUMBERS} + row_bytes) + {PART_BYTES})",
            lambda row: calls * 4 * cut.dim + cut.shards * answer_bytes(workload.k, cut.rows, rows, cut.shards, row),
            "row_bytes",
        )
        sheet.add(
            "network",
            "rankings",
            "B/s",
            f"{RANKINGS} × load × a ranking",
            lambda each: RANKINGS * workload.load * each,
            ranking,
        )
    if workload.load:
        leaving.append(
            sheet.add(
                "network",
                "answers, a month",
                "B",
                f"{RANKINGS} × load × k × result_bytes; pictures are not in it",
                lambda each: RANKINGS * workload.load * MONTH_S * workload.k * each,
                "result_bytes",
            )
        )
    return leaving


def answer_bytes(k: int, rows: int, of_rows: int, shards: int, row_bytes: float) -> float:
    """Return the bytes that one shard sends for a ranking."""
    return min(k, rows_to_send(k, rows, of_rows, shards, row_bytes)) * (NUMBERS + row_bytes) + PART_BYTES


def _on_one_core(sheet: Sheet, ranking: Figure, calls: int) -> Figure:
    """The milliseconds of a ranking in a ranker: one event loop, however many CPUs it has. If it holds the shards, it
    searches them as well.
    """
    if calls:
        return ranking
    return sheet.add(
        "service",
        "search in the ranker",
        "ms",
        "S × shard_search_ms + ranking",
        lambda each, rest: sheet.cut.shards * each + rest,
        "shard_search_ms",
        ranking,
    )
