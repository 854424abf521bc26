"""An indexing job on Ray that is killed at a chosen moment, as a program of its own: see test_interrupted_jobs.

    python interrupted_job.py SOURCE TARGET PROFILE LOG MOMENT…

``driver`` ends the job as soon as a block is written; a moment of a worker ends that worker, once. LOG is given a line
for each batch that is embedded: the number of its inputs. What is defined here lies in ``__main__``, so workers are
sent it whole.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import ray

import pipelines.embedding
from pipelines import job
from retrieval.folder import Folder

SOURCE, TARGET, PROFILE, LOG = sys.argv[1:5]
MOMENTS = sys.argv[5:]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(moment: str) -> None:
    """End this process if no other has ended at this moment yet."""
    try:
        Path(f"{LOG}.{moment}").touch(exist_ok=False)
    except FileExistsError:
        return
    die()


class Reader(pipelines.embedding.InputReader):
    def read(self, rows: pa.Table) -> list:
        if "worker-read" in MOMENTS:
            die_once("worker-read")
        return super().read(rows)


class Embedder(pipelines.embedding.Embedder):
    def __call__(self, table: pa.Table) -> pa.Table:
        if "worker-embed" in MOMENTS and table["input"][0].as_py() > 0:
            die_once("worker-embed")
        rows = super().__call__(table)
        with Path(LOG).open("a") as log:
            log.write(f"{rows.num_rows}\n")
        if "slowly" in MOMENTS:
            time.sleep(0.3)
        return rows


class Sink(pipelines.embedding.PartsSink):
    def write(self, rows: pa.Table, name: str) -> None:
        if "worker-write" in MOMENTS:
            die_once("worker-write")
        super().write(rows, name)
        if "worker-written" in MOMENTS:  # and not noted as written
            die_once("worker-written")


def when(condition: Callable[[], bool]) -> None:
    """Kill the driver as soon as a condition holds."""

    def watch() -> None:
        try:
            while not condition():
                time.sleep(0.01)
        except BaseException:  # would end this thread alone, and the job would end well
            traceback.print_exc()
            os._exit(1)
        die()

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    pipelines.embedding.InputReader = Reader  # type: ignore[misc]
    pipelines.embedding.Embedder = Embedder  # type: ignore[misc]
    pipelines.embedding.PartsSink = Sink  # type: ignore[misc]
    if "driver" in MOMENTS:
        noted = Folder(TARGET) / "gallery/batches/000001/checkpoint"
        when(lambda: any(not name.endswith(".pending.parquet") for name in noted.files(suffix=".parquet")))
    job.index(SOURCE, TARGET, PROFILE, shards=3)


def on_a_cluster() -> None:
    """The same job on three nodes of one machine, of which one is lost in the middle."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 200 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 1})
    others = [cluster.add_node(num_cpus=2, object_store_memory=200 * 2**20) for _ in range(2)]
    cluster.wait_for_nodes()
    noted = Folder(TARGET) / "gallery/batches/000001/checkpoint"

    def lose_one() -> None:
        while not noted.files(suffix=".parquet"):
            time.sleep(0.01)
        cluster.remove_node(others[0], allow_graceful=False)
        Path(f"{LOG}.lost").touch()

    threading.Thread(target=lose_one, daemon=True).start()
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        main()
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    on_a_cluster() if "node" in MOMENTS else main()
