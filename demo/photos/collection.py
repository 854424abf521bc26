"""Real photographs at 32 × 32 pixels, from Parquet files of public data sets: what models learn from, what they are
measured on, and what is between.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from demo.training_data import TrainingSet

SIDE = 32
CIFAR, TINY, CALTECH = "cifar10_train_10k.parquet", "tiny_imagenet_val.parquet", "caltech101_25pc.parquet"
"""Files with columns ``image`` (an encoded picture) and ``label``. The test split of CIFAR-10 is not read here."""
HELD_OUT = {CIFAR: 0.0, TINY: 0.3, CALTECH: 0.2}
"""The share of each label's photos that no model learns from."""


class Photos(NamedTuple):
    """N photos, uint8 (N, 32, 32, 3), and the label (N,) of each."""

    images_NHWC: np.ndarray
    labels: list[str]

    def take(self, chosen: np.ndarray) -> Photos:
        return Photos(self.images_NHWC[chosen], [self.labels[i] for i in chosen])

    def plus(self, other: Photos) -> Photos:
        return Photos(np.concatenate([self.images_NHWC, other.images_NHWC]), self.labels + other.labels)


class Collection(NamedTuple):
    """Three disjoint sets of photos.

    Attributes:
        models: VLM, vision encoder and generator learn from these; every label occurs.
        fitting: the aggregator and λ are fitted on these: half of Tiny ImageNet's labels, and Caltech's.
        unseen: only ever evaluated: the other labels of Tiny ImageNet. The models know these labels, not these photos.
    """

    models: Photos
    fitting: Photos
    unseen: Photos


def collect(data: Path) -> Collection:
    """Read the files in the folder ``data`` and divide their photos, always in the same way."""
    rng = np.random.default_rng(0)
    kept, held = {}, {}
    for file, share in HELD_OUT.items():
        photos = read(data / file)
        out = _held_out(photos.labels, share, rng)
        kept[file], held[file] = photos.take(np.flatnonzero(~out)), photos.take(np.flatnonzero(out))
    tiny = sorted(set(held[TINY].labels))
    evaluated = {tiny[i] for i in rng.permutation(len(tiny))[: len(tiny) // 2]}
    spare = held[TINY].plus(held[CALTECH])
    # A label that is evaluated is not fitted on, whichever set its photos are of.
    for_fitting = [label not in evaluated and label not in set(kept[CIFAR].labels) for label in spare.labels]
    unseen = [label in evaluated for label in held[TINY].labels]
    return Collection(
        kept[CIFAR].plus(kept[TINY]).plus(kept[CALTECH]),
        spare.take(np.flatnonzero(for_fitting)),
        held[TINY].take(np.flatnonzero(unseen)),
    )


def read(file: Path) -> Photos:
    """Read all photos of a file, each cut to a square at its middle and reduced to 32 × 32 pixels."""
    table = pq.read_table(file, columns=["image", "label"])
    images = np.stack([_reduced(data) for data in table["image"].to_pylist()])
    return Photos(images, table["label"].to_pylist())


def _reduced(data: bytes) -> np.ndarray:
    with Image.open(BytesIO(data)) as image:
        return np.asarray(ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC))


def _held_out(labels: list[str], share: float, rng: np.random.Generator) -> np.ndarray:
    """Return which photos (N,) are held out, the same share of each label."""
    of = np.array(labels)
    out = np.zeros(len(of), bool)
    for label in sorted(set(labels)):
        rows = rng.permutation(np.flatnonzero(of == label))
        out[rows[: round(share * len(rows))]] = True
    return out


def training_set(photos: Photos, *, mirrored: bool = False) -> TrainingSet[str]:
    """Return the photos as what models learn from; with their mirror images, if that is asked for."""
    categories = sorted(set(photos.labels))
    number = {label: i for i, label in enumerate(categories)}
    category_N = np.array([number[label] for label in photos.labels])
    if not mirrored:
        return TrainingSet(photos.images_NHWC, category_N, categories)
    both = np.concatenate([photos.images_NHWC, photos.images_NHWC[:, :, ::-1]])
    return TrainingSet(both, np.tile(category_N, 2), categories)


def write_photos(photos: Photos, folder: Path) -> None:
    """Write ``photos.parquet``, which ``mindseye index`` reads, and ``names.txt``, which ``mindseye queries`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    table = {
        "image": [_png(image) for image in photos.images_NHWC],
        "label": photos.labels,
        "path": [f"{label}/{i:05d}.png" for i, label in enumerate(photos.labels)],
    }
    pq.write_table(pa.table(table), folder / "photos.parquet")
    (folder / "names.txt").write_text("\n".join(sorted(set(photos.labels))) + "\n", encoding="utf-8")


def _png(image: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
