"""How many shards one ranker can ask and merge: to 500 simulated shards, of a billion rows in all.

    .venv/bin/python -m benchmarks.fan_out [--seconds 2] [--without-serve] [--json FILE]

A simulated shard has two million rows, of which none is there: what it answers is drawn, as many rows as a real one
would send (``rows_to_send``), with the scores that the best of so many independent rows have, and ids and columns as
the demo's index has them. The ranker's side is the service's own: ``RemoteShards``, ``merging.ranked``.

1. In this process, shards that answer at once: what decoding and merging cost. And shards that answer after a time that
   is drawn (lognormal; the median is that of searching a million rows, docs/index-kinds.md): how the slowest of so many
   decides, beside what follows from the distribution alone.
2. With Ray Serve, in a local Ray: a replica asks 8 deployments so many times at once as there would be deployments,
   each of which answers for one shard, or for several. Measured are seconds of an answer and CPU seconds of the asking
   process. All share this machine's cores: the CPU of the asking process is what a ranker on a core of its own needs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

import cluster.ray_env  # noqa: F401  before Ray is
from benchmarks.live_service import quantiles
from cluster.ports import free_port
from cluster.session import session
from retrieval.index.hits import Hits
from serving.app import LOGGING, ROUTER
from serving.deployments.merging import ranked
from serving.deployments.messages import Part
from serving.deployments.remote_shards import RemoteShards
from serving.deployments.shards import rows_to_send

DIM = 1792
ROWS = 2_000_000
"""Of a shard, as the profile ``paper`` cuts them."""
ROW_BYTES = 103
"""Of a row in memory beside its vectors, as of the demo's index."""
SHARDS, DEPTHS = (1, 10, 50, 100, 200, 500), (10, 100, 1000)
MEDIAN_S, SIGMA = 0.005, 0.5
DEPLOYMENTS = 8
SECONDS = 60.0
Figures = dict[str, Any]


def drawn(shard: int, shards: int, k: int) -> Part:
    """What one of so many shards sends for the k best of all."""
    rng = np.random.default_rng([shard, shards, k])
    sent = min(k, rows_to_send(k, ROWS, ROWS * shards, shards, ROW_BYTES))
    # The best of many independent scores with an exponential tail, highest first.
    scores = -np.log(np.cumsum(rng.exponential(size=(1, sent)), axis=1)).astype(np.float32)
    ids = [f"{contents:016x}-{path:08x}" for contents, path in rng.integers(2**32, size=(sent, 2)).tolist()]
    hits = Hits(
        ids=np.array([ids], dtype=object),
        rows=rng.integers(ROWS, size=(1, sent)),
        scores=scores,
        text_part=(scores / 2).astype(np.float32),
        visual_part=(scores / 2).astype(np.float32),
        shards=np.zeros((1, sent), np.int32),
    )
    columns: dict[str, list[Any]] = {
        "path": [f"red dotted fish/{number:09d}.jpg" for number in rng.integers(10**9, size=sent).tolist()],
        "label": ["red dotted fish"] * sent,
        "width": [64] * sent,
        "height": [64] * sent,
        "batch": ["000001"] * sent,
    }
    return Part(shard, hits, columns, more=sent < k)


def answer_of(call: int, shards: int, each: int, k: int) -> list[Part]:
    """What the deployment of that number answers, which holds ``each`` of the shards."""
    calls = -(-shards // each)
    return [drawn(shard, shards, k) for shard in range(call, shards, calls)]


class Here:
    """A shard in this process, and its handle: its answer is decoded as one that came from elsewhere would be."""

    def __init__(self, answer: bytes, seconds: Callable[[], float]) -> None:
        async def search(*_: Any) -> Any:
            await asyncio.sleep(seconds())
            return pickle.loads(answer)  # noqa: S301  written above

        self.search = SimpleNamespace(remote=lambda *arguments: asyncio.ensure_future(search(*arguments)))


async def searches(
    handles: list[Any], k: int, seconds: float, at_least: int = 10
) -> tuple[list[float], list[float], float]:
    """Search and merge for so long, one after another; return the seconds of each answer, those of merging, and the CPU
    seconds of this process for one.
    """
    shards, query_D = RemoteShards(handles), np.zeros(DIM, np.float32)
    times: list[float] = []
    merging: list[float] = []
    await shards.search("one", query_D, k, seconds=SECONDS)
    until, used = time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < until or len(times) < at_least:
        started = time.perf_counter()
        found = await shards.search("one", query_D, k, seconds=SECONDS)
        asked = time.perf_counter()
        rows = ranked(found.parts, k, {"000001": "images"})
        times.append(time.perf_counter() - started)
        merging.append(time.perf_counter() - asked)
        assert not found.troubles
        assert len(rows) == k
    return times, merging, (time.process_time() - used) / len(times)


def in_this_process(shards: int, k: int, seconds: float) -> Figures:
    """Shards that answer at once, and shards that take their time."""
    answers = [pickle.dumps(answer_of(number, shards, 1, k)) for number in range(shards)]
    rng = np.random.default_rng(0)
    at_once, merging, cpu = asyncio.run(searches([Here(answer, lambda: 0.0) for answer in answers], k, seconds))

    def takes() -> float:
        return float(rng.lognormal(np.log(MEDIAN_S), SIGMA))

    slow, _, _ = asyncio.run(searches([Here(answer, takes) for answer in answers], k, seconds, at_least=40))
    longest = rng.lognormal(np.log(MEDIAN_S), SIGMA, (2000, shards)).max(axis=1)
    return {
        "shards": shards,
        "k": k,
        "bytes": sum(map(len, answers)),
        "at once": quantiles(at_once),
        "of it merging": quantiles(merging),
        "CPU ms": cpu * 1e3,
        "slow": quantiles(slow),
        "slowest shard, of the distribution": quantiles(longest.tolist()),
    }


@serve.deployment
class Simulated:
    """A deployment of some shards; ``version`` says of which, as numbers: of how many, and how many it holds."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, int], list[Part]] = {}

    async def search(self, version: str, query_D: np.ndarray, k: int, whole: bool = False) -> list[Part]:
        if (version, k) not in self._answers:
            call, shards, each = map(int, version.split("/"))
            self._answers[version, k] = answer_of(call, shards, each, k)
        return self._answers[version, k]


class Addressed:
    """A handle that asks for the answer of deployment ``call``, whichever it is."""

    def __init__(self, handle: DeploymentHandle, call: int, shards: int, each: int) -> None:
        version = f"{call}/{shards}/{each}"
        self.search = SimpleNamespace(remote=lambda _, *arguments: handle.search.remote(version, *arguments))


@serve.deployment
class Asking:
    """In the place of the ranker."""

    def __init__(self, simulated: list[DeploymentHandle]) -> None:
        self._simulated = simulated

    async def measure(self, shards: int, each: int, k: int, seconds: float) -> Figures:
        calls = -(-shards // each)
        handles = islice(cycle(self._simulated), calls)
        times, merging, cpu = await searches(
            [Addressed(handle, call, shards, each) for call, handle in enumerate(handles)], k, seconds
        )
        figures = {"answer": quantiles(times), "of it merging": quantiles(merging), "CPU ms": cpu * 1e3}
        return {"shards": shards, "each": each, "calls": calls, "k": k, "n": len(times), **figures}


def with_serve(cells: list[tuple[int, int, int]], seconds: float) -> list[Figures]:
    """Measure (shards, shards of a deployment, k) in a local Ray."""
    options: dict[str, Any] = {
        "max_ongoing_requests": 2000,
        "ray_actor_options": {"num_cpus": 0.1},
        "request_router_config": ROUTER,
        "logging_config": LOGGING,
    }
    with session("local"):
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()}, proxy_location="Disabled")
        deployments: Any = Simulated, Asking  # Serve's decorator has no types
        simulated = [deployments[0].options(name=f"Shard{n}", **options).bind() for n in range(DEPLOYMENTS)]
        asking = serve.run(deployments[1].options(**options).bind(simulated), name="fan-out", route_prefix=None)

        async def ask() -> list[Figures]:
            found = []
            for shards, each, k in cells:
                found.append(await asking.measure.remote(shards, each, k, seconds))
                print(json.dumps(found[-1]), flush=True)
            return found

        found = asyncio.run(ask())
        serve.shutdown()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each cell")
    parser.add_argument("--shards", type=int, nargs="+", default=SHARDS)
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS, help="k")
    parser.add_argument("--without-serve", action="store_true", help="the first part alone")
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    figures: dict[str, list[Figures]] = {"in this process": []}
    for k in arguments.depths:
        for shards in arguments.shards:
            figures["in this process"].append(in_this_process(shards, k, arguments.seconds))
            print(json.dumps(figures["in this process"][-1]), flush=True)
    if not arguments.without_serve:
        most = max(arguments.shards)
        cells = [(shards, 1, k) for k in arguments.depths for shards in arguments.shards]
        cells += [(most, each, k) for k in arguments.depths for each in (4, 8, 16)]
        figures["with Serve"] = with_serve(cells, arguments.seconds)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
