"""Texts at a service with a VLM of true size, beside clip-retrieval's back end with the same weights.

    .venv/bin/python -m benchmarks.serve --vlm random:ViT-B-32 --peer PEER/bin/clip-retrieval

Both have the same pictures in their index and are asked the same texts, one text a query without a prompt template, by
the same client on the same cores, one after the other. The pictures are moved away from the peer, which else would send
them with each answer. Before both the text tower runs alone on all cores, one text at once and as many as the service's
profile: as the service has it, and as the library has it, which computes each text's padding too.

The peer needs an environment of its own: python -m venv PEER; PEER/bin/pip install "setuptools<80" "numpy<2"
clip-retrieval. It listens on every interface, and has no setting for that.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import open_clip
import torch

from benchmarks.live_service import await_answer, demo_settings, keep_asking, service
from cluster.cores import usable_cores
from cluster.loading import load_vlm
from cluster.ports import free_port
from cluster.profile import Profile
from cluster.session import session
from demo.collection import render_gallery, vocabulary
from demo.world import split
from pipelines.gallery import build_gallery
from pipelines.index import build_index
from retrieval.models.loading import fixed_seed
from retrieval.models.vlm import VLM
from retrieval.prompts import KINDS

CATEGORIES, PICTURES = 16, 32
"""Rows of both indexes: so many pictures of so many of the demo's categories."""
K = 10
OFFLINE = {"HF_HUB_OFFLINE": "1"}


def settings_with(vlm: str) -> dict[str, Any]:
    """Return the profile ``tiny`` with another VLM and no prompt templates."""
    settings = demo_settings()
    settings["models"] |= {"vlm": vlm, "aggregator": None}
    settings["queries"]["templates"] = "none"
    return settings


def prepare(vlm: str, peer: str, folder: Path) -> None:
    """Make both indexes of the same pictures in ``folder``, unless they are there."""
    settings = Profile.model_validate({"name": "benchmark", **settings_with(vlm)})
    pictures, peer_folder = folder / "pictures", folder / "peer"
    if not (folder / "index").exists():
        with session("none"):
            render_gallery(pictures, split("unseen")[:CATEGORIES], PICTURES)
            gallery = build_gallery(str(pictures), str(folder / "gallery"), settings)
            build_index(gallery, str(folder / "index"), settings)
    if not (peer_folder / "image.index").exists():
        architecture, weights = vlm.removeprefix("random:"), folder / "weights.pt"
        with fixed_seed():
            torch.save(open_clip.create_model(architecture, pretrained_text=False).state_dict(), weights)
        there = {"clip_model": f"open_clip:{architecture}/{weights}", "use_jit": False}
        run(peer, "inference", input_dataset=pictures, output_folder=folder / "embedded", enable_text=False, **there)
        peer_folder.mkdir(exist_ok=True)
        run(peer, "index", embeddings_folder=folder / "embedded", index_folder=peer_folder)
    if pictures.exists():
        pictures.rename(folder / "moved")


def run(peer: str, command: str, **arguments: Any) -> None:
    flags = [f"--{name}={value}" for name, value in arguments.items()]
    done = subprocess.run([peer, command, *flags], env=os.environ | OFFLINE, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"clip-retrieval {command} has failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


@contextmanager
def back(peer: str, vlm: str, folder: Path) -> Iterator[str]:
    """Start ``clip-retrieval back``; yield the URL of its search."""
    (folder / "indices.json").write_text(json.dumps({"pictures": str(folder / "peer")}))
    port, log = free_port(), folder / "back.log"
    command = [peer, "back", f"--port={port}", f"--indices_paths={folder / 'indices.json'}", "--use_jit=False"]
    command += [f"--clip_model=open_clip:{vlm.removeprefix('random:')}/{folder / 'weights.pt'}"]
    command += ["--enable_mclip_option=False", "--provide_aesthetic_embeddings=False"]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=os.environ | OFFLINE, stdout=output, stderr=subprocess.STDOUT)
    try:
        await_answer(process, f"http://127.0.0.1:{port}/indices-list", log)
        yield f"http://127.0.0.1:{port}/knn-service"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def texts_per_second(encode: Callable[[Sequence[str]], Any], texts: Sequence[str], batch: int, seconds: float) -> float:
    """Return the rate of a text tower alone, in batches, on all cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    batches = _batches(texts, batch)
    encode(next(batches))
    started, done = time.perf_counter(), 0
    while time.perf_counter() < started + seconds:
        encode(next(batches))
        done += batch
    rate = done / (time.perf_counter() - started)
    torch.set_num_threads(before)
    return rate


def _batches(texts: Sequence[str], batch: int) -> Iterator[list[str]]:
    rotation = itertools.cycle(texts)
    while True:
        yield list(itertools.islice(rotation, batch))


def towers(vlm: str, texts: Sequence[str], seconds: float) -> dict[str, dict[int, float]]:
    """Return texts per second of the text tower, as the service and as the library computes it, by texts at once."""
    settings = Profile.model_validate({"name": "benchmark", **settings_with(vlm)})
    architecture = vlm.removeprefix("random:")
    model = open_clip.create_model(architecture, pretrained_text=False).eval()
    tokenizer = open_clip.get_tokenizer(architecture)

    @torch.inference_mode()
    def library(texts: Sequence[str]) -> torch.Tensor:
        return model.encode_text(tokenizer(list(texts)), normalize=True)

    found: dict[str, dict[int, float]] = {}
    for dtype in ("auto", "float32"):
        ours = load_vlm(settings.model_copy(update={"models": settings.models.model_copy(update={"dtype": dtype})}))
        if f"mindseye, {name(ours)}" in found:
            continue
        model.to(ours.dtype)
        for who, encode in (("mindseye", ours.encode_text), ("open_clip", library)):
            found[f"{who}, {name(ours)}"] = {
                batch: texts_per_second(encode, texts, batch, seconds) for batch in (1, settings.serve.vlm.batch)
            }
            rates = found[f"{who}, {name(ours)}"].items()
            print(f"tower of {who}, {name(ours)}:", ", ".join(f"{rate:.1f}/s × {at}" for at, rate in rates), flush=True)
    return found


def name(vlm: VLM) -> str:
    return str(vlm.dtype).removeprefix("torch.")


def compare(
    vlm: str, peer: str, folder: Path, *, seconds: float, concurrencies: Sequence[int], environment: dict[str, str]
) -> dict[str, Any]:
    """Measure the text tower alone, the peer and the service; print a table; return all figures."""
    if not vlm.startswith("random:"):
        raise SystemExit(f"--vlm {vlm}: the peer is given random weights; name random:ARCHITECTURE")
    prepare(vlm, peer, folder)
    texts = [entry.text for entry in vocabulary(split("unseen"), KINDS)]
    rotation = itertools.cycle(texts)
    found: dict[str, Any] = {"rows": CATEGORIES * PICTURES, "tower": towers(vlm, texts, seconds / 2)}

    async def ask_peer(client: aiohttp.ClientSession) -> str | None:
        body = {"text": next(rotation), "modality": "image", "num_images": K, "indice_name": "pictures"}
        async with client.post(theirs, json=body) as answer:
            return None if answer.status == 200 and len(await answer.json()) == K else str(answer.status)

    async def ask_us(client: aiohttp.ClientSession) -> str | None:
        async with client.post(f"{ours}/v1/search", json={"query": next(rotation), "mode": "text", "k": K}) as answer:
            found = await answer.json()
            return None if len(found.get("results", ())) == K else f"{answer.status}: {found}"

    def measured(who: str, ask: Callable[[aiohttp.ClientSession], Any]) -> dict[int, dict[str, float]]:
        asyncio.run(keep_asking(ask, 4, 2))
        cells = {}
        for clients in concurrencies:
            cell = cells[clients] = asyncio.run(keep_asking(ask, clients, seconds))
            unlike = f", {cell['not as asked']} not as asked" if "not as asked" in cell else ""
            print(
                f"{who:14} × {clients:2} {cell['req/s']:7.1f} req/s, p50 {cell['p50']:7.1f} ms,"
                f" p99 {cell['p99']:7.1f} ms{unlike}",
                flush=True,
            )
        return cells

    with back(peer, vlm, folder) as theirs:
        found["clip-retrieval"] = measured("clip-retrieval", ask_peer)
    with service(folder, settings_with(vlm), folder, environment) as (ours, ready, _):
        found |= {"ready": ready, "mindseye": measured("mindseye", ask_us)}
    report(found)
    return found


def report(found: dict[str, Any]) -> None:
    """Print how many times as many requests were answered as by the peer, and as the text tower alone would."""
    for clients, peer in found["clip-retrieval"].items():
        rate = found["mindseye"][clients]["req/s"]
        ratios = {"clip-retrieval": rate / peer["req/s"]}
        ratios |= {f"tower of {which}": rate / max(rates.values()) for which, rates in found["tower"].items()}
        print(f"mindseye × {clients} /", ", / ".join(f"{which}: {ratio:.2f}" for which, ratio in ratios.items()))
