"""What an evaluation holds in memory, by the size of the gallery, in one run.

    .venv/bin/python -m benchmarks.evaluate [--rows 20000] [--queries 1000] [--labels 100]

A gallery and queries of random vectors are ranked by three systems in this process, which so is driver and worker in
one. Printed are the seconds, how much the peak of its memory grew meanwhile, and the mean AP of each system.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.session import session
from pipelines.evaluate import evaluate
from retrieval.artifacts import Gallery, ModelRecord, QuerySet, Role
from retrieval.artifacts.columns import fixed_size_list
from retrieval.artifacts.manifests import QuerySetManifest
from retrieval.artifacts.queryset import queryset_schema
from retrieval.folder import Folder
from retrieval.fusion import unit

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


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 20_000), ("queries", 1000), ("labels", 100)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, session("none"):
        made = parts(given.rows, given.labels)
        gallery = Gallery.of_tables(Path(place, "gallery"), made, source="nowhere", models=MODELS)
        queries = query_set(Folder(Path(place, "queries")), given.queries, given.labels)
        before, started = peak_megabytes(), time.perf_counter()
        evaluation = evaluate(gallery, queries)
        seconds, grown = time.perf_counter() - started, peak_megabytes() - before
    means = ", ".join(f"{system} {evaluation.mean(system, 'name').mean:.6f}" for system in evaluation.systems)
    print(f"{given.rows:,} rows, {given.queries:,} queries, {given.labels} labels: {seconds:.0f} s, +{grown:.0f} MB")
    print(f"mAP: {means}")


if __name__ == "__main__":
    main()
