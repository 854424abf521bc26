"""From JPEG to vectors: rates of decoders, what reduced decoding changes, and the embedding job against clip-retrieval,
against the same models fed from memory, and against the limit that decoding and models set together, in one run.

    .venv/bin/python -m benchmarks.embed --source PHOTOS.parquet [--images 512] [--peer PEER/bin/clip-retrieval]
        [--only 300 2000] [--dtype bfloat16 float32] [--write]

The source has a column ``image`` with JPEG bytes. Large images are its photos enlarged to 2,000 pixels and encoded
again. The VLM is open_clip's ViT-B/32 with random weights: its speed is that of trained ones. Beside it is a small
vision encoder, since the job always holds two: a twentieth of the VLM's time in bfloat16, and part of the limit.

Rates leave start-up out: the job's is the sum of its actors' own rates while all of them have batches, so the last
ones, when one has none and others have, are left out as well (``with_tail`` has them); the peer's is its own figure,
which begins with the first batch after its warm-up. Models in memory embed ready pixels, in one process with all
threads or in one process a core, whichever is faster; decoding is measured in one process a core, from bytes in memory.
The limit of a job is what both allow if they share the cores and nothing else takes time:
1 / (1 / decoding + 1 / embedding).

The peer needs an environment of its own: python -m venv PEER; PEER/bin/pip install "setuptools<80" "numpy<2"
clip-retrieval.
Where simplejpeg is installed, its decoder is measured too.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import math
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.io import ImageReadMode, decode_jpeg

import pipelines.gallery
from cluster.loading import load_vision, load_vlm
from cluster.profile import Generator, IndexSettings, Models, Profile, Queries, Stage
from cluster.session import session
from pipelines.batch_contents import summary_of
from pipelines.decoder import decoded_side
from pipelines.gallery import build_gallery
from retrieval.artifacts import Gallery
from retrieval.images import SIDES_TO_SPARE, decode, decode_reduced
from retrieval.models.devices import pick_device
from retrieval.models.image_encoder import ImageEncoder
from retrieval.models.loading import RANDOM_SEED
from retrieval.models.vision import VisionEncoder
from retrieval.models.vlm import VLM

CORES = os.cpu_count() or 1
BATCH = 32
ARCHITECTURE, SIDE = "ViT-B-32", 224
LARGE = 2000
PARTS = ["decode", "cosines", "300", f"{LARGE}"]
DType = Literal["bfloat16", "float32"]
DTYPES: list[DType] = ["bfloat16", "float32"]
FEW = 64 * CORES
"""Images before the rate is taken: a block for each actor."""
DEMO = Path(__file__).parents[1] / "demo" / "models"
DOCS = Path(__file__).parents[1] / "docs"


def profile(vision: str, dtype: DType) -> Profile:
    """Return a profile of one actor a core, with ViT-B/32 and the given vision encoder."""
    generator = Generator(uri="unused", steps=1, guidance=0, batch=1)
    return Profile(
        name="benchmark",
        models=Models(vlm=f"random:{ARCHITECTURE}", vision=vision, generator=generator, dtype=dtype),
        embed=Stage(cpus=1, max_actors=CORES, batch=BATCH),
        imagine=Stage(max_actors=1, batch=1),
        queries=Queries(images=1, templates="none"),
        index=IndexSettings(rows_per_shard=1_000_000),
    )


def tiny_vision(folder: Path) -> str:
    """Write a vision encoder of little work that takes ViT-B/32's very pixels; return its URI."""
    folder.mkdir()
    size = {"img_size": SIDE}
    pretrained = {"input_size": [3, SIDE, SIDE], "crop_pct": 1.0, "interpolation": "bicubic", "num_classes": 0}
    settings = {"architecture": "test_vit", "model_args": size, "num_classes": 0, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(timm.create_model("test_vit", num_classes=0, **size).state_dict(), folder / "model.safetensors")
    return f"local-dir:{folder}"


def photos(source: str, count: int) -> list[bytes]:
    """Return the bytes of ``count`` photos drawn at random, the same ones each time."""
    column = pq.read_table(source, columns=["image"])["image"]
    order = np.random.default_rng(0).permutation(len(column))
    if count > len(order):
        raise SystemExit(f"{source} has {len(order)} images, and {count} are needed; lower --images")
    return column.take(pa.array(order[:count])).to_pylist()


def enlarged(data: bytes, long_side: int) -> bytes:
    image = decode(data)
    factor, buffer = long_side / max(image.size), BytesIO()
    size = (round(image.width * factor), round(image.height * factor))
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


# Decoding


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """Return ways from bytes to what `Preprocess.pixels` takes."""

    def with_torchvision(data: bytes) -> Image.Image:
        given = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return Image.fromarray(decode_jpeg(given, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy())

    ways: dict[str, Callable[[bytes], Any]] = {
        "Pillow": decode,
        "Pillow, reduced (ours)": lambda data: decode_reduced(data, SIDE),
        "torchvision": with_torchvision,
    }
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        least = dict.fromkeys(("min_height", "min_width"), math.ceil(SIDES_TO_SPARE * SIDE))
        ways["simplejpeg"] = lambda data: Image.fromarray(simplejpeg.decode_jpeg(data))
        ways["simplejpeg, reduced"] = lambda data: Image.fromarray(simplejpeg.decode_jpeg(data, **least))
    return ways


def decode_rates(sets: dict[str, list[bytes]], vlm: VLM) -> Iterator[dict[str, Any]]:
    """Measure images per second on one core, of decoding alone and with preprocessing: the best of three rounds."""
    for size, images in sets.items():
        for name, way in decoders().items():
            rounds = []
            for _ in range(3):
                start = time.perf_counter()
                decoded = [way(data) for data in images]
                middle = time.perf_counter()
                for image in decoded:
                    vlm.preprocess.pixels(image)
                rounds.append((middle - start, time.perf_counter() - start))
            decoding, both = (len(images) / min(seconds) for seconds in zip(*rounds, strict=True))
            yield {"images": size, "decoder": name, "decode_per_s": round(decoding), "with_pixels_per_s": round(both)}


# What it changes


def cosines(first_ND: np.ndarray, second_ND: np.ndarray) -> dict[str, float]:
    """Return the lowest and the median cosine of rows that belong together."""
    found = (first_ND.astype(np.float32) * second_ND.astype(np.float32)).sum(axis=1)
    return {"min": round(float(found.min()), 5), "median": round(float(np.median(found)), 5)}


def reduction_costs(sets: dict[str, list[bytes]], vlm: VLM) -> Iterator[dict[str, Any]]:
    """Compare vectors of images decoded in reduced size with those decoded whole, and bfloat16 with float32."""
    encoders: dict[str, VLM | VisionEncoder] = {
        ARCHITECTURE: vlm,
        "demo VLM": VLM.load(f"local-dir:{DEMO}/vlm", dtype="float32"),
        "demo vision encoder": VisionEncoder.load(f"local-dir:{DEMO}/vision", dtype="float32"),
    }
    for name, encoder in encoders.items():
        half = type(encoder).load(encoder.uri, dtype="bfloat16")
        for size, images in sets.items():
            reduced = [decode_reduced(data, encoder.preprocess.side) for data in images]
            shrunk = sum(not image.is_whole for image in reduced)
            pixels = np.stack([encoder.preprocess.pixels(decode(data)) for data in images])
            whole = encoder.encode_images(pixels)
            cost = {"model": name, "pixels": encoder.preprocess.side, "images": size}
            if shrunk:
                vectors = encoder.encode_images(np.stack([encoder.preprocess.pixels(image) for image in reduced]))
                yield cost | {"what": f"reduced ({shrunk} of {len(images)})"} | cosines(vectors, whole)
            if size == next(iter(sets)):
                few = slice(16)  # a CPU without bfloat16 takes long
                yield cost | {"what": "bfloat16"} | cosines(half.encode_images(pixels[few]), whole[few])


# End to end


def in_memory(settings: Profile) -> float:
    """Return the rows per second of both models fed with pixels, by the better of two ways to use the cores."""
    return max(_in_memory(settings, *way) for way in {(1, CORES), (CORES, 1)})


def _in_memory(settings: Profile, processes: int, threads: int) -> float:
    batches = 4 * CORES // processes
    return processes * batches * BATCH / _at_once(_embed_pixels, processes, settings, batches, threads)


def decode_rate(settings: Profile, images: list[bytes]) -> float:
    """Return the images per second that all cores turn into the pixels of both encoders."""
    return CORES * len(images) / _at_once(_decode_images, CORES, settings, images)


def _at_once(function: Callable[..., None], processes: int, *arguments: Any) -> float:
    """Run a function in so many processes, which begin together once they are ready; return the longest seconds."""
    context = multiprocessing.get_context("spawn")
    ready, seconds = context.Barrier(processes), context.SimpleQueue()
    workers = [
        context.Process(target=function, args=(*arguments, ready, seconds), daemon=True) for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a process that works from memory has failed; see above")
    return max(seconds.get() for _ in workers)


def _loaded(settings: Profile) -> list[ImageEncoder]:
    return [load_vlm(settings), load_vision(settings)]


def _embed_pixels(settings: Profile, batches: int, threads: int, ready: Any, seconds: Any) -> None:
    torch.set_num_threads(threads)
    encoders = _loaded(settings)
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8)
    for encoder in encoders:
        encoder.encode_images(pixels)
    ready.wait()
    start = time.perf_counter()
    for _ in range(batches):
        for encoder in encoders:
            encoder.encode_images(pixels)
    seconds.put(time.perf_counter() - start)


def _decode_images(settings: Profile, images: list[bytes], ready: Any, seconds: Any) -> None:
    preprocesses = {encoder.preprocess.geometry: encoder.preprocess for encoder in _loaded(settings)}
    side = decoded_side(preprocesses.values())

    def decode_all() -> None:
        for data in images:
            image = decode_reduced(data, side)
            for preprocess in preprocesses.values():
                preprocess.pixels(image)

    decode_all()  # the first images take twice as long
    ready.wait()
    start = time.perf_counter()
    decode_all()
    seconds.put(time.perf_counter() - start)


def write_files(folder: Path, images: list[bytes]) -> None:
    folder.mkdir(parents=True)
    for i, data in enumerate(images):
        (folder / f"{i:06d}.jpg").write_bytes(data)


@ray.remote(num_cpus=0)
class Clock:
    """Takes the place of a job's counter, and notes when each worker had done how many rows."""

    def __init__(self) -> None:
        self._times: dict[int, list[tuple[float, int]]] = {}
        self._seconds: collections.Counter[str] = collections.Counter()

    def add(self, worker: int, count: int, seconds: dict[str, float]) -> None:
        if count:
            self._times.setdefault(worker, []).append((time.perf_counter(), count))
        self._seconds.update(seconds)

    def seconds(self) -> dict[str, float]:
        return dict(self._seconds)

    def rates(self) -> tuple[float, float]:
        """Return rows per second while all workers have batches, and from then on until the last row."""
        first = max(times[0][0] for times in self._times.values())
        last = min(times[-1][0] for times in self._times.values())
        steady = 0.0
        for times in self._times.values():
            at, done = zip(*((at, count) for at, count in times if first <= at <= last), strict=True)
            if len(at) < 2:
                raise SystemExit("an actor had fewer than two batches while all were busy; give more --images")
            steady += sum(done[1:]) / (at[-1] - at[0])
        later = [(at, count) for times in self._times.values() for at, count in times if at > first]
        return steady, sum(count for _, count in later) / (max(later)[0] - first)


class Clocked(NamedTuple):
    """A job's counter that tells the clock who has counted."""

    clock: Any

    def add(self, count: int = 0, **seconds: float) -> None:
        self.clock.add.remote(os.getpid(), count, seconds)

    def flush(self) -> None:
        pass

    def seconds(self) -> dict[str, float]:
        return ray.get(self.clock.seconds.remote())


def job_rate(folder: Path, settings: Profile) -> tuple[dict[str, Any], Gallery]:
    """Run the whole gallery job, written result included; return its rate, what else it says, and the gallery."""
    clock = Clocked(Clock.remote())  # type: ignore[attr-defined]

    @contextmanager
    def clocked(*_: Any) -> Iterator[Any]:
        yield clock

    start = time.perf_counter()
    with patch.object(pipelines.gallery, "progress", clocked):
        gallery = build_gallery(str(folder / "images"), str(folder / "gallery"), settings)
    seconds = time.perf_counter() - start
    rows, (rate, with_tail) = gallery.manifest.rows, ray.get(clock.clock.rates.remote())
    measured = {
        "rows_per_s": round(rate, 2),
        "with_tail": round(with_tail, 2),
        "start_up_s": round(seconds - rows / rate, 1),
        "worker_seconds": summary_of(gallery, gallery.manifest.batches[0]).spent,
    }
    return measured, gallery


def peer_rate(command: str, images: Path, weights: Path, output: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the rate of clip-retrieval's own inference by its own clock, and its vectors by file name."""
    arguments = {
        "input_dataset": images,
        "output_folder": output,
        "clip_model": f"open_clip:{ARCHITECTURE}/{weights}",
        "enable_text": False,
        "use_jit": False,
        "batch_size": BATCH,
        "num_prepro_workers": CORES,
    }
    flags = [f"--{name}={value}" for name, value in arguments.items()]
    start = time.perf_counter()
    run = subprocess.run(
        [command, "inference", *flags], env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    files = list(output.glob("stats/*.json"))
    if run.returncode or len(files) != 1:
        raise SystemExit(f"clip-retrieval has failed:\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}")
    stats = json.loads(files[0].read_text())
    names = pq.read_table(output / "metadata" / "metadata_0.parquet")["image_path"].to_pylist()
    vectors = np.load(output / "img_emb" / "img_emb_0.npy")
    rate = stats["sample_count"] / stats["total_duration"]
    measured = {"rows_per_s": round(rate, 2), "start_up_s": round(seconds - stats["total_duration"], 1)}
    return measured, {Path(name).name: vector for name, vector in zip(names, vectors, strict=True)}


def end_to_end(folder: Path, images: list[bytes], settings: Profile, peer: str | None, weights: Path) -> dict[str, Any]:
    """Measure the parts from memory, the job, and the peer, on the same images; and rates by one another."""
    embedding, decoding = in_memory(settings), decode_rate(settings, images[:FEW])
    limit = 1 / (1 / embedding + 1 / decoding)
    result: dict[str, Any] = {
        "embedding_rows_per_s": round(embedding, 2),
        "decoding_rows_per_s": round(decoding, 1),
        "limit_rows_per_s": round(limit, 2),
    }
    show([result])
    write_files(folder / "images", images)
    with session():
        write_files(folder / "warm-up", images[:BATCH])
        build_gallery(str(folder / "warm-up"), str(folder / "warm"), settings)
        result["job"], gallery = job_rate(folder, settings)
    rate, with_tail = result["job"]["rows_per_s"], result["job"]["with_tail"]
    result |= {"job / limit": round(rate / limit, 3), "job with tail / limit": round(with_tail / limit, 3)}
    if peer:
        theirs, vectors = peer_rate(peer, folder / "images", weights, folder / "peer")
        table = pa.concat_tables(gallery.tables(["path", "vlm"])).to_pydict()
        ours = dict(zip(table["path"], table["vlm"], strict=True))
        same = cosines(*(np.array([side[n] for n in vectors]) for side in (ours, vectors)))
        result |= {"clip-retrieval": theirs, "cosine_with_clip_retrieval": same}
        result["job / clip-retrieval"] = round(rate / theirs["rows_per_s"], 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="Parquet file with photos, column image")
    parser.add_argument(
        "--images", type=int, default=512, help="N, a multiple of 128 × cores; half as many of the large ones"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="what is measured; by default all")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES, help="of the models in the jobs")
    parser.add_argument("--peer", help="the clip-retrieval command of the peer's environment")
    parser.add_argument("--write", action="store_true", help="write docs/embedding.json; what is not measured stays")
    arguments = parser.parse_args()
    count = arguments.images
    small = photos(arguments.source, count + FEW)
    large = [enlarged(data, LARGE) for data in small[: count // 2 + FEW if f"{LARGE}" in arguments.only else 32]]
    result: dict[str, Any] = {"cores": CORES, "device": pick_device().type}
    vlm = VLM.load(f"random:{ARCHITECTURE}", dtype="float32")
    if "decode" in arguments.only:
        result["decode"] = show(decode_rates({"300": small[:64], f"{LARGE}": large[:16]}, vlm))
    if "cosines" in arguments.only:
        middle = [enlarged(data, 1000) for data in small[:64]]
        result["cosines"] = show(reduction_costs({"300": small[:64], "1000": middle, f"{LARGE}": large[:32]}, vlm))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.manual_seed(RANDOM_SEED)  # as random: does it, so that both have the same weights
        torch.save(open_clip.create_model(ARCHITECTURE).state_dict(), folder / "weights.pt")
        vision = tiny_vision(folder / "tiny")
        for size, images in (("300", small), (f"{LARGE}", large)):
            for dtype in arguments.dtype if size in arguments.only else ():
                of = folder / size / dtype
                measured = end_to_end(of, images, profile(vision, dtype), arguments.peer, folder / "weights.pt")
                result[f"end_to_end_{size}_{dtype}"] = measured | {"images": len(images) - FEW}
                show([measured])
                if arguments.write:
                    write(result)
    if arguments.write:
        write(result)


def write(result: dict[str, Any]) -> None:
    """Put what was measured into docs/embedding.json; what was not stays there."""
    file = DOCS / "embedding.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | result, indent=2) + "\n")


def show(rows: Any) -> list[dict[str, Any]]:
    """Print rows as they are measured; return them as a list."""
    kept = []
    for row in rows:
        print(json.dumps(row), flush=True)
        kept.append(row)
    return kept


if __name__ == "__main__":
    main()
