"""The service is deployed anew, with another profile, while streams are open and texts are asked."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
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

STREAMS, STEPS, IMAGES = 8, 40, 4
DEADLINE_SECONDS, TEXT_SECONDS = 120, 10
"""A replica that starts before another goes keeps nobody waiting for as long as a text may take here."""


def settings_of(given: dict[str, Any], *, k: int) -> dict[str, Any]:
    settings = deepcopy(given)
    settings["models"]["generator"] |= {"steps": STEPS}
    small = {"cpus": 0.05, "max_replicas": 1}
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


def test_no_answer_is_lost_while_the_service_is_deployed_anew(
    ray_session: None, collection: Collection, models_folder: Path, profile_settings: dict[str, Any]
) -> None:
    from ray import serve

    from serving.app import LOGGING, ServeArgs, build

    folder, port = models_folder.parent, free_port()
    url = f"http://127.0.0.1:{port}"

    def deploy(k: int) -> None:
        profile = folder / f"upgrade-{k}.yaml"
        profile.write_text(yaml.safe_dump(settings_of(profile_settings, k=k)))
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
            texts: list[tuple[float, float]] = []
            statuses: list[int] = []
            streams: list[tuple[float, float, list[tuple[str, Any]]]] = []
            over = asyncio.Event()

            text = {"query": "red star", "mode": "text", "k": 5, "deadline_ms": 1000 * TEXT_SECONDS}

            async def ask() -> None:
                while not over.is_set():
                    begun = time.monotonic()
                    response = await client.post("/v1/search", json=text)
                    texts.append((begun, time.monotonic() - begun))
                    statuses.append(response.status_code)

            async def stream(client_number: int) -> None:
                for number in itertools.count():
                    if over.is_set():
                        return
                    body = {"query": f"blue ring {client_number} {number}", "images": IMAGES, "k": 5}
                    begun = time.monotonic()
                    response = await client.post("/v1/search/stream", json=body)
                    streams.append((begun, time.monotonic(), events(response.text)))

            asking = [asyncio.create_task(ask()) for _ in range(2)]
            asking += [asyncio.create_task(stream(number)) for number in range(STREAMS)]
            while not streams:
                await asyncio.sleep(0.1)
            begun = time.monotonic()
            await asyncio.to_thread(deploy, 200)
            ended = time.monotonic()
            while await asyncio.to_thread(limit) != 200:
                await asyncio.sleep(0.1)
            over.set()
            await asyncio.gather(*asking)
        meanwhile = [seconds for at, seconds in texts if at < ended and at + seconds > begun]
        print(f"deployed in {ended - begun:.1f} s; {len(texts)} texts, slowest meanwhile {max(meanwhile):.2f} s")
        of_streams = [until - since for since, until, _ in streams if since < ended and until > begun]
        print(f"{len(streams)} streams, {len(of_streams)} of them meanwhile, slowest {max(of_streams):.1f} s")
        assert of_streams
        assert Counter(statuses) == {200: len(texts)}
        stages = [
            [(name, data.get("degraded") or data.get("error")) for name, data in found] for _, _, found in streams
        ]
        whole = [("text", None), ("imagined", None), ("fused", None), ("done", None)]
        assert [found for found in stages if found != whole] == []

    serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"}, logging_config=LOGGING)
    try:
        deploy(100)
        assert limit() == 100
        asyncio.run(go())
    finally:
        serve.shutdown()
