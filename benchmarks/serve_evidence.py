"""What a round costs: a search by known evidence against a search by text, in turn, at one running service.

    make demo                                        # leaves the index, the queries and the images that this takes
    .venv/bin/python -m benchmarks.serve_evidence [--seconds 2] [--turns 4]

The real command ``mindseye serve`` is started on a free port with the demo's queries in its memory, and asked by one
client: by text; by a remembered text; by a remembered text, a row of the gallery and a picture that was uploaded
before; and by row and picture alone. The aim is a round within 1.3 times the text, p50 of both.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks.live_service import client, demo_settings, quantiles, service
from retrieval.artifacts import Index, QuerySet

K = 10
Body = dict[str, Any]


async def turn(
    session: aiohttp.ClientSession, url: str, body: Callable[[], Body], seconds: float, *, degraded: str | None = None
) -> tuple[list[float], list[dict[str, float]]]:
    """Seconds of each answer, and milliseconds by stage as the service saw them; all answers are ``degraded`` so."""
    times, stages = [], []
    until = time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        async with session.post(f"{url}/v1/search", json=body()) as response:
            answer = await response.json()
        times.append(time.perf_counter() - started)
        assert response.status == 200, answer
        assert answer["degraded"] == degraded, answer
        stages.append(answer["timings_ms"])
    return times, stages


async def measure(url: str, texts: list[str], rows: list[str], picture: bytes, arguments: argparse.Namespace) -> Body:
    names, ids = itertools.cycle(texts), itertools.cycle(rows)
    async with client() as session:
        headers = {"Content-Type": "image/jpeg"}
        async with session.post(f"{url}/v1/pictures", data=picture, headers=headers) as response:
            upload = {"upload": (await response.json())["upload"], "weight": 0.5}

        def row() -> Body:
            return {"row": next(ids), "weight": 0.5}

        bodies: dict[str, Callable[[], Body]] = {
            "text": lambda: {"query": next(names), "mode": "text", "k": K},
            "text, remembered": lambda: {"query": next(names), "k": K},
            "round: text, row, upload": lambda: {"query": next(names), "evidence": [row(), upload], "k": K},
            "row, upload": lambda: {"evidence": [row(), upload], "k": K},
        }
        times: dict[str, list[float]] = {name: [] for name in bodies}
        stages: dict[str, list[dict[str, float]]] = {name: [] for name in bodies}
        for body in bodies.values():
            await turn(session, url, body, 1)
        for _ in range(arguments.turns):
            for name, body in bodies.items():
                took, told = await turn(session, url, body, arguments.seconds)
                times[name] += took
                stages[name] += told
    return {
        name: quantiles(times[name])
        | {"n": len(times[name])}
        | {stage: float(np.median([one.get(stage, 0) for one in stages[name]])) for stage in stages[name][0]}
        for name in bodies
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"), help="what make demo left")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    demo = arguments.demo.absolute()
    queries = QuerySet.open(demo / "queries").table(["id", "text", "kind"]).to_pylist()
    texts = [row["text"] for row in queries if row["kind"] == "name"]
    table = Index.open(demo / "index").shards()[0].rows
    rows = table["id"].to_pylist()[:: max(1, len(table) // 200)]
    picture = min((demo / "images").rglob("*.jpg")).read_bytes()
    with (
        tempfile.TemporaryDirectory() as work,
        service(demo, demo_settings(), Path(work), {}, warm=demo / "queries") as (url, _, _),
    ):
        found = asyncio.run(measure(url, texts, rows, picture, arguments))
    for name, cell in found.items():
        print(f"{name:26}", "  ".join(f"{what} {value:.1f}" for what, value in cell.items()))
    for name in ("text, remembered", "round: text, row, upload", "row, upload"):
        print(f"{name} / text, p50 (aim ≤ 1.3): {found[name]['p50'] / found['text']['p50']:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
