"""What the driver of an indexing job holds between embedding and publishing, by the rows of the batch, on Ray.

    .venv/bin/python -m benchmarks.job_driver [--rows 1000000]

Made-up ids, of which one in ten has another's bytes, and made-up notes of what is written lie in files of 16,384 rows,
as a job writes them. Printed are the seconds, and how far the peak of the driver's own memory (without what it maps)
grew, in bytes a row: for counting duplicates; for counting what is written, and for reading it, which is what a worker
does when a job is resumed; and, as the limit to stay below, for counting duplicates by one sort of all hashes in the
driver.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from cluster.session import session
from pipelines.batch_contents import duplicates_in
from pipelines.checkpoint import count_written, noted, written
from retrieval.artifacts.manifests import PartRecord
from retrieval.folder import Folder

ROWS_PER_PART = 16_384


def write(folder: Folder, rows: int) -> list[PartRecord]:
    """Write parts, and a checkpoint that notes their rows; return the parts."""
    rng = np.random.default_rng(0)
    parts = []
    for start in range(0, rows, ROWS_PER_PART):
        count = min(ROWS_PER_PART, rows - start)
        contents = rng.integers(0, 2**64, count, np.uint64)
        contents[::10] = contents[0]
        ids = [f"{content:016x}-{number:08x}" for number, content in enumerate(contents.tolist(), start)]
        name = f"{start:012}.parquet"
        folder.write_table(f"parts/{name}", pa.table({"id": ids}))
        folder.write_table(f"checkpoint/{name}", pa.table({"input": np.arange(start, start + count)}))
        parts.append(PartRecord(name=f"parts/{name}", rows=count))
    return parts


def plain(folder: Folder, parts: list[PartRecord]) -> int:
    """Count rows of equal bytes by all of their hashes at once."""
    hashes = []
    for part in parts:
        ids = folder.read_table(part.name, ["id"])["id"].to_pylist()
        hashes.append(np.fromiter((int(id.split("-")[0], 16) for id in ids), np.uint64, len(ids)))
    every = np.concatenate(hashes)
    return len(every) - len(np.unique(every))


def measured(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float, int]:
    """Return what a call returns, its seconds, and by how many bytes this process grew meanwhile at most."""
    process, over, peak = psutil.Process(), threading.Event(), 0

    def own() -> int:
        memory = process.memory_info()
        return memory.rss - memory.shared

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.005):
            peak = max(peak, own())

    before, started = own(), time.perf_counter()
    watcher = threading.Thread(target=watch)
    watcher.start()
    result = call(*arguments)
    seconds = time.perf_counter() - started
    over.set()
    watcher.join()
    return result, seconds, max(peak, own()) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as place, session():
        folder = Folder(place)
        parts = write(folder, rows)
        calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
            "duplicates": (duplicates_in, (folder, parts)),
            "written, counted": (count_written, (folder / "checkpoint",)),
            "written, read": (written, (folder / "checkpoint", "input", noted(folder / "checkpoint"))),
            "by one sort": (plain, (folder, parts)),  # last, since it leaves memory that is free
        }
        duplicates_in(folder, parts[:1])  # starts workers
        print(f"{rows:,} rows")
        for what, (call, arguments) in calls.items():
            found, seconds, grown = measured(call, *arguments)
            number = found if isinstance(found, int) else len(found)
            print(f"{what:>17}: {number:,} in {seconds:.1f} s, +{grown / 2**20:.0f} MB, {grown / rows:.1f} bytes a row")


if __name__ == "__main__":
    main()
