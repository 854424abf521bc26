"""The service is deployed anew, with another profile, while streams are open and texts are asked."""

from __future__ import annotations

import asyncio
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from event_stream import events
from tiny_artifacts import Collection

from cluster.ports import free_port
from serving.client import info

pytestmark = [pytest.mark.long, pytest.mark.slow]

STREAMS, STEPS, IMAGES = 8, 40, 48
DEADLINE_SECONDS = 60


def settings_of(given: dict[str, Any], *, k: int, surge: bool = True) -> dict[str, Any]:
    settings = deepcopy(given)
    settings["models"]["generator"] |= {"steps": STEPS}
    small = {"cpus": 0.05, "max_replicas": 1, "surge": surge}
    settings["serve"] = {
        "watch_seconds": 0.5,
        "local_index_bytes": 0,
        "shard_timeout_ms": 10_000,
        "deadline_ms": 1000 * DEADLINE_SECONDS,
        "limits": {"requests_per_minute": 1_000_000, "k": k},
        **{name: {**small, "ongoing": 64} for name in ("ingress", "vlm", "vision", "ranker", "shards")},
        "generator": {**small, "ongoing": STREAMS, "queued": STREAMS, "batch": 2},
    }
    return settings


@pytest.mark.parametrize("surge", [True, False])
def test_no_answer_is_lost_while_the_service_is_deployed_anew(
    ray_session: None, collection: Collection, models_folder: Path, profile_settings: dict[str, Any], surge: bool
) -> None:
    from ray import serve

    from serving.app import LOGGING, ServeArgs, build

    folder, port = models_folder.parent, free_port()
    url = f"http://127.0.0.1:{port}"

    def deploy(k: int) -> None:
        profile = folder / f"upgrade-{k}.yaml"
        profile.write_text(yaml.safe_dump(settings_of(profile_settings, k=k, surge=surge)))
        args = ServeArgs(
            target=str(collection.folder), profile=str(profile), store=f"sqlite:{folder / 'upgrade.sqlite'}"
        )
        serve.run(build(args), name="mindseye", logging_config=LOGGING)

    def limit() -> int:
        return int(info(url).limits["k"])

    async def go() -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=2 * DEADLINE_SECONDS) as client:
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.2)
            texts: list[tuple[float, Any]] = []
            over = asyncio.Event()

            async def ask() -> None:
                while not over.is_set():
                    begun = time.monotonic()
                    response = await client.post("/v1/search", json={"query": "red star", "mode": "text", "k": 5})
                    texts.append((time.monotonic() - begun, response))

            async def stream(number: int) -> list[tuple[str, Any]]:
                body = {"query": f"blue ring {number}", "images": IMAGES, "k": 5}
                response = await client.post("/v1/search/stream", json=body)
                return events(response.text)

            asking = [asyncio.create_task(ask()) for _ in range(2)]
            streams = [asyncio.create_task(stream(number)) for number in range(STREAMS)]
            await asyncio.sleep(1)
            begun = time.monotonic()
            await asyncio.to_thread(deploy, 200)
            print(f"deployed in {time.monotonic() - begun:.1f} s")
            assert await asyncio.to_thread(limit) == 200
            over.set()
            await asyncio.gather(*asking)
            found = await asyncio.gather(*streams)
            print(f"all streams ended after {time.monotonic() - begun:.1f} s")
        for stages in found:
            print(
                [name for name, _ in stages],
                [data.get("degraded") for name, data in stages if name == "fused"],
                [data.get("timings_ms", {}).get("total") for name, data in stages if name == "fused"],
                [data for name, data in stages if name == "error"],
            )
        seconds = sorted(second for second, _ in texts)
        print(len(texts), "texts; slowest:", [round(second, 2) for second in seconds[-5:]])
        print({response.status_code for _, response in texts}, [r.text for _, r in texts if r.status_code != 200][:3])
        assert {response.status_code for _, response in texts} == {200}
        assert [[name for name, _ in stages] for stages in found] == [["text", "imagined", "fused", "done"]] * STREAMS
        assert all(data["degraded"] is None for stages in found for name, data in stages if name == "fused")

    serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"}, logging_config=LOGGING)
    try:
        deploy(100)
        assert limit() == 100
        asyncio.run(go())
    finally:
        serve.shutdown()
