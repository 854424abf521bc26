"""What imagining brings on real photographs: ``.venv/bin/python -m benchmarks.photos TARGET NAME [DATA]``.

TARGET is that of ``demo.photos.train``; TARGET/NAME holds ``gallery`` and ``queries``, made by mindseye's own commands
(docs/photos.md). Prints mAP by text alone, by the mean of the images, by both at λ = 0.5, at the λ that is best on the
fitting photos, and by the aggregator, each with its paired gain. Of few queries an interval over queries alone says
little, so the rows of the gallery are drawn anew as well; of many it does, and their labels have few rows to draw from.

With DATA, the folder of the Parquet files, also what bounds it: as many real training photos in the place of the
imagined ones, the imagined ones through the VLM's own image tower, and how many of them are taken for what they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from cluster.loading import load_query_encoder
from cluster.profile import load_profile
from cluster.session import session
from demo.photos.collection import collect
from demo.run import choose_weight
from retrieval.artifacts import Gallery, QuerySet, TrainedAggregator
from retrieval.artifacts.columns import matrix
from retrieval.artifacts.queryset import text_vectors, vision_vectors
from retrieval.fusion import fused_query, products, unit
from retrieval.metrics import average_precision
from retrieval.query import QueryEncoder, pool

DRAWS = 1000
FEW = 20
"""Queries up to which each is shown, and rows are drawn anew."""


class Rows(NamedTuple):
    """A gallery: both vectors of N photos, and their labels."""

    vlm_ND1: np.ndarray
    vision_ND2: np.ndarray
    label_N: np.ndarray


def rows_of(gallery: Gallery) -> Rows:
    table = pa.concat_tables(gallery.tables(["vlm", "vision", "label"]))
    return Rows(matrix(table["vlm"]), matrix(table["vision"]), np.array(table["label"].to_pylist()))


def hits(joint_QD: np.ndarray, rows: Rows, label_Q: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rank all photos; return their order (Q, N), and which in that order are relevant (Q, N)."""
    scores_QN = products(joint_QD, np.concatenate([rows.vlm_ND1, rows.vision_ND2], axis=1))
    order_QN = np.argsort(-scores_QN, axis=1, kind="stable")
    return order_QN, rows.label_N[order_QN] == np.array(label_Q)[:, None]


def precision(is_hit_N: np.ndarray) -> float:
    return average_precision(np.flatnonzero(is_hit_N), int(is_hit_N.sum()))


class Drawn(NamedTuple):
    """AP of M methods and Q queries: as measured (M, Q), and mAP when rows and queries are drawn anew (M, DRAWS)."""

    ap_MQ: np.ndarray
    map_MB: np.ndarray

    def interval(self, method: int, over: int | None = None) -> str:
        other, drawn = (0.0, 0.0) if over is None else (self.ap_MQ[over].mean(), self.map_MB[over])
        low, high = np.quantile(self.map_MB[method] - drawn, [0.025, 0.975])
        return f"{self.ap_MQ[method].mean() - other:+.3f} [{low:+.3f}, {high:+.3f}]".replace("+", "+" if other else "")


def draw(methods: Mapping[str, np.ndarray], rows: Rows, label_Q: list[str]) -> Drawn:
    """Measure every method; then on ``DRAWS`` sets of queries that are drawn from these with replacement, the same ones
    for each method; if there are few, on galleries that are drawn so, too. A row that is drawn twice is two rows.
    """
    ranked = [hits(joint_QD, rows, label_Q) for joint_QD in methods.values()]
    ap_MQ = np.array([[precision(is_hit_N) for is_hit_N in is_hit_QN] for _, is_hit_QN in ranked])
    rng, count = np.random.default_rng(0), len(rows.label_N)
    map_MB = np.zeros((len(methods), DRAWS))
    for b in range(DRAWS):
        drawn_N = rng.integers(count, size=count) if len(label_Q) <= FEW else np.arange(count)
        times_N = np.bincount(drawn_N, minlength=count)
        for q in rng.integers(len(label_Q), size=len(label_Q)):
            for m, (order_QN, is_hit_QN) in enumerate(ranked):
                map_MB[m, b] += precision(np.repeat(is_hit_QN[q], times_N[order_QN[q]])) / len(label_Q)
    return Drawn(ap_MQ, map_MB)


def real_photos(data: Path, encoder: QueryEncoder, label_Q: list[str], images: int) -> np.ndarray:
    """Return the vectors (Q, images, D2) of training photos of each label."""
    photos, rng = collect(data).models, np.random.default_rng(0)
    labels = np.array(photos.labels)
    chosen_Q = [rng.choice(np.flatnonzero(labels == label), images, replace=False) for label in label_Q]
    pictures = [Image.fromarray(photos.images_NHWC[i]) for chosen in chosen_Q for i in chosen]
    vision = np.concatenate([encoder.picture_vectors(pictures[i : i + 256])[1] for i in range(0, len(pictures), 256)])
    return vision.reshape(len(label_Q), images, -1)


def print_bounds(data: Path, encoder: QueryEncoder, queries: pa.Table, rows: Rows, weight: float) -> None:
    """Print what the method would do with other images and another encoder of them."""
    text_QD1, (features_QKD2, mask_QK) = text_vectors(queries), vision_vectors(queries)
    label_Q = queries["label"].to_pylist()
    real_QKD2 = real_photos(data, encoder, label_Q, features_QKD2.shape[1])
    real_QD2 = pool(real_QKD2, np.ones_like(mask_QK))
    pictures = [
        [Image.open(BytesIO(image)).convert("RGB") for image in each] for each in queries["thumbnails"].to_pylist()
    ]
    seen_QD1 = unit(np.stack([encoder.picture_vectors(each)[0].mean(axis=0) for each in pictures]))
    nothing = np.zeros_like(real_QD2)
    found = {
        "real photos, mean": fused_query(text_QD1, real_QD2, 1.0),
        f"real photos, λ = {weight}": fused_query(text_QD1, real_QD2, weight),
        "real photos, λ = 0.5": fused_query(text_QD1, real_QD2, 0.5),
        "imagined, by the VLM's image tower": fused_query(seen_QD1, nothing, 0.0),
        "text and those": fused_query(unit(unit(text_QD1) + seen_QD1), nothing, 0.0),
    }
    for name, joint_QD in found.items():
        print(f"{name}: {np.mean([precision(each) for each in hits(joint_QD, rows, label_Q)[1]]):.3f}")
    centre_LD2 = unit(real_QKD2.mean(axis=1))
    nearest_QK = np.argmax(features_QKD2 @ centre_LD2.T, axis=2)
    right = nearest_QK == np.arange(len(label_Q))[:, None]
    print(f"imagined images nearest to the real photos of their own label: {right[mask_QK].mean():.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("name")
    parser.add_argument("data", type=Path, nargs="?")
    given = parser.parse_args()
    queries = QuerySet.open(given.target / given.name / "queries").table()
    rows = rows_of(Gallery.open(given.target / given.name / "gallery"))
    aggregator = TrainedAggregator.open(given.target / "aggregator")
    fitting = given.target / "fitting"
    with session("none"):
        weight = choose_weight(Gallery.open(fitting / "gallery"), QuerySet.open(fitting / "queries"))

    text_QD1, (features_QKD2, mask_QK) = text_vectors(queries), vision_vectors(queries)
    mean_QD2, learned = pool(features_QKD2, mask_QK), aggregator.manifest.weight
    pooled_QD2 = pool(features_QKD2, mask_QK, aggregator.network())
    methods = {
        "text": fused_query(text_QD1, mean_QD2, 0.0),
        "image mean": fused_query(text_QD1, mean_QD2, 1.0),
        "joint, λ = 0.5": fused_query(text_QD1, mean_QD2, 0.5),
        f"fixed, λ = {weight}": fused_query(text_QD1, mean_QD2, weight),
        f"aggregator, λ = {learned:.2f}": fused_query(text_QD1, pooled_QD2, learned),
    }
    label_Q = queries["label"].to_pylist()
    drawn = draw(methods, rows, label_Q)
    print(f"{len(label_Q)} queries, {len(rows.label_N):,} photos\n")
    print("| method | mAP | over text | over joint |\n| --- | --- | --- | --- |")
    for m, name in enumerate(methods):
        gains = [drawn.interval(m, over) if m != over else "" for over in (0, 2)]
        print(f"| {name} | {drawn.interval(m)} | {' | '.join(gains)} |")
    if len(label_Q) <= FEW:
        print(f"\n| | {' | '.join(label_Q)} |\n| --- |{' --- |' * len(label_Q)}")
        for name, ap_Q in zip(methods, drawn.ap_MQ, strict=True):
            print(f"| {name} | {' | '.join(f'{ap:.3f}' for ap in ap_Q)} |")
    print("\nmean of the images at λ = 0, 0.1 … 1, not used to choose it:")
    for step in range(11):
        joint_QD = fused_query(text_QD1, mean_QD2, step / 10)
        print(f"{np.mean([precision(each) for each in hits(joint_QD, rows, label_Q)[1]]):.3f}", end=" ")
    print()
    if given.data:
        print_bounds(given.data, load_query_encoder(load_profile(given.target / "profile.yaml")), queries, rows, weight)


if __name__ == "__main__":
    main()
