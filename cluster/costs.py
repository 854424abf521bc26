"""What a plan costs, with the operator's prices."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.sheet import Figure, Sheet

MONTH_H, GB = 730, 1e9


def add_costs(
    sheet: Sheet,
    *,
    gpu_hours: Sequence[Figure],
    cpu_hours: Sequence[Figure],
    stored: Figure,
    gpus: Sequence[Figure],
    cpus: Sequence[Figure],
    memory: Sequence[Figure],
    leaving: Sequence[Figure],
) -> None:
    """Add the price of the jobs, once, and of storage and the service, each month.

    Args:
        gpu_hours, cpu_hours: of the jobs.
        stored: bytes in the object store.
        gpus, cpus, memory: of the service's replicas; memory in bytes.
        leaving: bytes for clients in a month.
    """
    once = [
        sheet.add("cost", name, "", f"{how} × {price}", lambda each, *hours: each * sum(hours), price, *figures)
        for name, how, price, figures in (
            ("jobs, GPUs", "GPU h", "gpu_hour", gpu_hours),
            ("jobs, CPUs", "CPU h", "cpu_hour", cpu_hours),
        )
        if figures
    ]
    sheet.add("cost", "jobs, once", "", "sum", lambda *of: sum(of), *once)
    monthly = [
        sheet.add(
            "cost", "storage, a month", "", "written, in GB, × storage_gb_month",
            lambda price, size: price * size / GB, "storage_gb_month", stored,
        )
    ]  # fmt: skip
    for name, unit, price, figures, scale in (
        ("service, GPUs, a month", "GPUs × 730 h × gpu_hour", "gpu_hour", gpus, MONTH_H),
        ("service, CPUs, a month", "CPUs × 730 h × cpu_hour", "cpu_hour", cpus, MONTH_H),
        ("service, memory, a month", "GB × 730 h × memory_gb_hour", "memory_gb_hour", memory, MONTH_H / GB),
        ("answers, a month", "GB × egress_gb", "egress_gb", leaving, 1 / GB),
    ):
        if figures:
            monthly.append(
                sheet.add(
                    "cost", name, "", unit,
                    lambda each, *of, scale=scale: each * sum(of) * scale, price, *figures,
                )
            )  # fmt: skip
    sheet.add("cost", "a month", "", "sum", lambda *of: sum(of), *monthly)
