"""Steps per second of the Ray Train loop against a plain PyTorch loop, and memory by the size of the gallery, in one
run.

    .venv/bin/python -m benchmarks.train [--threads 2] [--steps 24] [--rows 50000]

The peer is the same Learner in one process that draws each batch itself, with as many threads as the worker has; half
of its steps run before and half after the job's, so that a machine that slows down does so for both. Vectors are
random: 1,000 labels, 1,024 dimensions in both spaces, 16 images a query, batches of 256. Rates are taken between
steps, so start-up and validation are left out; start-up, up to the end of the first step, is reported beside. So is the
stream of batches by itself.

Memory is the highest sum of PSS (each shared page is counted once) over this process and all that it starts, while a
gallery is sampled and a few steps are made, for galleries of N and 10 N rows of the same labels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import psutil
import pyarrow as pa
import ray
import torch

from cluster.profile import Training
from cluster.session import session
from retrieval.artifacts import Gallery
from retrieval.artifacts.columns import fixed_size_list
from retrieval.artifacts.gallery import gallery_schema
from retrieval.fusion import unit
from training.examples import Examples, stream
from training.learner import Learner
from training.loop import Run
from training.sampling import sample_rows
from training.tracking import Tracker
from training.workers import run_loop

CORES = os.cpu_count() or 1
LABELS, IMAGES, BATCH, POSITIVES, ROWS_OF_LABEL = 1000, 16, 256, 4, 16
WARM_UP = 3
"""Steps before the rate is taken."""


class Clock:
    """Takes the place of a run's counter, and notes when each step was done."""

    def __init__(self) -> None:
        self._actor = ray.remote(Times).options(num_cpus=0).remote()

    def add(self, count: int = 0, **seconds: float) -> None:
        self._actor.add.remote(count)

    def flush(self) -> None:
        ray.get(self._actor.times.remote())

    def done(self) -> int:
        return len(self.times())

    def seconds(self) -> dict[str, float]:
        return {}

    def times(self) -> list[float]:
        return ray.get(self._actor.times.remote())


class Times:
    """The actor of a Clock."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def add(self, count: int) -> None:
        self._times += [time.time()] * count

    def times(self) -> list[float]:
        return self._times


def settings(steps: int, threads: int) -> Training:
    """Return settings with one worker, which validates before the first step and after the last."""
    return Training(
        cpus=threads, batch=BATCH, positives=POSITIVES, rows_per_label=ROWS_OF_LABEL, steps=steps, validate_every=steps
    )


def examples(dim: int) -> Examples:
    """Return one query and a few gallery rows of each label."""
    rng = np.random.default_rng(0)
    query_label, row_label = np.arange(LABELS), np.repeat(np.arange(LABELS), ROWS_OF_LABEL)

    def vectors(*shape: int) -> np.ndarray:
        return unit(rng.standard_normal((*shape, dim), np.float32))

    return Examples(
        [f"label {i}" for i in query_label],
        vectors(LABELS),
        vectors(LABELS, IMAGES),
        np.ones((LABELS, IMAGES), bool),
        query_label,
        vectors(len(row_label)).astype(np.float16),
        vectors(len(row_label)).astype(np.float16),
        row_label,
    )


def plain_seconds(given: Examples, how: Training) -> dict[str, list[float]]:
    """Seconds of each step of the plain loop, and of drawing its batch."""
    torch.set_num_threads(int(how.cpus))
    learner = Learner(how, given.images_QKD2.shape[2])
    seconds: dict[str, list[float]] = {"draw": [], "step": []}
    for number in range(how.steps):
        start = time.perf_counter()
        batch = given.draw(number, batch=how.batch, positives=how.positives, seed=how.seed)
        seconds["draw"].append(time.perf_counter() - start)
        learner.step(batch)
        seconds["step"].append(time.perf_counter() - start)
    return {name: values[WARM_UP:] for name, values in seconds.items()}


def stream_rates(given: Examples, how: Training) -> tuple[float, float]:
    """Return seconds until the first batch of a stream, and the batches a second after it, if nothing else is done."""
    start = time.perf_counter()
    batches = stream(given, range(40), batch=how.batch, positives=how.positives, seed=how.seed)
    next(batches)
    first = time.perf_counter()
    rest = sum(1 for _ in batches)
    return first - start, rest / (time.perf_counter() - first)


def ray_times(given: Examples, how: Training, folder: Path) -> tuple[float, list[float]]:
    """Train by Ray Train; return when it began, and when each step was done."""
    clock = Clock()
    tracker = Tracker(str(folder), "metrics.jsonl", "run", {})
    (folder / "runs").mkdir(parents=True)
    run = Run(how, str(folder / "runs" / "run"), given, given.of_labels([0, 1]), clock, tracker)
    start = time.time()
    outcome = run_loop(run)
    assert not outcome.fault
    return start, clock.times()


def write_gallery(folder: Path, rows: int, dim: int) -> None:
    """Publish a gallery of random vectors, the same in each part, whose labels take turns."""
    size = 10_000
    vectors = np.random.default_rng(1).standard_normal((2, size, dim), np.float32).astype(np.float16)
    schema = pa.schema([field for field in gallery_schema(dim, dim) if field.name != "batch"])

    def tables() -> Iterator[pa.Table]:
        for first in range(0, rows, size):
            at = np.arange(first, min(first + size, rows))
            yield pa.table(
                {
                    "id": [f"{i:09d}" for i in at],
                    "path": [f"{i:09d}.jpg" for i in at],
                    "label": [f"label {i % LABELS}" for i in at],
                    "width": [64] * len(at),
                    "height": [64] * len(at),
                    "vlm": fixed_size_list(vectors[0, : len(at)]),
                    "vision": fixed_size_list(vectors[1, : len(at)]),
                }
            ).cast(schema)

    Gallery.of_tables(folder, tables(), source="random", models={})


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """Sample memory while the block runs; ``peak`` is then the highest sum of PSS, in bytes."""
    result, over = {"peak": 0}, threading.Event()
    here = psutil.Process()

    def watch() -> None:
        while not over.wait(0.2):
            total = 0
            for process in [here, *here.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue  # it has ended
            result["peak"] = max(result["peak"], total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield result
    finally:
        over.set()
        watcher.join()


def measure_memory(gallery: Path, dim: int) -> None:
    """Print the peak memory, in bytes, of sampling a gallery and training a few steps on the sample."""
    given = examples(dim)
    with watched() as memory, session("local"):
        start = time.time()
        rows = sample_rows(Gallery.open(gallery), set(given.labels), ROWS_OF_LABEL, seed=0)
        sampled = time.time() - start
        assert rows.num_rows == LABELS * ROWS_OF_LABEL
        ray_times(given, settings(4, 1), gallery.parent / f"run-{gallery.name}")
    print(json.dumps({"peak": memory["peak"], "sampling_s": round(sampled, 1)}))


def memory_of(folder: Path, rows: int, dim: int) -> dict[str, float]:
    """Measure in a process of its own, with a Ray of its own."""
    write_gallery(folder, rows, dim)
    command = [sys.executable, "-m", "benchmarks.train", "--memory-of", str(folder), "--dim", str(dim)]
    measured = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {"rows": rows, "peak_MB": round(measured["peak"] / 1e6), "sampling_s": measured["sampling_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=CORES, help="of the worker and of the plain loop")
    parser.add_argument("--steps", type=int, default=24, help="of either loop")
    parser.add_argument("--dim", type=int, default=1024, help="of both kinds of vectors")
    parser.add_argument("--rows", type=int, default=50_000, help="N, rows of the smaller gallery; 0 leaves memory out")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    dim = arguments.dim
    if arguments.memory_of:
        measure_memory(Path(arguments.memory_of), dim)
        return
    given, whole = examples(dim), settings(arguments.steps, arguments.threads)
    half = settings(arguments.steps // 2 + WARM_UP, arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        first_batch, batches_rate = stream_rates(given, whole)
        before = plain_seconds(given, half)
        with session("local"):
            start, times = ray_times(given, whole, Path(scratch) / "job")
        after = plain_seconds(given, half)
        plain = {name: np.array(before[name] + after[name]) for name in before}
        plain_rate = 1 / plain["step"].mean()
        ray_rate = (len(times) - WARM_UP - 1) / (times[-1] - times[WARM_UP])
        result = {
            "cores": CORES,
            "threads": arguments.threads,
            "steps": arguments.steps,
            "plain_steps_per_s": round(plain_rate, 3),
            "plain_before_and_after": [round(1 / np.mean(part["step"]), 3) for part in (before, after)],
            "plain_share_of_drawing": round(plain["draw"].sum() / plain["step"].sum(), 3),
            "stream_first_batch_s": round(first_batch, 3),
            "stream_batches_per_s": round(batches_rate, 1),
            "ray_steps_per_s": round(ray_rate, 3),
            "ratio": round(ray_rate / plain_rate, 3),
            "ray_start_up_s": round(times[0] - start - 1 / ray_rate, 1),
        }
        if arguments.rows:
            sizes = (arguments.rows, 10 * arguments.rows)
            memory = [memory_of(Path(scratch) / f"gallery-{rows}", rows, dim) for rows in sizes]
            result["memory"] = memory
            result["memory_growth"] = round(memory[1]["peak_MB"] / memory[0]["peak_MB"] - 1, 3)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
