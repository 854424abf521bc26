"""Exact evaluation beside NumPy's full matrix product and sort, or on Ray beside one process: seconds and memory.

    .venv/bin/python -m benchmarks.evaluate [--rows 20000] [--queries 1000] [--labels 100]
    .venv/bin/python -m benchmarks.evaluate --on-ray --rows 1000000 --labels 1000 [--by-ids]

A gallery and queries of random vectors are ranked by three systems, each way in a process of its own. Printed are the
seconds, how much the peak of its memory grew meanwhile, and the mean AP of each system. With ``--on-ray`` half of the
rows have the vectors of another, and there follow the peaks of the driver, whole, against ``DRIVER_LIMIT``, and of the
largest worker. With ``--by-ids`` queries name their relevant rows, as many as a label has, and a junk row each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow as pa

from cluster.session import session
from pipelines.evaluate import evaluate
from pipelines.running import current_executor
from retrieval.artifacts import Gallery, ModelRecord, QuerySet, Role
from retrieval.artifacts.columns import fixed_size_list, matrix
from retrieval.artifacts.manifests import BatchRecord, GalleryManifest, PartRecord, QuerySetManifest
from retrieval.artifacts.queryset import queryset_schema, text_vectors, vision_vectors
from retrieval.folder import Folder
from retrieval.fusion import fused_query, unit
from retrieval.metrics import average_precision

DIM, ROWS_PER_PART = 64, 2000
DRIVER_LIMIT = 500
"""MB that the driver may take, Python and libraries included, however many rows the gallery has."""
MODELS: dict[Role, ModelRecord] = {
    "vlm": ModelRecord(uri="random:vlm", fingerprint="vlm", dim=DIM),
    "vision": ModelRecord(uri="random:vision", fingerprint="vision", dim=DIM),
}


def row_id(number: int) -> str:
    return f"{number:032x}"


def write_part(folder: Folder, start: int, end: int, labels: int, twins: bool) -> PartRecord:
    rng = np.random.default_rng(start)
    numbers = range(start, end)
    vlm, vision = (unit(rng.standard_normal((len(numbers), DIM))).astype(np.float16) for _ in range(2))
    if twins:
        vlm[1::2], vision[1::2] = vlm[: len(vlm) // 2], vision[: len(vlm) // 2]
    ids = [row_id(number) for number in numbers]
    table = pa.table(
        {
            "id": ids,
            "path": ids,
            "label": [f"label {number % labels}" for number in numbers],
            "width": pa.array([64] * len(ids), pa.int32()),
            "height": pa.array([64] * len(ids), pa.int32()),
            "batch": ["000001"] * len(ids),
            "vlm": fixed_size_list(vlm),
            "vision": fixed_size_list(vision),
        }
    )
    name = f"{Gallery.batch('000001', 'parts')}/{start:09d}{Gallery.EMBEDDED}"
    folder.write_table(name, table)
    return PartRecord(name=name, rows=len(ids))


def write_gallery(folder: Folder, rows: int, labels: int, *, twins: bool) -> Gallery:
    """Write a gallery, part by part in tasks of the open session."""
    starts = range(0, rows, ROWS_PER_PART)
    items = [(folder, start, min(start + ROWS_PER_PART, rows), labels, twins) for start in starts]
    written = current_executor().map(write_part, items)
    batch = BatchRecord(name="000001", source="nowhere", inputs=rows, rows=rows)
    return Gallery.publish(folder, GalleryManifest(rows=rows, batches=[batch], parts=written, models=MODELS))


def write_queries(folder: Folder, queries: int, rows: int, labels: int, *, by_ids: bool) -> QuerySet:
    """Write queries; by ids, each names the rows of its label as relevant, and one of the next label as junk."""
    rng = np.random.default_rng(1)
    for start in range(0, queries, 100):  # ids of a thousand queries can be millions
        made = []
        for number in range(start, min(start + 100, queries)):
            label = number % labels
            row = {
                "id": f"{number:016x}",
                "text": f"text {number}",
                "kind": "name",
                "label": None if by_ids else f"label {label}",
                "vlm": unit(rng.standard_normal((1, DIM)))[0],
                "vision": list(unit(rng.standard_normal((4, DIM)))),
                "seeds": [0, 1, 2, 3],
                "thumbnails": [b""] * 4,
                "rejected": [],
            }
            if by_ids:
                row["relevant"] = [row_id(of_label) for of_label in range(label, rows, labels)]
                row["junk"] = [row_id((label + 1) % labels)]
            made.append(row)
        folder.write_table(f"queries/{start:06d}.parquet", pa.Table.from_pylist(made, schema=queryset_schema(DIM, DIM)))
    manifest = QuerySetManifest(queries=queries, images=4, seed=0, templates=["{}"], models=MODELS)
    return QuerySet.publish(folder, manifest)


class Measured(NamedTuple):
    """What one way took, and the AP of each query by system."""

    seconds: float
    grown: float
    """MB that the peak of its process grew by."""
    peak: float
    """MB of its process, whole, at its largest."""
    worker: float
    """MB of the largest worker, where there are any."""
    ap: dict[str, np.ndarray]


Way = Callable[[Gallery, QuerySet], tuple[dict[str, np.ndarray], float]]
"""Returns the AP of each query by system, and MB of the largest worker."""


def in_one_process(gallery: Gallery, queries: QuerySet) -> tuple[dict[str, np.ndarray], float]:
    """Evaluate as ``mindseye evaluate --address none`` does."""
    with session("none"):
        evaluation = evaluate(gallery, queries)
    return {system: evaluation.values(system, "name") for system in evaluation.systems}, 0


def on_ray(gallery: Gallery, queries: QuerySet) -> tuple[dict[str, np.ndarray], float]:
    """Evaluate as ``mindseye evaluate`` does on a local Ray."""
    with session("local"):
        evaluation = evaluate(gallery, queries)
        workers = [each for each in psutil.Process().children(recursive=True) if "ray::" in each.name()]
        worker = max(peak_megabytes(each.pid) for each in workers)
    return {system: evaluation.values(system, "name") for system in evaluation.systems}, worker


def plain(gallery: Gallery, queries: QuerySet) -> tuple[dict[str, np.ndarray], float]:
    """Evaluate with all scores and the whole order in memory, a system after the other."""
    from retrieval.query import pool

    tables = pa.concat_tables(gallery.tables(["label", "vlm", "vision"]))
    rows_ND = np.concatenate([matrix(tables["vlm"]), matrix(tables["vision"])], axis=1).astype(np.float32)
    labels_N = tables["label"].to_numpy()
    table = queries.table(["id", "label", "vlm", "vision"])
    mean_QD2 = pool(*vision_vectors(table))
    relevant = {label: labels_N == label for label in set(labels_N)}
    ap = {}
    for system, weight in (("text", 0.0), ("visual", 1.0), ("fused", 0.5)):
        scores_QN = fused_query(text_vectors(table), mean_QD2, weight) @ rows_ND.T
        order_QN = np.argsort(-scores_QN, axis=1)
        aps = []
        for order_N, label in zip(order_QN, table["label"].to_pylist(), strict=True):
            hits = np.flatnonzero(relevant[label][order_N])
            aps.append(average_precision(hits, len(hits)))
        ap[system] = np.array(aps)
    return ap, 0


def peak_megabytes(pid: int | str = "self") -> float:
    """Return the most memory that a process ever had, with what it shares with others, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def measured(way: Way, gallery: str, queries: str) -> Measured:
    """Evaluate artifacts once, in this process, in which nothing has been evaluated before."""
    opened = Gallery.open(gallery), QuerySet.open(queries)
    if way is not on_ray:  # whose driver does without PyTorch; what that loads at first is no one's
        from retrieval.query import pool

        pool(np.ones((1, 1, DIM), np.float32), np.ones((1, 1), bool))
    before, started = peak_megabytes(), time.perf_counter()
    ap, worker = way(*opened)
    peak = peak_megabytes()
    return Measured(time.perf_counter() - started, peak - before, peak, worker, ap)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 20_000), ("queries", 1000), ("labels", 100)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--on-ray", action="store_true")
    parser.add_argument("--by-ids", action="store_true")
    given = parser.parse_args()
    if given.by_ids and not given.on_ray:
        parser.error("--by-ids needs --on-ray: the plain way knows labels alone")
    ways: tuple[Way, Way] = (on_ray, in_one_process) if given.on_ray else (in_one_process, plain)
    print(f"{given.rows:,} rows, {given.queries:,} queries, {given.labels} labels")
    with tempfile.TemporaryDirectory() as place:
        with session("local" if given.on_ray else "none"):
            gallery = write_gallery(Folder(Path(place, "gallery")), given.rows, given.labels, twins=given.on_ray)
        folder = Folder(Path(place, "queries"))
        queries = write_queries(folder, given.queries, given.rows, given.labels, by_ids=given.by_ids)
        found = []
        for way in ways:
            with multiprocessing.get_context("spawn").Pool(1) as process:
                one = process.apply(measured, (way, gallery.uri, queries.uri))
            means = ", ".join(f"{system} {ap.mean():.6f}" for system, ap in one.ap.items())
            memory = f"+{one.grown:.0f} MB, peak {one.peak:.0f} MB"
            if one.worker:
                memory += f", {one.peak / DRIVER_LIMIT:.2f} of {DRIVER_LIMIT}; largest worker {one.worker:.0f} MB"
            print(f"{way.__name__}: {one.seconds:.1f} s, {memory}; mAP {means}", flush=True)
            found.append(one)
    ours, theirs = found
    apart = max(np.abs(ap - theirs.ap[system]).max() for system, ap in ours.ap.items())
    time_ratio, memory_ratio = ours.seconds / theirs.seconds, ours.grown / theirs.grown
    print(f"ratio: time {time_ratio:.2f}, memory {memory_ratio:.3f}; largest difference of an AP {apart:.1e}")


if __name__ == "__main__":
    main()
