"""How building and searching an index grow with the rows, against FAISS alone, in one run.

    .venv/bin/python -m benchmarks.index_scale [--rows 100000 1000000] [--write]

A gallery of synthetic embeddings (2 × 320 dimensions, classes known to both halves) is written as gallery parts and
built by ``pipelines.index.build_index``. The peer is one process that reads the same parts, converts them to float32,
and calls FAISS's own ``train`` and ``add`` for the same kind, with as many threads: once as FAISS has them (256 rows a
list are clustered), once with our sample (64 rows a list). Building is ``train`` and ``add`` on both sides; what the
job does beside it (drawing the sample, reading and the exact vectors, tuning, writing, the recall gate) and the peer's
reading are given in seconds of their own, and all of it as a ratio. Start-up is left out of the job's rate: a gallery
of 256 rows is built in the same stages first, so that there is a worker that has imported what they need, and the
seconds in which the texts' model is loaded (``texts_s``; it did not make this gallery, so there are no texts) are given
apart. Memory is the highest ``Anonymous``
of any process of the job (files that are mapped are not in it).

The first stage: at λ = 0, the joint index with as many probes as it needs for recall@10 of 0.97, against a second,
text-only index of the same kind with as many as that needs.

``--write`` puts the figures into docs/index-scale.json and the plot into docs/index-scale.png.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import faiss
import matplotlib as mpl
import numpy as np
import psutil
import pyarrow as pa

from cluster.profile import load_profile
from cluster.session import session
from pipelines.index import build_index
from retrieval.artifacts import Gallery, Index, ModelRecord, Role
from retrieval.artifacts.columns import fixed_size_list, matrix
from retrieval.fusion import fused_query, unit
from retrieval.index.build import fill
from retrieval.index.effort import LAMBDA_GRID
from retrieval.index.files import VECTORS
from retrieval.index.hits import Hits, merge_topk
from retrieval.index.kinds import fitted_factory, new_index, search_parameters
from retrieval.index.shard import Shard
from retrieval.index.train import train, training_sample
from retrieval.metrics import neighbour_recall
from retrieval.timing import timed

DIM = 320
ROWS_PER_PART = 16_384
ROWS_PER_CLASS = 200
SPREAD = 1.5
"""Noise of a row and of a query, in norms of its class's centre."""
QUERIES = 200
FEW = 256
AIM = 0.97
THREADS = os.cpu_count() or 1
Figures = dict[str, Any]


def around(centres_CD: np.ndarray, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a unit vector near the centre of each class, float32 (N, D)."""
    noise = unit(rng.standard_normal((len(classes), centres_CD.shape[1]), dtype=np.float32))
    return unit(centres_CD[classes] + SPREAD * noise)


def write_gallery(
    folder: Path, rows: int, *, classes: int | None = None, seed: int = 0
) -> tuple[Gallery, np.ndarray, np.ndarray]:
    """Publish a gallery of so many rows, of the same classes whatever the seed; return it with QUERIES text and visual
    queries, float32 (Q, DIM).
    """
    count = classes or max(rows // ROWS_PER_CLASS, 1)
    centres, rng = np.random.default_rng(0), np.random.default_rng([1, seed])
    text, visual = (unit(centres.standard_normal((count, DIM))) for _ in range(2))

    def parts() -> Iterator[pa.Table]:
        for start in range(0, rows, ROWS_PER_PART):
            some = min(ROWS_PER_PART, rows - start)
            classes = rng.integers(count, size=some)
            ids = [f"{number:016x}" for number in rng.integers(2**62, size=some)]
            yield pa.table(
                {
                    "id": ids,
                    "path": [f"{start + n:09d}.jpg" for n in range(some)],
                    "label": [f"class {number}" for number in classes],
                    "width": pa.array([224] * some, pa.int32()),
                    "height": pa.array([224] * some, pa.int32()),
                    "vlm": fixed_size_list(around(text, classes, rng).astype(np.float16)),
                    "vision": fixed_size_list(around(visual, classes, rng).astype(np.float16)),
                }
            )

    models: dict[Role, ModelRecord] = {
        "vlm": ModelRecord(uri="synthetic:vlm", fingerprint="synthetic:vlm", dim=DIM),
        "vision": ModelRecord(uri="synthetic:vision", fingerprint="synthetic:vision", dim=DIM),
    }
    gallery = Gallery.of_tables(folder, parts(), source="synthetic", models=models)
    asked = rng.integers(count, size=QUERIES)
    return gallery, around(text, asked, rng), around(visual, asked, rng)


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Fill a dictionary with the most bytes of Anonymous memory of the processes started below this one, by name."""
    peaks: dict[str, int] = {}
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                try:
                    name = process.cmdline()[0]
                    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
                except (psutil.Error, OSError, IndexError):
                    continue  # it has ended
                used = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:")), 0)
                peaks[name] = max(peaks.get(name, 0), used)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def seconds_of(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def plain_build(gallery: Gallery, factory: str, *, tuned: bool) -> dict[str, float]:
    """Read, convert, train and add in one process; ``tuned`` takes our k-means instead of FAISS's. Return the seconds
    of each.
    """
    spent: dict[str, float] = {}
    with timed(spent, "read"):
        blocks = [
            np.concatenate([matrix(table["vlm"]), matrix(table["vision"])], axis=1).astype(np.float32)
            for table in gallery.tables(["vlm", "vision"])
        ]
        joint = np.concatenate(blocks)
        blocks.clear()
        sample = training_sample(joint.astype(np.float16), factory, 0) if tuned else joint
    with timed(spent, "train"):
        if tuned:
            index = train(sample, factory)
        else:
            index = new_index(factory, joint.shape[1])
            index.train(joint)
    with timed(spent, "add"):
        index.add(joint)
    return spent


def search_figures(index: Index, text: np.ndarray, visual: np.ndarray) -> Figures:
    """Measure recall@10 at each λ, and the median milliseconds of one query at 0, 0.5 and 1, over all shards."""
    shards = index.shards()
    recall, p50 = {}, {}
    for weight in LAMBDA_GRID:
        query = fused_query(text, visual, weight)
        found, exact = (
            merge_topk([getattr(shard, way)(query, 10) for shard in shards], 10).ids for way in ("search", "exact")
        )
        recall[str(weight)] = round(neighbour_recall(found, exact), 4)
        if weight in (0.0, 0.5, 1.0):
            times = [seconds_of(partial(_search_all, shards, one))[0] for one in query]
            p50[str(weight)] = round(float(np.median(times)) * 1e3, 3)
    return {"recall@10": recall, "search_p50_ms": p50, "efforts": [shard.efforts.tolist() for shard in shards]}


def _search_all(shards: list[Shard], query: np.ndarray) -> list[Hits]:
    return [shard.search(query, 10) for shard in shards]


def stage_figures(index: Any, query: np.ndarray, rows: np.ndarray, text: np.ndarray, truth: np.ndarray) -> Figures:
    """Measure the fewest probes (a power of two) with which the text stage reaches AIM, and its median milliseconds.

    Args:
        query: what the index is asked, (Q, D); its 200 candidates are rescored by ``text`` (Q, D1) and ``rows``
            (N, D1).
        truth: rows (Q, 10) of the exact answer.
    """

    def best(q: int, probes: int) -> np.ndarray:
        _, found = index.search(
            query[q : q + 1], 200, params=search_parameters(index, effort=probes, depth=200, selector=None)
        )
        near = np.sort(found[0][found[0] >= 0])
        return near[np.argsort(-(rows[near].astype(np.float32) @ text[q]), kind="stable")[:10]]

    probes = 1
    while True:
        times, found = zip(*(seconds_of(partial(best, q, probes)) for q in range(len(query))), strict=True)
        recall = float(np.mean([len(set(one) & set(other)) / 10 for one, other in zip(found, truth, strict=True)]))
        if recall >= AIM or probes >= index.nlist:
            return {"nprobe": probes, "recall@10": round(recall, 4), "p50_ms": round(float(np.median(times)) * 1e3, 3)}
        probes *= 2


def first_stage(joint: np.ndarray, factory: str, text: np.ndarray) -> Figures:
    """Measure the joint index against a text-only one at λ = 0; ``joint`` is float16 (N, D), ``text`` (Q, D1)."""
    rows = np.ascontiguousarray(joint[:, :DIM])
    _, truth = faiss.knn(text, rows.astype(np.float32), 10, metric=faiss.METRIC_INNER_PRODUCT)
    padded = np.concatenate([text, np.zeros_like(text)], axis=1)
    figures = {}
    for name, vectors, query in (("joint", joint, padded), ("text only", rows, text)):

        def build(vectors: np.ndarray = vectors) -> faiss.Index:
            index = train(training_sample(vectors, factory, 0), factory)
            fill(index, vectors)
            return index

        seconds, index = seconds_of(build)
        figures[name] = {
            "build_s": round(seconds, 1),
            "index_bytes_per_row": round(len(faiss.serialize_index(index)) / len(vectors), 1),
            **stage_figures(index, query, rows, text, truth),
        }
    return figures


def measure(rows: int, scratch: Path) -> Figures:
    """Build, search and compare one gallery."""
    gallery, text, visual = write_gallery(scratch / "gallery", rows)
    few, _, _ = write_gallery(scratch / "few", FEW)
    profile = load_profile("tiny")
    settings = profile.index.model_copy(update={"recall_floor": 0.0})
    profile = profile.model_copy(update={"index": settings})
    # So that it has all the stages of the large one.
    kind = "IVF4,SQ8" if "IVF" in fitted_factory("auto", rows, 2 * DIM) else "Flat"
    with session():
        start_up, _ = seconds_of(lambda: build_index(few, str(scratch / "few-index"), profile, shards=1, factory=kind))
        with peak_memory() as peaks:
            index = build_index(gallery, str(scratch / "index"), profile, shards=1)
    files = index.manifest.shards[0].files
    factory = index.manifest.factory
    name, peak = max(peaks.items(), key=lambda item: item[1])
    summary = index.folder.read_json("summary.json")
    spent = summary["spent"]
    loading = spent.pop("texts")
    build_s = summary["seconds"] - loading
    built = spent.get("train", 0.0) + spent["add"]
    figures = {
        "rows": rows,
        "factory": factory,
        "start_up_s": round(start_up, 1),
        "texts_s": loading,
        "job_s": round(build_s, 1),
        "job_rows_per_s": round(rows / build_s),
        "spent_s": spent,
        "peak_process": name,
        "peak_bytes": peak,
        "disk_bytes_per_row": {file: round(int(record["bytes"]) / rows, 1) for file, record in files.items()},
        **search_figures(index, text, visual),
    }
    faiss.omp_set_num_threads(THREADS)
    for peer, tuned in (("FAISS, our k-means", True), ("FAISS, its own k-means", False)):
        if tuned and "IVF" not in factory:
            continue
        theirs = plain_build(gallery, factory, tuned=tuned)
        figures[f"{peer}, spent_s"] = {what: round(took, 2) for what, took in theirs.items()}
        figures[f"train + add, ratio to {peer}"] = round((theirs["train"] + theirs["add"]) / built, 3)
        figures[f"all, ratio to {peer}"] = round(sum(theirs.values()) / build_s, 3)
    if "IVF" in factory:
        shard = np.load(Path(index.folder.path) / "shard-00000" / VECTORS, mmap_mode="r")
        figures["first_stage"] = first_stage(shard, factory, text)
    return figures


def print_table(runs: list[Figures]) -> None:
    keys = [key for key in runs[-1] if key != "rows"]
    print(f"{'rows':28}" + "".join(f"{run['rows']:>34,}" for run in runs))
    for key in keys:
        values = [run.get(key, "") for run in runs]
        if isinstance(values[-1], dict):
            for inside in values[-1]:
                cells = [value.get(inside, "") if isinstance(value, dict) else "" for value in values]
                print(f"  {key + ' ' + inside:50}" + "  ".join(str(cell) for cell in cells))
        else:
            print(f"  {key:50}" + "  ".join(str(value) for value in values))


def plot(runs: list[Figures], file: Path) -> None:
    """Draw rows/s, peak memory, search p50 and recall over the rows."""
    mpl.use("agg")
    from matplotlib import pyplot

    rows = [run["rows"] for run in runs]
    figure, axes = pyplot.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    axes[0].plot(rows, [run["job_rows_per_s"] for run in runs], "o-")
    axes[0].set(title="build, rows/s", ylim=(0, None))
    axes[1].plot(rows, [run["peak_bytes"] / 2**20 for run in runs], "o-")
    axes[1].set(title="peak memory of a process, MiB", yscale="log")
    for weight in runs[0]["search_p50_ms"]:
        axes[2].plot(rows, [run["search_p50_ms"][weight] for run in runs], "o-", label=f"λ = {weight}")
    axes[2].set(title="search p50, ms", ylim=(0, None))
    for weight in runs[0]["recall@10"]:
        axes[3].plot(rows, [run["recall@10"][weight] for run in runs], "o-", label=f"λ = {weight}")
    axes[3].set(title="recall@10", ylim=(0.9, 1.005))
    for one in axes:
        one.set(xscale="log", xlabel="rows")
    for one in axes[2:]:
        one.legend(frameon=False)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--write", action="store_true", help="write docs/index-scale.json and docs/index-scale.png")
    arguments = parser.parse_args()
    runs = []
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as scratch:
            runs.append(measure(rows, Path(scratch)))
        print(json.dumps(runs[-1], indent=2))
    print_table(runs)
    if arguments.write:
        result = {"cores": THREADS, "dims": [DIM, DIM], "runs": runs}
        Path("docs/index-scale.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        plot(runs, Path("docs/index-scale.png"))


if __name__ == "__main__":
    main()
