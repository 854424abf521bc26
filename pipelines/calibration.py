"""A short run on this machine that measures the rates of a capacity plan: the models of a profile, and FAISS.

What is measured is said as it is measured. A rate is that of one worker alone, with as many threads as the profile
gives it CPUs; a GPU that is shared is taken to give each its share.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from PIL import Image

from cluster.loading import load_query_encoder
from cluster.profile import Profile
from cluster.progress import Log, silent
from pipelines.decoder import decoded_side
from pipelines.faiss_threads import faiss_threads
from retrieval.artifacts.columns import fixed_size_list
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.fusion import unit
from retrieval.images import ImageRejected, decode_reduced, thumbnail
from retrieval.index.build import build_shard
from retrieval.index.shard import Shard
from retrieval.query import QueryEncoder
from retrieval.sources.files import files_in
from retrieval.sources.kinds import kind_of
from retrieval.sources.listing import inputs_in_order, kind_of_folder
from retrieval.sources.reader import InputReader
from retrieval.timing import timed

PICTURES = 64
TEXT = "a yellow dotted fish"
LISTS, BLOCK, SHARD_ROWS, RECALL_QUERIES = 4096, 4096, 20_000, 1000
SECONDS = 3.0
"""That each rate is measured for, at least."""


def calibrate(profile: Profile, source: str | None = None, *, log: Log = silent) -> dict[str, float]:
    """Measure rates, by their names in ``cluster.rates.Rates``.

    Args:
        profile: whose models are loaded.
        source: a folder of which the first images are read; by default images of noise, 640 × 480 pixels.
        log: is told each rate.

    Raises:
        UserError: a model cannot be loaded, or the folder has no image that can be used (``no-usable-image``).
    """
    found: dict[str, float] = {}

    def say(name: str, value: float, what: str) -> None:
        found[name] = value
        log(f"measured: {name} = {value:.6g}  ({what})")

    contents = own_pictures(source) if source else noise_pictures()
    models = load_query_encoder(profile)
    say("vlm_dim", models.vlm.dim, models.vlm.uri)
    say("vision_dim", models.vision.dim, models.vision.uri)
    if source:
        say("source_bytes", float(np.mean([len(content) for content in contents])), f"{len(contents)} images")
    kind = f"{len(contents)} images of {source}" if source else f"{len(contents)} images of noise, 640 × 480"
    preprocesses = models.vlm.preprocess, models.vision.preprocess
    side = decoded_side(preprocesses)

    def decode() -> int:
        for content in contents:
            image = decode_reduced(content, side)
            for preprocess in preprocesses:
                preprocess.pixels(image)
        return len(contents)

    say("decode_rows_per_s", rate(decode), kind)
    _measure_models(profile, models, say)
    dims = models.vlm.dim, models.vision.dim
    with faiss_threads(1):
        products = products_per_s(sum(dims))
        say("products_per_s", products, f"rows assigned to {LISTS:,} lists, one thread")
        values, each = shard_rates(*dims, products)
        what = f"shards of {SHARD_ROWS // 5:,} and {SHARD_ROWS:,} random rows, one thread"
        say("values_per_s", values, what)
        say("shard_s", each, what)
    return found


def _measure_models(profile: Profile, models: QueryEncoder, say: Callable[[str, float, str], None]) -> None:
    stages, serve, images = profile.embed, profile.serve, profile.queries.images
    where = f"{models.vlm.device}, {models.vlm.dtype}"
    vlm, vision = models.vlm.preprocess.blank(), models.vision.preprocess.blank()

    def embed() -> int:
        models.vlm.encode_images(np.repeat(vlm[None], stages.batch, axis=0))
        models.vision.encode_images(np.repeat(vision[None], stages.batch, axis=0))
        return stages.batch

    with _threads(stages.cpus):
        say("embed_rows_per_s", _share(stages.gpus) * rate(embed), f"batches of {stages.batch}, {where}")

    def encode() -> int:
        return len(models.text_vectors([TEXT] * serve.vlm.batch))

    with _threads(serve.vlm.cpus):
        texts = f"batches of {serve.vlm.batch} in {len(models.templates)} templates, {where}"
        say("texts_per_s", _share(serve.vlm.gpus) * rate(encode), texts)

    def see() -> int:
        return len(models.vision.encode_images(np.repeat(vision[None], images, axis=0)))

    with _threads(serve.vision.cpus):
        say("pictures_per_s", _share(serve.vision.gpus) * rate(see), f"{images} at once, {where}")
    generator = models.generator
    if not generator:
        return
    made: list[np.ndarray] = []

    def generate() -> int:
        [imagined] = models.imagine([TEXT], images, seed=len(made))
        made.append(imagined.pixels_KHWC)
        return images

    steps = f"{images} images of {generator.size} pixels in {generator.steps} steps, {where}"
    with _threads(serve.generator.cpus):
        say("generator_images_per_s", _share(serve.generator.gpus) * rate(generate), steps)
    if any(map(len, made)):
        small = [len(thumbnail(Image.fromarray(pixels))) for of in made for pixels in of]
        say("thumbnail_bytes", float(np.mean(small)), f"{len(small)} imagined images")

    def imagine() -> int:
        models.encode([TEXT], images, seed=len(made))
        return images

    with _threads(profile.imagine.cpus):
        say("imagine_images_per_s", _share(profile.imagine.gpus) * rate(imagine), f"{steps}, and embedded")


def rate(work: Callable[[], int]) -> float:
    """Return how many a second ``work`` does, which returns how many it has done; its first call is not counted."""
    work()
    done, started = 0, time.perf_counter()
    while True:
        done += work()
        spent = time.perf_counter() - started
        if spent >= SECONDS:
            return done / spent


def noise_pictures() -> list[bytes]:
    """Return JPEGs of smooth noise, about as hard to decode as photos."""
    rng, files = np.random.default_rng(0), []
    for _ in range(PICTURES):
        small = Image.fromarray(rng.integers(256, size=(60, 80, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def own_pictures(source: str) -> list[bytes]:
    """Return the first images of a folder that is a source of any kind, those that can be decoded.

    Raises:
        UserError: there is none.
    """
    root = Folder(source)
    kind = kind_of_folder(root)
    files = islice((file for file in files_in(root) if kind_of(file.name) == kind), PICTURES)
    tables = list(islice(inputs_in_order(root, files), PICTURES))
    contents: list[bytes] = []
    reader = InputReader(source)
    for table in tables:
        for content in reader.read(table.slice(0, PICTURES - len(contents))):
            if isinstance(content, bytes) and _is_image(content):
                contents.append(content)
    if not contents:
        raise UserError(f"none of the first images of {source} can be used", code="no-usable-image", field="source")
    return contents


def _is_image(content: bytes) -> bool:
    try:
        decode_reduced(content, None)
    except ImageRejected:
        return False
    return True


def products_per_s(dim: int) -> float:
    """Return how many products a thread multiplies and adds in a second as it assigns rows of D dimensions to lists."""
    lists, rows = random_rows(LISTS, dim), random_rows(BLOCK, dim)
    index = faiss.IndexFlatIP(dim)
    index.add(lists)

    def assign() -> int:
        index.search(rows, 1)
        return LISTS * BLOCK * dim

    return rate(assign)


def shard_rates(vlm_dim: int, vision_dim: int, products: float) -> tuple[float, float]:
    """Return how many values of a shard a thread reads, encodes, tunes, writes and checks in a second, and the seconds
    that any shard takes: of a small shard and a larger one, without assigning their rows to lists.
    """
    dim, spent = vlm_dim + vision_dim, []
    for rows in (SHARD_ROWS // 5, SHARD_ROWS):
        lists = rows // 200
        spent.append(_seconds_of_shard(rows, lists, vlm_dim, vision_dim) - rows * lists * dim / products)
    small, large = spent
    # At least a part of the time is the rows', whatever else the machine did meanwhile.
    of_rows = max(large - small, 0.1 * large)
    rate = (SHARD_ROWS - SHARD_ROWS // 5) * dim / of_rows
    return rate, max(0.0, large - SHARD_ROWS * dim / rate)


def _seconds_of_shard(rows: int, lists: int, vlm_dim: int, vision_dim: int) -> float:
    ids = [f"{number:025d}" for number in range(rows)]
    halves = (random_rows(rows, dim, seed).astype(np.float16) for seed, dim in enumerate((vlm_dim, vision_dim)))
    table = pa.table({"id": ids} | dict(zip(("vlm", "vision"), map(fixed_size_list, halves), strict=True)))
    pieces = [table.slice(start, BLOCK) for start in range(0, rows, BLOCK)]
    spent: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="mindseye-calibration-") as folder:
        place = Path(folder)
        build_shard(
            place, pieces, pieces, vlm_dim=vlm_dim, factory=f"IVF{lists},SQ8", trained=None, share=0.01, spent=spent
        )
        with timed(spent, "recall"):
            shard = Shard.open(place)
            shard.exact(shard.vectors[:RECALL_QUERIES].astype(np.float32), 100)
    return sum(seconds for step, seconds in spent.items() if step != "train")


def random_rows(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Return unit rows, float32 (N, D)."""
    return unit(np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32))


def _share(gpus: float) -> float:
    """Of a GPU that a replica has for itself in the measurement, and shares in the service."""
    return gpus if 0 < gpus < 1 else 1.0


@contextmanager
def _threads(cpus: float) -> Iterator[None]:
    """As many threads of PyTorch as Ray gives a worker of so many CPUs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(cpus)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
