"""What the network costs: a running service against the same functions in one process, in one run.

    make demo                                        # leaves the index and the queries that this takes
    .venv/bin/python -m benchmarks.serve [--seconds 4] [--modes throughput default haproxy]
    .venv/bin/python -m benchmarks.serve --vlm random:ViT-B-32 --peer PEER/bin/clip-retrieval    # benchmarks.serve_peer

For each mode of Ray Serve the real command ``mindseye serve`` is started on a free port with the demo's queries in its
memory, and asked by an asyncio client on the same cores, at concurrency 1, 8 and 32: by text, fused with the images
remembered, and fused with new images; time to the events ``text`` and ``fused`` of a stream; and by text while the
generator is kept saturated. For texts at concurrency 1 it says which process spends how much CPU. In process:
``QueryEncoder`` and the shards, as ``retrieval.finder`` calls them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import torch

from benchmarks.live_service import client, demo_settings, keep_asking, quantiles, service
from benchmarks.serve_peer import compare
from cluster.loading import load_query_encoder
from cluster.profile import load_profile
from retrieval.artifacts import Index, QuerySet
from retrieval.artifacts.queryset import vision_vectors
from retrieval.fusion import DEFAULT_WEIGHT, fused_query
from retrieval.index.hits import merge_topk
from retrieval.query import pool

MODES = {
    "throughput": {},
    "default": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"},
    "haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1"},
}
"""Environment of ``mindseye serve``, which sets what is best by these figures unless it is set already."""
CONCURRENCY = (1, 8, 32)
K = 10
Body = dict[str, Any]


def in_process(folder: Path, queries: QuerySet, count: int = 150) -> dict[str, dict[str, float]]:
    """The same work without a service: text to ranked rows; and from remembered vectors to ranked rows."""
    torch.set_num_threads(1)
    encoder = load_query_encoder(load_profile("tiny"))
    shards = Index.open(folder / "index").shards()
    table = queries.table()
    features, mask = vision_vectors(table)
    texts = table["text"].to_pylist()
    zero = np.zeros((1, features.shape[2]), np.float32)

    def by_text(i: int) -> None:
        vlm_1D1 = encoder.text_vectors([texts[i]])
        merge_topk([shard.search(fused_query(vlm_1D1, zero, 0.0), K) for shard in shards], K)

    vectors = encoder.text_vectors(texts[:count])

    def remembered(i: int) -> None:
        visual = pool(features[i : i + 1], mask[i : i + 1])
        joint = fused_query(vectors[i : i + 1], visual, DEFAULT_WEIGHT)
        merge_topk([shard.search(joint, K) for shard in shards], K)

    found = {}
    for name, work in (("text", by_text), ("fused, remembered", remembered)):
        times = []
        for i in range(count):
            started = time.perf_counter()
            work(i)
            times.append(time.perf_counter() - started)
        found[name] = quantiles(times[10:])
    return found


async def ask(session: aiohttp.ClientSession, url: str, body: Body) -> dict[str, Any]:
    async with session.post(f"{url}/v1/search", json=body) as answer:
        return {"status": answer.status} | await answer.json()


async def load(url: str, bodies: Callable[[], Body], concurrency: int, seconds: float, stage: str) -> dict[str, float]:
    """Keep so many requests under way for so long; every answer must have the stage."""

    async def one(session: aiohttp.ClientSession) -> str | None:
        answer = await ask(session, url, bodies())
        right = answer.get("stage") == stage and answer.get("visual") != "nearest"
        return None if right else str(answer.get("degraded") or answer.get("error"))

    return await keep_asking(one, concurrency, seconds)


async def stages(url: str, bodies: Callable[[], Body], count: int) -> dict[str, float]:
    """Median milliseconds to the events ``text`` and ``fused`` of a stream, one stream at a time."""
    times: dict[str, list[float]] = {"text": [], "fused": []}
    async with client() as session:
        for _ in range(count):
            started = time.perf_counter()
            async with session.post(f"{url}/v1/search/stream", json=bodies()) as answer:
                async for line in answer.content:
                    name = line.decode().strip().removeprefix("event: ")
                    if name in times:
                        times[name].append(time.perf_counter() - started)
    return {name: float(np.median(values) * 1e3) for name, values in times.items()}


async def saturated(url: str, text: Callable[[], Body], new: Callable[[], Body], seconds: float) -> dict[str, float]:
    """Text at concurrency 1 while 8 clients keep asking for new images."""
    async with client() as session:

        async def imagine() -> None:
            while True:
                await ask(session, url, new())

        busy = [asyncio.create_task(imagine()) for _ in range(8)]
        await asyncio.sleep(1)
        result = await load(url, text, 1, seconds, "text")
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
    await asyncio.sleep(2)  # what was under way ends
    return result


async def overload(url: str, bodies: Callable[[], Body], clients: int, seconds: float) -> dict[str, float]:
    """So many clients, each of which comes back when a refusal says. The first second, in which all come at once, does
    not count.
    """
    accepted: list[float] = []
    refused: list[float] = []
    begin = time.perf_counter()

    async with client() as session:

        async def one() -> None:
            while (started := time.perf_counter()) < begin + 1 + seconds:
                async with session.post(f"{url}/v1/search", json=bodies()) as answer:
                    await answer.read()
                    took = time.perf_counter() - started
                    if started > begin + 1:
                        (accepted if answer.status == 200 else refused).append(took)
                    if answer.status != 200:
                        await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))

        await asyncio.gather(*(one() for _ in range(clients)))
    result = {f"accepted {name}": value for name, value in quantiles(accepted).items()} | {"accepted": len(accepted)}
    if refused:
        result |= {f"refused {name}": value for name, value in quantiles(refused).items()}
    return result | {"refused": len(refused)}


def cpu_seconds(pid: int) -> Counter[str]:
    """CPU that the service has used so far, by the role of the process: a deployment, Serve's proxy, the rest."""
    used: Counter[str] = Counter()
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            title = process.cmdline()[0].strip()
            replica = title.removeprefix("ray::ServeReplica:mindseye:")
            role = replica if replica != title else "proxy" if "Proxy" in title else "rest of Ray"
            used[role] += sum(process.cpu_times()[:2])
    return used


async def measure(url: str, pid: int, texts: list[str], seconds: float, concurrencies: Sequence[int]) -> dict[str, Any]:
    rotation, seeds = itertools.cycle(texts), itertools.count(1)

    def text() -> Body:
        return {"query": next(rotation), "mode": "text", "k": K}

    def remembered() -> Body:
        return {"query": next(rotation), "k": K}

    def new() -> Body:
        return {"query": next(rotation), "k": K, "seed": next(seeds)}

    found: dict[str, Any] = {"text": {}, "fused, remembered": {}, "fused, new": {}}
    await load(url, text, 4, 1, "text")
    for concurrency in concurrencies:
        found["text"][concurrency] = await load(url, text, concurrency, seconds, "text")
        found["fused, remembered"][concurrency] = await load(url, remembered, concurrency, seconds, "fused")
        found["fused, new"][concurrency] = await load(url, new, concurrency, seconds, "fused")
        await asyncio.sleep(1)
    room = load_profile("tiny").serve.ingress.ongoing
    found["at capacity"] = await overload(url, text, room, seconds)
    found["at 4 × capacity"] = await overload(url, text, 4 * room, 2 * seconds)
    found["after"] = await load(url, text, 1, seconds, "text")
    found["stream, new"] = await stages(url, new, 5)
    used = cpu_seconds(pid)
    found["text before"] = await load(url, text, 1, 2 * seconds, "text")
    spent = cpu_seconds(pid) - used
    found["CPU of a text, ms"] = {name: s * 1e3 / found["text before"]["n"] for name, s in spent.most_common()}
    found["text, generator saturated"] = await saturated(url, text, new, 2 * seconds)
    return found


def report(mode: str, ready: float, found: dict[str, Any], alone: dict[str, dict[str, float]]) -> dict[str, float]:
    print(f"\n{mode}: ready after {ready:.1f} s")
    for name in ("text", "fused, remembered", "fused, new"):
        for concurrency, cell in found[name].items():
            unlike = f"  {cell['not as asked']} not as asked" if "not as asked" in cell else ""
            print(
                f"  {name:18} × {concurrency:2}  p50 {cell['p50']:8.1f} ms  p99 {cell['p99']:8.1f} ms"
                f"  {cell['req/s']:7.1f} req/s{unlike}"
            )
    print("  stream of new images:", ", ".join(f"{k} after {v:.1f} ms" for k, v in found["stream, new"].items()))
    print("  CPU of a text, ms:", ", ".join(f"{name} {ms:.1f}" for name, ms in found["CPU of a text, ms"].items()))
    for name in ("at capacity", "at 4 × capacity", "after"):
        print(f"  text {name}:", ", ".join(f"{k} {v:.1f}" for k, v in found[name].items()))
    text, hit = found["text"][1]["p50"], found["fused, remembered"][1]["p50"]
    aims = {
        "text p50 over in-process, ms (aim ≤ 8)": text - alone["text"]["p50"],
        "text p50 / in-process": text / alone["text"]["p50"],
        "fused remembered / text, p50 (aim ≤ 1.3)": hit / text,
        "text p99, generator saturated / not (aim ≤ 1.5)": found["text, generator saturated"]["p99"]
        / found["text before"]["p99"],
    }
    for name, value in aims.items():
        print(f"  {name}: {value:.2f}")
    return aims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"), help="what make demo left")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each cell")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--concurrency", type=int, nargs="+", default=CONCURRENCY, help="1 must be among them")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--vlm", default="random:ViT-B-32", help="beside the peer: random:ARCHITECTURE")
    parser.add_argument("--peer", help="the clip-retrieval command of the peer's environment: measure beside it alone")
    parser.add_argument("--work", type=Path, help="keep both indexes for the peer here, and use them again")
    arguments = parser.parse_args()
    if arguments.peer:
        with tempfile.TemporaryDirectory() as scratch:
            found = compare(
                arguments.vlm,
                arguments.peer,
                (arguments.work or Path(scratch)).absolute(),
                seconds=arguments.seconds,
                concurrencies=arguments.concurrency,
                environment=MODES[arguments.modes[0]],
            )
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")
        return
    queries = QuerySet.open(arguments.demo / "queries")
    texts = [row["text"] for row in queries.table(["id", "text", "kind"]).to_pylist() if row["kind"] == "name"]
    alone = in_process(arguments.demo, queries)
    for name, cell in alone.items():
        print(f"in process: {name:18} p50 {cell['p50']:.1f} ms, p99 {cell['p99']:.1f} ms")
    everything: dict[str, Any] = {"in process": alone}
    with tempfile.TemporaryDirectory() as work:
        for mode in arguments.modes:
            demo = arguments.demo.absolute()
            started = service(demo, demo_settings(), Path(work), MODES[mode], warm=demo / "queries")
            with started as (url, ready, pid):
                found = asyncio.run(measure(url, pid, texts, arguments.seconds, arguments.concurrency))
            everything[mode] = {"ready": ready} | found | {"aims": report(mode, ready, found, alone)}
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
