"""What a capacity plan says of an index, against one that is built: bytes on disk, memory when open, time to build.

    .venv/bin/python -m benchmarks.capacity [--rows 100000 300000 1000000] [--work FOLDER] [--json FILE]

Galleries of synthetic embeddings (``benchmarks.index_scale``: 2 × 320 dimensions) are built into one shard each, in
this process and without Ray, with as many threads as there are cores. Sizes are compared with the formulas of
``pipelines.capacity``. Times are CPU seconds of this process, of all its threads; those of the last are predicted from
the rates that all but the last were built at, at least two. Memory is the growth of a process that opens the shard and
reads all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import faiss
import numpy as np

from benchmarks.index_scale import DIM, write_gallery
from cluster.profile import load_profile
from cluster.rates import Known
from cluster.sheet import Sheet, Workload, cut_of
from pipelines.capacity import add_jobs, add_memory, add_storage
from retrieval.artifacts import Gallery
from retrieval.index.build import build_shard
from retrieval.index.kinds import choose_factory
from retrieval.index.shard import Shard
from retrieval.timing import timed

MEMORY = """
import io, sys, psutil
import pyarrow as pa, pyarrow.parquet as pq
from pathlib import Path
from retrieval.index.shard import Shard
small = io.BytesIO()
pq.write_table(pa.table({"id": ["a", "b"]}), small)
pq.read_table(small)  # Arrow's own 50 MB
process = psutil.Process()
before = process.memory_info()
shard = Shard.open(Path(sys.argv[1]), mmap=False)
after = process.memory_info()
print(after.rss - after.shared - before.rss + before.shared)
"""
"""The bytes by which the process grows that opens a shard."""
TRAINING = "training the lists"
FILLING = "filling shards"
REST = ("place", "tune", "write", "recall")
Figures = dict[str, Any]


def planned(rows: int, rates: dict[str, float]) -> dict[str, float | None]:
    """Return the figures of a plan for an index of one shard, by section and name."""
    profile = load_profile("tiny")
    profile = profile.model_copy(update={"index": profile.index.model_copy(update={"rows_per_shard": rows})})
    workload, known = Workload(images=rows), Known.of(given={"vlm_dim": DIM, "vision_dim": DIM, **rates})
    sheet = Sheet(workload, known, cut_of(workload, known.rates, profile))
    add_storage(sheet, profile)
    add_memory(sheet)
    add_jobs(sheet, profile)
    return {f"{figure.section}: {figure.name}": figure.value for figure in sheet.figures}


def built(gallery: Gallery, folder: Path) -> Figures:
    """Build and open the shard; return bytes of its files and of the gallery, its memory, and seconds of its steps."""
    spent: dict[str, float] = {}
    factory = choose_factory("auto", gallery.manifest.rows, 2 * DIM, None)
    columns = [name for name in gallery.folder.read_schema(gallery.parts()[0]).names if name not in ("vlm", "vision")]
    with mock.patch("time.perf_counter", time.process_time):  # what else the machine does is not to count
        files = build_shard(
            folder,
            gallery.tables(columns, rows=4096),
            gallery.tables(["id", "vlm", "vision"], rows=4096),
            vlm_dim=DIM,
            factory=factory,
            trained=None,
            spent=spent,
        )
        with timed(spent, "recall"):
            shard = Shard.open(folder)
            shard.exact(shard.vectors[:1000].astype("float32"), 100)
    command = [sys.executable, "-c", MEMORY, str(folder)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {
        "factory": factory,
        "gallery": sum((Path(gallery.folder.path) / name).stat().st_size for name in gallery.parts()),
        "files": {name: int(record["bytes"]) for name, record in files.items()},
        "row_bytes": shard.rows.nbytes / shard.rows.num_rows,
        "memory": grown,
        "spent": spent,
    }


def measured(rows: int, work: Path) -> Figures:
    """Build one gallery, which is written first unless it is there, into a shard."""
    place = work / f"gallery-{rows}"
    gallery = Gallery.open(place) if place.exists() else write_gallery(place, rows)[0]
    with tempfile.TemporaryDirectory(dir=work) as folder:
        return {"rows": rows, **built(gallery, Path(folder) / "shard")}


def fitted(runs: list[Figures]) -> dict[str, float]:
    """Return the rates at which these indexes were built, two or more: of products by k-means, which takes its ten
    rounds here; the rest of all other steps by least squares, as so much for each value and so much for each shard.
    """
    plans = [planned(run["rows"], {"products_per_s": 1.0}) for run in runs]
    training, filling = ([(plan[f"jobs: {step}, CPUs"] or 0) * 3600 for plan in plans] for step in (TRAINING, FILLING))
    products_per_s = sum(training) / sum(run["spent"]["train"] for run in runs)
    rest = [
        run["spent"]["add"] - products / products_per_s + sum(run["spent"][step] for step in REST)
        for run, products in zip(runs, filling, strict=True)
    ]
    values = [[run["rows"] * 2.0 * DIM, 1.0] for run in runs]
    each_value, each_shard = np.linalg.lstsq(np.array(values), np.array(rest), rcond=None)[0]
    first = runs[0]
    return {
        "products_per_s": products_per_s,
        "values_per_s": 1 / each_value,
        "shard_s": max(0.0, each_shard),
        "row_file_bytes": first["files"]["rows.parquet"] / first["rows"],
        "row_bytes": first["row_bytes"],
    }


def compared(run: Figures, rates: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Return what is planned with these rates, and what is real."""
    plan = {name: value or 0.0 for name, value in planned(run["rows"], rates).items()}
    files, spent, index = run["files"], run["spent"], f"index, {run['factory']}"
    filling = sum(plan[f"jobs: {step}, CPUs"] * 3600 for step in (FILLING, "rest of the shards"))
    training, rest = plan[f"jobs: {TRAINING}, CPUs"] * 3600, spent["add"] + sum(spent[step] for step in REST)
    held = plan["memory of a shard: held"] + plan["memory of a shard: exact vectors, mapped"]
    return {
        "gallery, bytes": (plan["storage: gallery"], run["gallery"]),
        "exact vectors, bytes": (plan["storage: exact vectors"], files["vectors.npy"]),
        "index, bytes": (plan[f"storage: {index}"], files["index.faiss"]),
        "row table, bytes": (plan["storage: row tables"], files["rows.parquet"]),
        "memory of the open shard, bytes": (held, run["memory"]),
        "training the lists, CPU s": (training, spent["train"]),
        "filling and the rest, CPU s": (filling, rest),
        "all, CPU s": (training + filling, spent["train"] + rest),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--work", type=Path, help="keep galleries here, and use those that are there")
    parser.add_argument("--json", type=Path, help="write what was measured here; what is there is not measured again")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    runs: dict[str, Figures] = {}
    if arguments.json and arguments.json.exists():
        runs = json.loads(arguments.json.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        for rows in arguments.rows:
            if str(rows) not in runs:
                runs[str(rows)] = measured(rows, arguments.work or Path(scratch))
                print(json.dumps(runs[str(rows)]), flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    of_rows = [runs[str(rows)] for rows in arguments.rows]
    for which, of in (("all but the last", of_rows[:-1]), ("all", of_rows)):
        rates = fitted(of)
        print(f"rates of {which}:", ", ".join(f"{name} = {value:.4g}" for name, value in rates.items()))
        for run in of_rows:
            print(f"{run['rows']:,} rows, {run['factory']}: planned, real, ratio")
            for name, (ours, real) in compared(run, rates).items():
                print(f"  {name:40} {ours:18,.1f} {real:18,.1f}  {ours / real:.3f}")


if __name__ == "__main__":
    main()
