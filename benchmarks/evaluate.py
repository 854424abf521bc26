"""Exact evaluation beside NumPy's full matrix product and sort, or on Ray beside one process: seconds and memory.

    .venv/bin/python -m benchmarks.evaluate [--rows 20000] [--queries 1000] [--labels 100]
    .venv/bin/python -m benchmarks.evaluate --on-ray --rows 1000000 --labels 1000 [--by-ids] [--folder FOLDER]

A gallery and queries of random vectors are ranked by three systems, each way in a process of its own. Printed are the
seconds, how much the peak of its memory grew meanwhile, and the mean AP of each system. With ``--on-ray`` half of the
rows have the vectors of another, and there follow the peaks of the driver, whole, against ``DRIVER_LIMIT``, and of the
largest worker. With ``--by-ids`` queries name their relevant rows, as many as a label has, and a junk row each. With
``--folder`` all of it stays there, and the same command begins where it was interrupted: after a way that took minutes.
With ``--fused`` one system is ranked, in a third of the time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from pydantic import BaseModel

from cluster.session import session
from pipelines.evaluate import all_measures, evaluate
from pipelines.pooling import pooled
from pipelines.ranking import exact_measures
from pipelines.running import current_executor
from pipelines.truth import measurable
from retrieval.artifacts import Gallery, ModelRecord, QuerySet, Role
from retrieval.artifacts.columns import fixed_size_list, matrix
from retrieval.artifacts.manifests import BatchRecord, GalleryManifest, PartRecord, QuerySetManifest
from retrieval.artifacts.queryset import queryset_schema, text_vectors, vision_vectors
from retrieval.folder import Folder
from retrieval.fusion import DEFAULT_WEIGHT, fused_query, unit
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


class Measured(BaseModel):
    """What one way took, and the AP of each query by system."""

    seconds: float
    grown: float
    """MB that the peak of its process grew by."""
    peak: float
    """MB of its process, whole, at its largest."""
    worker: float
    """MB of the largest worker, where there are any."""
    ap: dict[str, list[float]]


Found = tuple[dict[str, list[float]], float]
Way = Callable[[Gallery, QuerySet, bool], Found]
"""Returns the AP of each query by system, and MB of the largest worker."""


def in_one_process(gallery: Gallery, queries: QuerySet, fused: bool) -> Found:
    """Evaluate as ``mindseye evaluate --address none`` does."""
    with session("none"):
        return evaluated(gallery, queries, fused), 0


def on_ray(gallery: Gallery, queries: QuerySet, fused: bool) -> Found:
    """Evaluate as ``mindseye evaluate`` does on a local Ray."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112, so Ray spells it. The one process has none either
    with session("local"):
        ap = evaluated(gallery, queries, fused)
        workers = [each for each in psutil.Process().children(recursive=True) if "ray::" in each.name()]
        return ap, max(peak_megabytes(each.pid) for each in workers)


def evaluated(gallery: Gallery, queries: QuerySet, fused: bool) -> dict[str, list[float]]:
    if not fused:
        evaluation = evaluate(gallery, queries)
        return {system: evaluation.values(system, "name").tolist() for system in evaluation.systems}
    found = measurable(gallery, queries)
    joint_MD = fused_query(text_vectors(found.queries), pooled(*vision_vectors(found.queries)), DEFAULT_WEIGHT)
    rankings = found.truths, found.of_queries, found.rows, found.positives
    measured = dict(exact_measures(gallery, joint_MD, *rankings, all_measures))
    return {"fused": [ap for _, (ap, *_) in sorted(measured.items())]}


def plain(gallery: Gallery, queries: QuerySet, fused: bool) -> Found:
    """Evaluate with all scores and the whole order in memory, a system after the other."""
    from retrieval.query import pool

    tables = pa.concat_tables(gallery.tables(["label", "vlm", "vision"]))
    rows_ND = np.concatenate([matrix(tables["vlm"]), matrix(tables["vision"])], axis=1).astype(np.float32)
    labels_N = tables["label"].to_numpy()
    table = queries.table(["id", "label", "vlm", "vision"])
    mean_QD2 = pool(*vision_vectors(table))
    relevant = {label: labels_N == label for label in set(labels_N)}
    ap = {}
    weights = {} if fused else {"text": 0.0, "visual": 1.0}
    for system, weight in (weights | {"fused": DEFAULT_WEIGHT}).items():
        scores_QN = fused_query(text_vectors(table), mean_QD2, weight) @ rows_ND.T
        order_QN = np.argsort(-scores_QN, axis=1)
        aps = []
        for order_N, label in zip(order_QN, table["label"].to_pylist(), strict=True):
            hits = np.flatnonzero(relevant[label][order_N])
            aps.append(average_precision(hits, len(hits)))
        ap[system] = aps
    return ap, 0


def peak_megabytes(pid: int | str = "self") -> float:
    """Return the most memory that a process ever had, with what it shares with others, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def measured(way: Way, gallery: str, queries: str, fused: bool) -> Measured:
    """Evaluate artifacts once, in this process, in which nothing has been evaluated before."""
    opened = Gallery.open(gallery), QuerySet.open(queries)
    if way is not on_ray:  # whose driver does without PyTorch; what that loads at first is no one's
        from retrieval.query import pool

        pool(np.ones((1, 1, DIM), np.float32), np.ones((1, 1), bool))
    before, started = peak_megabytes(), time.perf_counter()
    ap, worker = way(*opened, fused)
    peak = peak_megabytes()
    seconds = time.perf_counter() - started
    return Measured(seconds=seconds, grown=peak - before, peak=peak, worker=worker, ap=ap)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 20_000), ("queries", 1000), ("labels", 100)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name in ("on-ray", "by-ids", "fused"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.by_ids and not given.on_ray:
        parser.error("--by-ids needs --on-ray: the plain way knows labels alone")
    print(f"{given.rows:,} rows, {given.queries:,} queries, {given.labels} labels", flush=True)
    with tempfile.TemporaryDirectory() as place:
        compare(Folder(given.folder or place), given)


def compare(place: Folder, given: argparse.Namespace) -> None:
    asked = {name: value for name, value in vars(given).items() if name != "folder"}
    if place.exists("asked.json") and (before := json.loads(place.read_bytes("asked.json"))) != asked:
        raise SystemExit(f"{place.uri} is of {before}, and this is {asked}: name another folder")
    place.write_json("asked.json", asked)
    if not place.exists("gallery/manifest.json"):
        with session("local" if given.on_ray else "none"):
            write_gallery(place / "gallery", given.rows, given.labels, twins=given.on_ray)
    if not place.exists("queries/manifest.json"):
        write_queries(place / "queries", given.queries, given.rows, given.labels, by_ids=given.by_ids)
    found = []
    ways: tuple[Way, Way] = (on_ray, in_one_process) if given.on_ray else (in_one_process, plain)
    for way in ways:
        name = f"{way.__name__}.json"
        if not place.exists(name):
            with multiprocessing.get_context("spawn").Pool(1) as process:
                made = process.apply(measured, (way, (place / "gallery").uri, (place / "queries").uri, given.fused))
            place.write_json(name, made.model_dump())
        one = Measured.model_validate_json(place.read_bytes(name))
        means = ", ".join(f"{system} {np.mean(ap):.6f}" for system, ap in one.ap.items())
        memory = f"+{one.grown:.0f} MB, peak {one.peak:.0f} MB"
        if one.worker:
            memory += f", {one.peak / DRIVER_LIMIT:.2f} of {DRIVER_LIMIT}; largest worker {one.worker:.0f} MB"
        print(f"{way.__name__}: {one.seconds:.1f} s, {memory}; mAP {means}", flush=True)
        found.append(one)
    ours, theirs = found
    apart = max(np.abs(np.subtract(ap, theirs.ap[system])).max() for system, ap in ours.ap.items())
    time_ratio, memory_ratio = ours.seconds / theirs.seconds, ours.grown / theirs.grown
    print(f"ratio: time {time_ratio:.2f}, memory {memory_ratio:.3f}; largest difference of an AP {apart:.1e}")


if __name__ == "__main__":
    main()
