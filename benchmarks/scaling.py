"""What more workers bring, and how fast they come: nodes are simulated, and the stage that is scaled only sleeps.

    make demo                                  # leaves the images and the index that this takes
    .venv/bin/python -m benchmarks.scaling [--parts index serve autoscale] [--workers 1 2 4] [--demo demo-out]

``index``: rows a second of embedding with so many embedders, each on a node of its own, that sleep for each batch; from
the moment when all work to that when the first has nothing left, and of the whole job. ``serve``: answers a second with
new images, with so many replicas of a generator that sleeps for each. The limit is what the sleep allows; efficiency is
the rate over that of one worker, per worker. ``autoscale``: the load steps up and down; when replicas of that generator
come and go, from one and from none, and what became of the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiohttp
import numpy as np
import pyarrow as pa
import ray
import yaml
from ray import serve
from ray.cluster_utils import Cluster

import pipelines.embedding
import serving.app
from benchmarks.live_service import client, demo_settings, keep_asking
from cluster.ports import free_port
from cluster.profile import load_profile
from cluster.session import data_defaults
from pipelines.encoders import Encoders
from pipelines.gallery import build_gallery
from retrieval.artifacts.columns import fixed_size_list
from serving.deployments.generator import ImaginingGenerator
from serving.deployments.messages import PROBE

BATCH, BATCH_SECONDS, BATCHES = 16, 0.5, 24
"""Rows that an embedder sleeps for at once, for how long, and how often each does so."""
GENERATION_SECONDS = 1.0
PARTS = ["index", "serve", "autoscale"]
NOTES = "MINDSEYE_SCALING_NOTES"
"""Names the file in which embedders note what they have done; workers inherit it."""


class Sleeping:
    """An embedder whose vectors are all the same."""

    def __init__(self, profile: Any, expected: Encoders, counter: Any = None) -> None:
        self._dims = {"vlm": expected.vlm.dim or 0, "vision": expected.vision.dim or 0}
        self._counter = counter

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(BATCH_SECONDS * table.num_rows / BATCH)
        table = table.drop_columns([name for name in table.column_names if name.endswith("_pixels")])
        for name, dim in self._dims.items():
            table = table.append_column(name, fixed_size_list(np.eye(1, dim, dtype=np.float16).repeat(len(table), 0)))
        if self._counter is not None:
            self._counter.add(table.num_rows)
        with Path(os.environ[NOTES]).open("a") as notes:
            notes.write(f"{time.time()} {os.getpid()} {table.num_rows}\n")
        return table


class SleepingGenerator(ImaginingGenerator.func_or_class):  # type: ignore[name-defined]  # Serve's decorator
    """A generator that has made its only image when it starts."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        [self._made] = self._generator.imagine([PROBE], 1)

    def _generate(self, batch: Sequence[Any]) -> list[Any]:
        time.sleep(GENERATION_SECONDS)
        return [self._made] * len(batch)


@contextmanager
def cluster(workers: int) -> Iterator[None]:
    """A head without CPUs and so many nodes with two each: one to work, one to read and write."""
    node = {"object_store_memory": 150 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(workers):
            made.add_node(num_cpus=2, **node)
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        made.wait_for_nodes()
        data_defaults()
        yield
    finally:
        ray.shutdown()
        made.shutdown()


def index(workers: int, images: Path, work: Path) -> dict[str, float]:
    """Embed as many of the images as keep the embedders busy."""
    settings = demo_settings()
    settings["embed"] = {"cpus": 1, "min_actors": workers, "max_actors": workers, "batch": BATCH}
    profile = work / "scaling.yaml"
    profile.write_text(yaml.safe_dump(settings))
    wanted = BATCH * BATCHES * workers
    source = work / f"images-{workers}"
    source.mkdir()
    for number, file in enumerate(itertools.islice(sorted(images.rglob("*.jpg")), wanted)):
        shutil.copy(file, source / f"{number:05d}.jpg")
    notes = Path(os.environ[NOTES])
    notes.write_text("")
    started = time.monotonic()
    with cluster(workers):
        began = time.monotonic()
        gallery = build_gallery(str(source), str(work / f"gallery-{workers}"), load_profile(profile))
        seconds = time.monotonic() - began
    done = np.array([line.split() for line in notes.read_text().splitlines()], float)
    of_each = [done[done[:, 1] == pid, 0] for pid in np.unique(done[:, 1])]
    begin, end = max(times.min() for times in of_each), min(times.max() for times in of_each)
    steady = done[(done[:, 0] > begin) & (done[:, 0] <= end), 2].sum() / (end - begin)
    return {
        "rows": gallery.manifest.rows,
        "embedders": len(of_each),
        "rows/s": float(steady),
        "limit": workers * BATCH / BATCH_SECONDS,
        "rows/s of the whole job": gallery.manifest.rows / seconds,
        "s to start the cluster": began - started,
    }


@contextmanager
def service(target: Path, generator: dict[str, Any], nodes: int, work: Path) -> Iterator[str]:
    """The service with a sleeping generator, on so many nodes; yields its URL."""
    settings = demo_settings()
    settings["serve"] |= {"ingress": {"cpus": 0.1, "ongoing": 64}, "vlm": {"cpus": 0.1}, "vision": {"cpus": 0.1}}
    settings["serve"]["generator"] = {"cpus": 0.5, "batch": 1, "ongoing": 2, "queued": 32, **generator}
    profile = work / "serving.yaml"
    profile.write_text(yaml.safe_dump(settings))
    port = free_port()
    sleeping = serve.deployment(SleepingGenerator, name="ImaginingGenerator")
    with patch.object(serving.app, "ImaginingGenerator", sleeping), cluster(nodes):
        options = {"host": "127.0.0.1", "port": port, "location": "HeadOnly"}
        serve.start(http_options=options, logging_config=serving.app.LOGGING)
        args = serving.app.ServeArgs(target=str(target), profile=str(profile), store="memory:")
        serve.run(serving.app.front(serving.app.plan(args)), name="mindseye", logging_config=serving.app.LOGGING)
        asyncio.run(_ready(f"http://127.0.0.1:{port}"))
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()


async def _ready(url: str) -> None:
    async with client() as session:
        while True:
            async with session.get(f"{url}/readyz") as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.2)


class Asking:
    """Searches by new images: each text is another."""

    def __init__(self, url: str) -> None:
        self._url, self._numbers = url, itertools.count()

    async def __call__(self, session: aiohttp.ClientSession) -> str | None:
        body = {"query": f"star {next(self._numbers)}", "images": 1, "k": 10}
        async with session.post(f"{self._url}/v1/search", json=body) as answer:
            found = await answer.json()
        return None if found.get("visual") == "imagined" else str(found.get("degraded") or found.get("error"))


def answers(workers: int, target: Path, work: Path, seconds: float) -> dict[str, float]:
    """Keep two requests under way for each generator."""
    with service(target, {"min_replicas": workers, "max_replicas": workers}, workers, work) as url:
        asking = Asking(url)
        asyncio.run(keep_asking(asking, 2 * workers, 3))
        return asyncio.run(keep_asking(asking, 2 * workers, seconds)) | {"limit": workers / GENERATION_SECONDS}


class Replicas:
    """How many replicas of the generator run, as time goes by, until the block ends."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    async def __aenter__(self) -> Replicas:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _watch(self) -> None:
        while True:
            states = serve.status().applications["mindseye"].deployments["ImaginingGenerator"].replica_states
            self.seen.append((time.monotonic(), states.get("RUNNING", 0)))
            await asyncio.sleep(0.25)

    async def reach(self, count: int, since: float) -> float:
        """Wait until so many run; return the seconds since then."""
        while not (self.seen and self.seen[-1][1] == count):
            await asyncio.sleep(0.1)
        return self.seen[-1][0] - since


async def steps(url: str, least: int, most: int) -> dict[str, Any]:
    """One client, then eight, then one, and for a generator that may have no replica, none and one again."""
    asking, found, rest = Asking(url), {}, []
    async with Replicas() as replicas, client() as session:
        over = asyncio.Event()
        faults: list[str] = []
        count = 0

        async def one(until: asyncio.Event) -> None:
            nonlocal count
            while not until.is_set():
                count += 1
                if fault := await asking(session):
                    faults.append(fault)

        if not least:
            found["to none"] = await replicas.reach(0, time.monotonic())
            asked = time.monotonic()
            if fault := await asking(session):
                faults.append(fault)
            found["first answer from none"] = time.monotonic() - asked
        steady = asyncio.create_task(one(over))
        begin, less = time.monotonic(), asyncio.Event()
        rest = [asyncio.create_task(one(less)) for _ in range(7)]
        for number in range(2, most + 1):
            found[f"to {number}"] = await replicas.reach(number, begin)
        await asyncio.sleep(5)
        less.set()
        begin = time.monotonic()
        await asyncio.gather(*rest)
        found["back to 1"] = await replicas.reach(1, begin)
        over.set()
        await steady
        if not least:
            found["back to none"] = await replicas.reach(0, time.monotonic())
    return found | {"requests": count, "not as asked": faults}


def autoscale(target: Path, work: Path, least: int) -> dict[str, Any]:
    """Seconds until replicas come and go."""
    settings = {"min_replicas": least, "max_replicas": 3, "downscale_s": 10}
    with service(target, settings, 3, work) as url:
        return asyncio.run(steps(url, least, 3))


def _shown(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {round(v, 2) if isinstance(v, float) else v}" for name, v in figures.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement of the service")
    parser.add_argument("--least", nargs="+", type=int, default=[1, 0], help="replicas that autoscaling leaves")
    parser.add_argument("--demo", type=Path, default=Path("demo-out"))
    given = parser.parse_args()
    demo = given.demo.absolute()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        os.environ[NOTES] = str(work / "notes")
        pipelines.embedding.Embedder = Sleeping  # type: ignore[assignment, misc]
        for part in given.parts:
            if part == "autoscale":
                for least in given.least:
                    print(f"autoscale, from {least}: {_shown(autoscale(demo, work, least))}", flush=True)
                continue
            of_one = None
            for workers in given.workers:
                if part == "index":
                    figures, rate = index(workers, demo / "images", work), "rows/s"
                else:
                    figures, rate = answers(workers, demo, work, given.seconds), "req/s"
                of_one = of_one or figures[rate] / workers
                efficiency = figures[rate] / workers / of_one
                print(f"{part}, {workers} workers: {_shown(figures)}; efficiency {efficiency:.2f}", flush=True)


if __name__ == "__main__":
    main()
