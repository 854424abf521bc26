"""What an answer has beside a plain ranking by text costs, under load: refinements, and the nearest real images.

    make demo                                        # leaves the index, the queries and the dictionary that this takes
    .venv/bin/python -m benchmarks.serve_words [--seconds 2] [--turns 3] [--clients 1 8]

The real command ``mindseye serve`` is started twice on a free port, without a generator: for the demo's folder, which
has a dictionary, and for its index alone, whose answers have no refinements. Each is asked by turns: by text, for a new
text with the nearest real images in the place of imagined ones, and for a remembered text. The peer is the search by
text without a dictionary, with as many clients.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.live_service import client, demo_settings, quantiles, service
from benchmarks.serve_evidence import K, turn
from retrieval.artifacts import QuerySet

Body = dict[str, Any]
WITHOUT_GENERATOR = "this service has no generator, and does not remember this query"
STAGES = ("text", "text_rank", "nearest_rank", "rank")


async def measure(url: str, texts: list[str], clients: int, arguments: argparse.Namespace) -> dict[str, Body]:
    """Times of each kind of search with so many clients."""
    names, numbers = itertools.cycle(texts), itertools.count()

    def new() -> str:
        return f"{next(names)} {next(numbers)}"

    kinds: dict[str, tuple[Callable[[], Body], str | None]] = {
        "text": (lambda: {"query": new(), "mode": "text", "k": K}, None),
        "new, by the nearest images": (lambda: {"query": new(), "k": K}, WITHOUT_GENERATOR),
        "remembered": (lambda: {"query": next(names), "k": K}, None),
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    async with client() as session:

        async def together(kind: str, seconds: float) -> None:
            body, degraded = kinds[kind]
            for took, told in await asyncio.gather(
                *(turn(session, url, body, seconds, degraded=degraded) for _ in range(clients))
            ):
                times[kind] += took
                stages[kind] += told

        for kind in kinds:
            await together(kind, 1)
            times[kind].clear()
            stages[kind].clear()
        for _ in range(arguments.turns):
            for kind in kinds:
                await together(kind, arguments.seconds)
    return {
        kind: quantiles(times[kind])
        | {"per_s": len(times[kind]) / (arguments.turns * arguments.seconds)}
        | {f"{stage}_ms": float(np.median([one.get(stage, 0) for one in stages[kind]])) for stage in STAGES}
        for kind in kinds
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"), help="what make demo left")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    demo = arguments.demo.absolute()
    queries = QuerySet.open(demo / "queries").table(["id", "text", "kind"]).to_pylist()
    texts = [row["text"] for row in queries if row["kind"] == "name"]
    settings = demo_settings()
    settings["serve"]["generator"] |= {"min_replicas": 0, "max_replicas": 0}
    found: dict[str, dict[str, Body]] = {}
    for named, target in (("no dictionary", demo / "index"), ("a dictionary", demo)):
        with (
            tempfile.TemporaryDirectory() as work,
            service(target, settings, Path(work), {}, warm=demo / "queries") as (url, _, _),
        ):
            for clients in arguments.clients:
                found[f"{named}, {clients}"] = asyncio.run(measure(url, texts, clients, arguments))
    for clients in arguments.clients:
        peer = found[f"no dictionary, {clients}"]["text"]
        for named in ("no dictionary", "a dictionary"):
            for kind, cell in found[f"{named}, {clients}"].items():
                shares = f"p50 × {cell['p50'] / peer['p50']:.2f}, rate × {cell['per_s'] / peer['per_s']:.2f}"
                figures = "  ".join(f"{what} {value:.1f}" for what, value in cell.items())
                print(f"{clients:2} clients, {named:13}, {kind:26} {shares}   {figures}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
