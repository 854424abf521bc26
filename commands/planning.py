"""The sheet of a capacity plan, of what jobs and service say that they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.costs import add_costs
from cluster.profile import Profile
from cluster.rates import Known
from cluster.sheet import Sheet, Workload, cut_of
from pipelines.capacity import add_jobs, add_memory, add_storage
from retrieval.errors import UserError
from serving.capacity import Machines, add_fan_out, add_network, add_service

MOST = 1e12


def capacity_plan(
    profile: Profile,
    given: Mapping[str, Any],
    measured: Mapping[str, float],
    *,
    images: float,
    queries: float = 0,
    load: float = 0,
    hits: float = 0,
    k: int = 100,
) -> Sheet:
    """Return the plan of a gallery, of a vocabulary that is imagined, and of a service.

    Args:
        profile: models, and what each stage and deployment may use.
        given: rates by name (``cluster.rates.Rates``).
        measured: those of a calibration.
        images, queries: counts.
        load: requests in a second.
        hits: share of them that is remembered.
        k: results of a request.

    Raises:
        UserError: a count is out of range (``out-of-range``), or as ``Known.of`` and ``cut_of``.
    """
    for name, value, least, most in (
        ("images", images, 1, MOST),
        ("vocabulary", queries, 0, MOST),
        ("load", load, 0, MOST),
        ("hits", hits, 0, 1),
        ("k", k, 1, MOST),
    ):
        if not least <= value <= most:
            raise UserError(
                f"{name} must be from {least} to {most:g}, not {value:g}",
                code="out-of-range",
                field=name,
            )
    dims = {} if {"vlm_dim", "vision_dim"} <= {*given, *measured} else _dims(profile)
    known = Known.of(given=given, measured=measured, of_the_model=dims)
    workload = Workload(images=int(images), queries=int(queries), load=load, hits=hits, k=k)
    sheet = Sheet(workload, known, cut_of(workload, known.rates, profile))
    stored = add_storage(sheet, profile)
    add_memory(sheet)
    gpu_hours, cpu_hours = add_jobs(sheet, profile)
    ranking = add_fan_out(sheet, profile)
    machines = add_service(sheet, profile, ranking) if load else Machines()
    leaving = add_network(sheet, profile)
    add_costs(
        sheet,
        gpu_hours=gpu_hours,
        cpu_hours=cpu_hours,
        stored=stored,
        gpus=machines.gpus,
        cpus=machines.cpus,
        memory=machines.memory,
        leaving=leaving,
    )
    return sheet


def _dims(profile: Profile) -> dict[str, int]:
    from retrieval.models.dims import vision_dim, vlm_dim

    found = {"vlm_dim": vlm_dim(profile.models.vlm), "vision_dim": vision_dim(profile.models.vision)}
    return {name: dim for name, dim in found.items() if dim is not None}
