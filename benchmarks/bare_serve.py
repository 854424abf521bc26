"""What Ray Serve itself costs: an application with the hops of a search by text, which computes nothing.

    .venv/bin/python -m benchmarks.bare_serve [--seconds 2]

Proxy, ingress and two deployments that are asked one after the other, with the environment that mindseye sets; beside
it the same without the two. What ``benchmarks.serve`` measures beyond this is our own, and no change of ours can save
more than that while a text passes so many processes.
"""

import argparse
import asyncio
import os
from typing import Any

import aiohttp
import ray
from fastapi import FastAPI, Request
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.live_service import keep_asking
from benchmarks.serve import cpu_seconds
from cluster.ports import free_port
from serving.app import LOGGING

api = FastAPI()
OPTIONS: dict[str, Any] = {
    "max_ongoing_requests": 64,
    "ray_actor_options": {"num_cpus": 0.1},
    "logging_config": LOGGING,
}


class Part:
    async def answer(self, body: Any) -> Any:
        return body


@serve.ingress(api)
class Ingress:
    def __init__(self, encoder: DeploymentHandle, ranker: DeploymentHandle) -> None:
        self.encoder, self.ranker = encoder, ranker

    @api.post("/ingress")
    async def alone(self, request: Request) -> Any:
        return await request.json()

    @api.post("/search")
    async def through_both(self, request: Request) -> Any:
        return await self.ranker.answer.remote(await self.encoder.answer.remote(await request.json()))


def application() -> serve.Application:
    parts = (serve.deployment(Part, name=name, **OPTIONS).bind() for name in ("Encoder", "Ranker"))
    return serve.deployment(Ingress, **OPTIONS).bind(*parts)


async def measure(url: str, seconds: float) -> None:
    for path in ("/ingress", "/search"):

        async def ask(client: aiohttp.ClientSession, path: str = path) -> str | None:
            async with client.post(url + path, json={"query": "a star", "mode": "text", "k": 10}) as answer:
                await answer.read()
                return None if answer.status == 200 else str(answer.status)

        await keep_asking(ask, 4, 1)
        for clients in (1, 32):
            used = cpu_seconds(os.getpid())
            cell = await keep_asking(ask, clients, seconds)
            spent = (cpu_seconds(os.getpid()) - used).most_common()
            print(
                f"{path:9} × {clients:2}  p50 {cell['p50']:6.1f} ms  {cell['req/s']:6.1f} req/s  CPU of each, ms:",
                ", ".join(f"{name} {1e3 * s / cell['n']:.1f}" for name, s in spent),
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each line")
    arguments = parser.parse_args()
    port = free_port()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"}, logging_config=LOGGING)
    serve.run(application(), name="mindseye")
    asyncio.run(measure(f"http://127.0.0.1:{port}", arguments.seconds))
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
