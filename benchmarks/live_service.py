"""A running ``mindseye serve`` for a measurement, and clients that keep it busy."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import aiohttp
import numpy as np
import yaml

from cluster.ports import free_port
from cluster.profile import PROFILES, load_profile


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return p50 and p99 in milliseconds, NaN if nothing was measured."""
    return {f"p{share}": float(np.percentile(seconds or [np.nan], share) * 1e3) for share in (50, 99)}


@asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


async def keep_asking(
    ask: Callable[[aiohttp.ClientSession], Awaitable[str | None]], concurrency: int, seconds: float
) -> dict[str, float]:
    """Keep so many requests under way for so long. Times and rate are of what was answered as asked; what was wrong
    with other answers is printed.

    Args:
        ask: one request; it returns what was wrong with the answer, if anything was.
    """
    times: list[float] = []
    faults: list[str] = []
    until = time.perf_counter() + seconds

    async with client() as session:

        async def one() -> None:
            while time.perf_counter() < until:
                started = time.perf_counter()
                fault = await ask(session)
                if fault:
                    faults.append(fault)
                else:
                    times.append(time.perf_counter() - started)

        started = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(concurrency)))
        spent = time.perf_counter() - started
    if faults:
        print("  not as asked:", ", ".join(f"{count} × {fault}" for fault, count in Counter(faults).most_common()))
    result = quantiles(times) | {"req/s": len(times) / spent, "n": len(times)}
    return result | ({"not as asked": len(faults)} if faults else {})


def demo_settings() -> dict[str, Any]:
    """Return the profile ``tiny``, with absolute places, in which one client may send as much as it likes."""
    settings = yaml.safe_load((PROFILES / "tiny.yaml").read_text())
    settings["serve"]["limits"] = {"requests_per_minute": 10_000_000, "pictures_per_minute": 10_000_000}
    models = load_profile("tiny").models
    settings["models"] |= {"vlm": models.vlm, "vision": models.vision, "aggregator": models.aggregator}
    assert models.generator
    settings["models"]["generator"]["uri"] = models.generator.uri
    return settings


@contextmanager
def service(
    folder: Path, settings: dict[str, Any], work: Path, environment: dict[str, str], warm: Path | None = None
) -> Iterator[tuple[str, float, int]]:
    """Start ``mindseye serve``; yield its URL, the seconds that it took to be ready, and its process id.

    Args:
        folder: target of the index.
        settings: of the profile.
        work: where its profile, its log and its store go.
        environment: beside that of this process.
        warm: a query set to remember.
    """
    profile = work / "bench.yaml"
    profile.write_text(yaml.safe_dump(settings))
    port = free_port()
    store = tempfile.mkdtemp(dir=work)
    command = [sys.executable, "-m", "mindseye", "serve", str(folder), "--profile", str(profile), "--port", str(port)]
    command += ["--store", f"sqlite:{store}/queries.sqlite", *(["--warm", str(warm)] if warm else [])]
    started = time.monotonic()
    log = work / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        await_answer(process, f"{url}/readyz", log)
        yield url, time.monotonic() - started, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def await_answer(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until a process answers at ``url``; should it end before, end with its log."""
    while process.poll() is None:
        try:
            with urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{process.args!r} ended:\n{log.read_text()}")
