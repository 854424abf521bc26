"""What an index and its jobs take: storage, shards, memory, hours of GPUs and CPUs. The formulas are explained in
docs/capacity.md and compared with what is really written and needed by ``benchmarks.capacity`` and the tests.

N rows, Q queries, K images of a query, D = D1 + D2 dimensions, S shards, L lists.
"""

from __future__ import annotations

import math

from cluster.profile import Profile
from cluster.sheet import Figure, Sheet
from retrieval.index.build import BLOCK_ROWS
from retrieval.index.kinds import fitted_factory, memory_of
from retrieval.index.train import training_rows

KINDS = ("Flat", "IVF{lists},Flat", "IVF{lists},SQ8", "IVF{lists},SQ4", "IVF{lists},RaBitQ", "HNSW32", "HNSW32,SQ8")
"""Kinds of index that a plan compares, in the words of docs/index-kinds.md."""
DRIVER_JOB, DRIVER_ADD, WORKER_RESUME = 4.0, 65.0, 13.0
"""Bytes a row: of the driver while a batch is embedded and counted, while rows are added to a gallery, and of the
worker that reads what a resumed job has written (``benchmarks.job_driver``, docs/indexing.md)."""
HOUR = 3600


def entry_bytes(images: int, vlm_dim: int, vision_dim: int, text: float, thumbnail: float) -> float:
    """Return the bytes of an imagined query: its text, its text vector, and vector, seed, index and small JPEG of each
    of K images.
    """
    return text + 4 * vlm_dim + images * (4 * vision_dim + 16 + thumbnail)


def add_storage(sheet: Sheet, profile: Profile) -> Figure:
    """Add what lies on disks and in object stores; return the total of what mindseye writes."""
    workload, cut, images = sheet.workload, sheet.cut, profile.queries.images
    rows, queries = workload.images, workload.queries
    sheet.add("storage", "sources", "B", "N × source_bytes; where they lie", lambda each: rows * each, "source_bytes")
    parts = [
        sheet.add(
            "storage",
            "gallery",
            "B",
            "N × (2D + row_file_bytes)",
            lambda row: rows * (2 * cut.dim + row),
            "row_file_bytes",
        ),
        sheet.add("storage", "exact vectors", "B", "N × 2D", lambda: rows * 2 * cut.dim),
        sheet.add(
            "storage",
            f"index, {cut.factory}",
            "B",
            "S × what FAISS writes",
            lambda: cut.shards * memory_of(cut.factory, cut.rows, cut.dim),
        ),
        sheet.add("storage", "row tables", "B", "N × row_file_bytes", lambda row: rows * row, "row_file_bytes"),
    ]
    if queries:
        needed = ("vlm_dim", "vision_dim", "text_bytes", "thumbnail_bytes")
        how = "Q × (text + 4·D1 + K × (4·D2 + 16 + thumbnail_bytes))"
        for name in ("query set", "query memory"):
            parts.append(sheet.add("storage", name, "B", how, lambda *of: queries * entry_bytes(images, *of), *needed))
    total = sheet.add("storage", "written, one version", "B", "sum without sources", lambda *each: sum(each), *parts)
    index = parts[1:4]
    sheet.add("storage", "while a new version is built", "B", "and a second index", lambda *of: sum(of), total, *index)
    return total


def add_memory(sheet: Sheet) -> None:
    """Add the memory of shards, for each kind of index, and of the jobs' processes."""
    workload, cut = sheet.workload, sheet.cut
    for kind in KINDS:
        factory = fitted_factory(kind.format(lists=4 * math.isqrt(cut.rows)), cut.rows, cut.dim)
        size = memory_of(factory, cut.rows, cut.dim)
        sheet.add("memory of indexes", factory, "B", "S × memory_of", lambda size=size: cut.shards * size)
    size = memory_of(cut.factory, cut.rows, cut.dim)
    index = sheet.add("memory of a shard", f"index, {cut.factory}", "B", "codes, ids, lists", lambda: size)
    table = sheet.add(
        "memory of a shard", "row table", "B", "rows × (row_bytes + 1)", lambda row: cut.rows * (row + 1), "row_bytes"
    )
    sheet.add("memory of a shard", "held", "B", "index and row table", lambda *of: sum(of), index, table)
    sheet.add(
        "memory of a shard",
        "exact vectors, mapped",
        "B",
        "rows × 2D; page cache, as there is room",
        lambda: cut.rows * 2 * cut.dim,
    )
    sheet.add(
        "memory of jobs",
        "building a shard",
        "B",
        "twice the index and the row table, and a block as float32",
        lambda index, table: 2 * index + 2 * table + BLOCK_ROWS * 4 * cut.dim,
        index,
        table,
    )
    sample = min(training_rows(cut.factory), workload.images)
    sheet.add(
        "memory of jobs",
        "training the lists",
        "B",
        "the sample, 4D bytes a row, twice",
        lambda: 2 * sample * 4 * cut.dim,
    )
    for name, each in (("driver", DRIVER_JOB), ("driver of an addition", DRIVER_ADD), ("resuming", WORKER_RESUME)):
        sheet.add(
            "memory of jobs", name, "B", f"N × {each:g}, docs/indexing.md", lambda each=each: workload.images * each
        )


def add_jobs(sheet: Sheet, profile: Profile) -> tuple[list[Figure], list[Figure]]:
    """Add the hours of GPUs and CPUs that the jobs take; return those of GPUs, and those of CPUs."""
    workload, cut = sheet.workload, sheet.cut
    gpu: list[Figure] = []
    cpu: list[Figure] = []

    def stage(name: str, how: str, rate: str, count: float, cpus: float, gpus: float, workers: int) -> None:
        hours = sheet.add("jobs", name, "h", f"{how} / {rate}, of one worker", lambda per_s: count / per_s / HOUR, rate)
        if workers > 1:
            sheet.add("jobs", f"{name}, {workers} workers", "h", "at once", lambda one: one / workers, hours)
        if gpus:
            gpu.append(sheet.add("jobs", f"{name}, GPUs", "GPU h", f"× {gpus:g}", lambda one: one * gpus, hours))
        cpu.append(sheet.add("jobs", f"{name}, CPUs", "CPU h", f"× {cpus:g}", lambda one: one * cpus, hours))

    embed, imagine, train = profile.embed, profile.imagine, profile.train
    stage("embedding", "N", "embed_rows_per_s", workload.images, embed.cpus, embed.gpus, embed.max_actors)
    cpu.append(
        sheet.add(
            "jobs",
            "decoding, CPUs",
            "CPU h",
            "N / decode_rows_per_s; by the embedders where they have no GPU",
            lambda rate: workload.images / rate / HOUR,
            "decode_rows_per_s",
        )
    )
    if workload.queries:
        images = workload.queries * profile.queries.images
        stage("imagining", "Q × K", "imagine_images_per_s", images, imagine.cpus, imagine.gpus, imagine.max_actors)
        workers = max(1, train.max_workers)
        cpus, gpus = workers * train.cpus, workers * train.gpus
        stage("training the aggregator", "steps", "train_steps_per_s", train.steps, cpus, gpus, 1)
    if cut.lists:
        sample = min(training_rows(cut.factory), workload.images)
        for name, rows, how, *further in (
            ("training the lists", sample, "kmeans_rounds × sample × L × D", "kmeans_rounds"),
            ("filling shards", workload.images, "N × L × D"),
        ):
            products = float(rows) * cut.lists * cut.dim
            cpu.append(
                sheet.add(
                    "jobs",
                    f"{name}, CPUs",
                    "CPU h",
                    f"{how} / products_per_s",
                    lambda rate, rounds=1, products=products: rounds * products / rate / HOUR,
                    "products_per_s",
                    *further,
                )
            )
    cpu.append(
        sheet.add(
            "jobs",
            "rest of the shards, CPUs",
            "CPU h",
            "N × D / values_per_s + S × shard_s",
            lambda rate, each: (workload.images * cut.dim / rate + cut.shards * each) / HOUR,
            "values_per_s",
            "shard_s",
        )
    )
    return gpu, cpu
