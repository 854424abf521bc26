"""What real images in the place of imagined ones, other ways of fusing, and a second stage are worth.

    make demo                                        # leaves the galleries and queries that this takes
    .venv/bin/python -m benchmarks.second_stage [--demo demo-out]

Everything is chosen on fitting categories, 48 names and 48 descriptions, and measured on the unseen ones with paired
bootstrap intervals; λ is 0.5 and imagined images are averaged. The descriptions of the fitting categories are imagined
first, and kept in ``demo/work/fitting-descriptions.npz``. The last lines are the milliseconds of the second stage
alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cluster.loading import load_query_encoder
from demo.collection import vocabulary
from demo.world import split
from retrieval.artifacts import Gallery, QuerySet, TrainedAggregator
from retrieval.artifacts.columns import matrix
from retrieval.artifacts.queryset import text_vectors, vision_vectors
from retrieval.evidence import Encoded
from retrieval.fusion import fused_query, products, unit
from retrieval.metrics import average_precision, paired_bootstrap
from retrieval.nearest import NEAREST, visual_half
from retrieval.query import pool
from retrieval.rankings import RANK_OFFSET, Fuse, Scored, image_by_image, joint_queries, one_ranking
from retrieval.second_stage import BETA, DEPTH, NEIGHBOURS, neighbours

LAM = 0.5
COUNTS = (3, 5, 10, 15, 20, 30)
OFFSETS = (1, 10, 60, 200)
DEPTHS, KS, BETAS = (50, 100, 400), (5, 9, 20), (0.15, 0.3, 0.6, 1.0)
DESCRIPTIONS = Path("demo/work/fitting-descriptions.npz")


class World(NamedTuple):
    """A labelled gallery, and texts with their imagined images."""

    labels_N: np.ndarray
    ids_N: np.ndarray
    vlm_dim: int
    joint_ND: np.ndarray
    vlm_QD1: np.ndarray
    images_QKD2: np.ndarray
    pooled_QD2: np.ndarray
    kinds_Q: np.ndarray
    wanted_Q: np.ndarray

    @classmethod
    def of(cls, folder: Path, descriptions: dict[str, np.ndarray] | None = None) -> World:
        rows = pa.concat_tables(Gallery.open(folder / "gallery").tables(["id", "label", "vlm", "vision"])).sort_by("id")
        queries = QuerySet.open(folder / "queries").table()
        images, mask = vision_vectors(queries)
        assert mask.all(), "the demo's generator rejects no image"
        vlm, kinds, wanted = text_vectors(queries), queries["kind"].to_numpy(), queries["label"].to_numpy()
        if descriptions:
            vlm, images = (np.concatenate([a, descriptions[name]]) for a, name in ((vlm, "vlm"), (images, "images")))
            wanted = np.concatenate([wanted, descriptions["labels"]])
            kinds = np.concatenate([kinds, ["description"] * len(descriptions["labels"])])
        joint = np.hstack([matrix(rows["vlm"]), matrix(rows["vision"])]).astype(np.float16)
        pooled = pool(images, np.ones(images.shape[:2], bool))
        labels, ids = rows["label"].to_numpy(), rows["id"].to_numpy()
        return cls(labels, ids, vlm.shape[1], joint, vlm, images, pooled, kinds, wanted)

    def scores(self, visual_QD2: np.ndarray, lam: float) -> np.ndarray:
        return products(fused_query(self.vlm_QD1, visual_QD2, lam), self.joint_ND).astype(np.float32)

    def precisions(self, scores_QN: np.ndarray) -> np.ndarray:
        """AP of each query, of scores of the whole gallery."""
        return np.array([self.precision(q, np.argsort(-row, kind="stable")) for q, row in enumerate(scores_QN)])

    def precision(self, query: int, order: np.ndarray) -> float:
        """AP of one query, of the rows that it found in their order."""
        right_N = self.labels_N == self.wanted_Q[query]
        return average_precision(np.flatnonzero(right_N[order]), int(right_N.sum()))


def nearest(world: World, count: int, lam: float = LAM) -> np.ndarray:
    """AP of each text with the mean of its nearest real images."""
    by_text = world.scores(np.zeros_like(world.pooled_QD2), 0.0)
    best = np.argsort(-by_text, axis=1, kind="stable")[:, :count]
    near_QD2 = np.stack([visual_half(world.joint_ND[rows, world.vlm_dim :]) for rows in best])
    return world.precisions(world.scores(near_QD2, lam))


def fused_by(world: World, fuse: Fuse, lam: float = LAM, offset: int = RANK_OFFSET) -> np.ndarray:
    """AP of each text by several images, each list being the whole gallery."""
    found = []
    place = {name: number for number, name in enumerate(world.ids_N)}
    for q, images_KD2 in enumerate(world.images_QKD2):
        encoded = Encoded(np.ones(1), world.vlm_QD1[[q]], world.pooled_QD2[[q]])
        queries_VD = joint_queries(encoded, image_by_image(encoded, {0: images_KD2}), fuse, lam)
        scores_VN = products(queries_VD, world.joint_ND).astype(np.float32)
        orders = np.argsort(-scores_VN, axis=1, kind="stable")
        lists = [
            [Scored(world.ids_N[row], float(row_scores[row]), 0.0, float(row_scores[row])) for row in order]
            for row_scores, order in zip(scores_VN, orders, strict=True)
        ]
        ranking = one_ranking(lists, fuse, lam, len(world.ids_N), offset=offset)
        found.append(world.precision(q, np.array([place[row.id] for row in ranking])))
    return np.array(found)


def reranked(
    world: World, visual_QD2: np.ndarray, depth: int, *, count: int = NEIGHBOURS, beta: float = BETA, lam: float = LAM
) -> np.ndarray:
    """AP of each text after the second stage."""
    found = []
    for q, row_scores in enumerate(world.scores(visual_QD2, lam)):
        order = np.argsort(-row_scores, kind="stable")
        first = order[:depth]
        [query_D] = fused_query(world.vlm_QD1[q], visual_QD2[q], lam)
        again = neighbours(query_D, lam, world.joint_ND[first], world.vlm_dim, count=count, beta=beta)
        found.append(world.precision(q, np.concatenate([first[np.argsort(-again, kind="stable")], order[depth:]])))
    return np.array(found)


def fitting_descriptions(labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Vectors and images of a description of each fitting category; imagining them takes minutes."""
    if not DESCRIPTIONS.exists():
        entries = [entry for entry in vocabulary(split("fitting"), ["description"]) if entry.label in set(labels)]
        queries = load_query_encoder("tiny").encode([entry.text for entry in entries], 8)
        DESCRIPTIONS.parent.mkdir(parents=True, exist_ok=True)
        vlm, images = (np.stack([getattr(one, part) for one in queries]) for part in ("vlm_D1", "vision_KD2"))
        np.savez(DESCRIPTIONS, vlm=vlm, images=images, labels=np.array([entry.label for entry in entries]))
    with np.load(DESCRIPTIONS) as known:
        return dict(known)


def line(world: World, title: str, precisions: np.ndarray, *against: np.ndarray) -> None:
    """One line of a table: mAP by kind of text, and paired gains with their intervals."""
    cells = [title]
    for kind in ("name", "description"):
        of = world.kinds_Q == kind
        gains = (paired_bootstrap(precisions[of], other[of]) for other in against)
        shown = "".join(f", {gain.mean:+.4f} [{gain.low:.3f}, {gain.high:.3f}]" for gain in gains)
        cells.append(f"{precisions[of].mean():.4f}{shown}")
    print("| " + " | ".join(cells) + " |", flush=True)


def choose(world: World) -> None:
    text = world.precisions(world.scores(np.zeros_like(world.pooled_QD2), 0.0))
    fused = world.precisions(world.scores(world.pooled_QD2, LAM))
    print("fitting categories: | | name | description |")
    line(world, "text", text)
    line(world, "fused", fused)
    for count in COUNTS:
        line(world, f"text + {count} nearest", nearest(world, count))
    for offset in OFFSETS:
        line(world, f"rrf, k0 = {offset}", fused_by(world, "rrf", offset=offset))
    for depth in DEPTHS:
        for count in KS:
            for beta in BETAS:
                precisions = reranked(world, world.pooled_QD2, depth, count=count, beta=beta)
                line(world, f"M = {depth}, K = {count}, β = {beta:g}, mean {precisions.mean():.4f}", precisions)


def measure(world: World, aggregator: TrainedAggregator) -> None:
    text = world.precisions(world.scores(np.zeros_like(world.pooled_QD2), 0.0))
    fused = world.precisions(world.scores(world.pooled_QD2, LAM))
    print("unseen categories: | | name, gain over the row named | description |")
    line(world, "text", text)
    line(world, f"text + {NEAREST} nearest, over text", nearest(world, NEAREST), text)
    line(world, "fused: mean, over text", fused, text)
    line(world, "max, over mean", fused_by(world, "max"), fused)
    line(world, "rrf, over mean", fused_by(world, "rrf"), fused)
    line(world, "rrf of images alone, over mean", fused_by(world, "rrf", lam=1.0), fused)
    for depth in (DEPTH, 400):
        line(world, f"mean + neighbours, M = {depth}, over mean", reranked(world, world.pooled_QD2, depth), fused)
    lam = float(aggregator.manifest.weight)
    trained_QD2 = pool(world.images_QKD2, np.ones(world.images_QKD2.shape[:2], bool), aggregator.network())
    trained = world.precisions(world.scores(trained_QD2, lam))
    line(world, f"the demo's aggregator, λ = {lam:.2f}, over mean", trained, fused)
    line(world, "aggregator + neighbours, over it", reranked(world, trained_QD2, DEPTH, lam=lam), trained)
    line(world, "text + neighbours, over text", reranked(world, world.pooled_QD2, DEPTH, lam=0.0), text)
    best = np.argsort(-world.scores(world.pooled_QD2 * 0, 0.0), axis=1, kind="stable")[:, :NEAREST]
    near_QD2 = np.stack([visual_half(world.joint_ND[rows, world.vlm_dim :]) for rows in best])
    by_near = world.precisions(world.scores(near_QD2, LAM))
    line(world, "nearest + neighbours, over nearest", reranked(world, near_QD2, DEPTH), by_near)


def milliseconds(call: Callable[[], object]) -> float:
    """The median of twenty calls."""
    call()
    times = []
    for _ in range(20):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1000


def costs() -> Iterator[str]:
    rng = np.random.default_rng(0)
    for vlm_dim, vision_dim in ((128, 192), (768, 1024)):
        for depth in (100, 400):
            joint = np.hstack([unit(rng.normal(size=(depth, dim)) + 1) for dim in (vlm_dim, vision_dim)])
            joint_MD = joint.astype(np.float16)
            [query_D] = fused_query(joint[0, :vlm_dim], joint[0, vlm_dim:], LAM)
            ms = milliseconds(partial(neighbours, query_D, LAM, joint_MD, vlm_dim))
            yield f"| {vlm_dim} + {vision_dim} | {depth} | {ms:.1f} ms | {joint_MD.nbytes / 1e6:.2f} MB of vectors |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"), help="the folder that mindseye demo has filled")
    parser.add_argument("--costs", action="store_true", help="the milliseconds of the second stage alone")
    arguments = parser.parse_args()
    if not arguments.costs:
        labels = QuerySet.open(arguments.demo / "fitting/queries").table(["label", "id"])["label"].to_pylist()
        choose(World.of(arguments.demo / "fitting", fitting_descriptions(labels)))
        measure(World.of(arguments.demo), TrainedAggregator.open(arguments.demo / "aggregator"))
    for cost in costs():
        print(cost)


if __name__ == "__main__":
    main()
