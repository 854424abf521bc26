"""Exact evaluation beside NumPy's full matrix product and sort: seconds and memory, in one run.

    .venv/bin/python -m benchmarks.evaluate [--rows 20000] [--queries 1000] [--labels 100]

A gallery and queries of random vectors are ranked by three systems, each way in a process of its own that is driver and
worker in one. Printed are the seconds, how much the peak of its memory grew meanwhile, and the mean AP of each system.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cluster.session import session
from pipelines.evaluate import evaluate
from retrieval.artifacts import Gallery, ModelRecord, QuerySet, Role
from retrieval.artifacts.columns import fixed_size_list, matrix
from retrieval.artifacts.manifests import QuerySetManifest
from retrieval.artifacts.queryset import queryset_schema, text_vectors, vision_vectors
from retrieval.folder import Folder
from retrieval.fusion import fused_query, unit
from retrieval.metrics import average_precision
from retrieval.query import pool

DIM, ROWS_PER_PART = 64, 2000
MODELS: dict[Role, ModelRecord] = {
    "vlm": ModelRecord(uri="random:vlm", fingerprint="vlm", dim=DIM),
    "vision": ModelRecord(uri="random:vision", fingerprint="vision", dim=DIM),
}


def parts(rows: int, labels: int) -> Iterator[pa.Table]:
    rng = np.random.default_rng(0)
    for start in range(0, rows, ROWS_PER_PART):
        numbers = range(start, min(start + ROWS_PER_PART, rows))
        vlm, vision = (unit(rng.standard_normal((len(numbers), DIM))).astype(np.float16) for _ in range(2))
        ids = [f"{number:032x}" for number in numbers]
        yield pa.table(
            {
                "id": ids,
                "path": ids,
                "label": [f"label {number % labels}" for number in numbers],
                "width": pa.array([64] * len(ids), pa.int32()),
                "height": pa.array([64] * len(ids), pa.int32()),
                "vlm": fixed_size_list(vlm),
                "vision": fixed_size_list(vision),
            }
        )


def query_set(folder: Folder, queries: int, labels: int) -> QuerySet:
    rng = np.random.default_rng(1)
    rows = [
        {
            "id": f"{number:016x}",
            "text": f"text {number}",
            "kind": "name",
            "label": f"label {number % labels}",
            "vlm": unit(rng.standard_normal((1, DIM)))[0],
            "vision": list(unit(rng.standard_normal((4, DIM)))),
            "seeds": [0, 1, 2, 3],
            "thumbnails": [b""] * 4,
            "rejected": [],
        }
        for number in range(queries)
    ]
    folder.write_table("queries/000000.parquet", pa.Table.from_pylist(rows, schema=queryset_schema(DIM, DIM)))
    manifest = QuerySetManifest(queries=queries, images=4, seed=0, templates=["{}"], models=MODELS)
    return QuerySet.publish(folder, manifest)


class Measured(NamedTuple):
    """What one way took, and mAP of each system."""

    seconds: float
    megabytes: float
    means: dict[str, float]


def exact(gallery: Gallery, queries: QuerySet) -> dict[str, float]:
    """Evaluate as ``mindseye evaluate`` does."""
    with session("none"):
        evaluation = evaluate(gallery, queries)
    return {system: evaluation.mean(system, "name").mean for system in evaluation.systems}


def plain(gallery: Gallery, queries: QuerySet) -> dict[str, float]:
    """Evaluate with all scores and the whole order in memory, a system after the other."""
    tables = pa.concat_tables(gallery.tables(["label", "vlm", "vision"]))
    rows_ND = np.concatenate([matrix(tables["vlm"]), matrix(tables["vision"])], axis=1).astype(np.float32)
    labels_N = tables["label"].to_numpy()
    table = queries.table(["id", "label", "vlm", "vision"])
    mean_QD2 = pool(*vision_vectors(table))
    relevant = {label: labels_N == label for label in set(labels_N)}
    means = {}
    for system, weight in (("text", 0.0), ("visual", 1.0), ("fused", 0.5)):
        scores_QN = fused_query(text_vectors(table), mean_QD2, weight) @ rows_ND.T
        order_QN = np.argsort(-scores_QN, axis=1)
        aps = []
        for order_N, label in zip(order_QN, table["label"].to_pylist(), strict=True):
            hits = np.flatnonzero(relevant[label][order_N])
            aps.append(average_precision(hits, len(hits)))
        means[system] = float(np.mean(aps))
    return means


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(way: Callable[[Gallery, QuerySet], dict[str, float]], gallery: str, queries: str) -> Measured:
    """Evaluate artifacts once, in this process, in which nothing has been evaluated before."""
    opened = Gallery.open(gallery), QuerySet.open(queries)
    pool(np.ones((1, 1, DIM), np.float32), np.ones((1, 1), bool))  # what PyTorch loads at first is no one's
    before, started = peak_megabytes(), time.perf_counter()
    means = way(*opened)
    return Measured(time.perf_counter() - started, peak_megabytes() - before, means)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 20_000), ("queries", 1000), ("labels", 100)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    print(f"{given.rows:,} rows, {given.queries:,} queries, {given.labels} labels")
    with tempfile.TemporaryDirectory() as place:
        made = parts(given.rows, given.labels)
        gallery = Gallery.of_tables(Path(place, "gallery"), made, source="nowhere", models=MODELS)
        queries = query_set(Folder(Path(place, "queries")), given.queries, given.labels)
        found = []
        for way in (exact, plain):
            with multiprocessing.get_context("spawn").Pool(1) as process:
                found.append(process.apply(measured, (way, gallery.uri, queries.uri)))
            seconds, megabytes, means = found[-1]
            said = ", ".join(f"{system} {mean:.6f}" for system, mean in means.items())
            print(f"{way.__name__}: {seconds:.1f} s, +{megabytes:.0f} MB; mAP {said}", flush=True)
    ours, theirs = found
    print(f"ratio: time {ours.seconds / theirs.seconds:.2f}, memory {ours.megabytes / theirs.megabytes:.3f}")


if __name__ == "__main__":
    main()
