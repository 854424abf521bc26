"""What training the aggregator brings on unseen categories: ``.venv/bin/python -m benchmarks.accuracy``.

Trains on the seen categories of the demo's world over several seeds and numbers of layers, and measures on the gallery
and with the queries of the unseen ones: mAP by text alone, by the mean of the images, by both at a fixed λ, and by
trained aggregators, for K = 1 … 16 images. Needs the gallery that ``make demo`` leaves; what it makes itself stays in
``demo/work/accuracy``. Writes docs/ablations.json and docs/ablations.png and prints the tables of docs/training.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt

from cluster.loading import generator_settings, load_generator
from cluster.profile import Profile, load_profile
from cluster.session import session
from demo.collection import vocabulary
from demo.train_aggregator import seen_gallery, seen_queries
from demo.world import split
from pipelines.evaluate import Evaluation, evaluate
from pipelines.queries import build_queries
from retrieval.artifacts import MANIFEST, Gallery, QuerySet, TrainedAggregator
from retrieval.folder import Folder
from retrieval.metrics import Interval, paired_bootstrap
from retrieval.prompts import KINDS
from training.trainer import train

WORK = Path("demo/work")
IMAGES = (1, 2, 4, 8, 16)
FULL = 8
"""Images with which networks of every depth and every λ are measured."""
WEIGHTS = tuple(round(0.1 * i, 1) for i in range(1, 10))
FIXED = 0.5
"""λ of the mean, as chosen by ``make demo`` on fitting categories."""


def trained(profile: Profile, seed: int, layers: int) -> TrainedAggregator:
    """The aggregator of that seed and depth, trained if it is not there."""
    target = WORK / "accuracy" / f"seed-{seed}-layers-{layers}"
    if not (target / MANIFEST).exists():
        settings = profile.train.model_copy(update={"seed": seed, "layers": layers})
        profile = profile.model_copy(update={"train": settings})
        gallery, queries = seen_gallery(WORK / "aggregator", profile), seen_queries(WORK / "aggregator", profile)
        train(gallery, queries, target, profile, log=print)
    return TrainedAggregator.open(target)


def at_weight(aggregator: TrainedAggregator, weight: float) -> TrainedAggregator:
    """The same network with another λ than the learned one."""
    return TrainedAggregator(aggregator.folder, aggregator.manifest.model_copy(update={"weight": weight}))


def unseen_queries(profile: Profile) -> QuerySet:
    target = Folder(WORK / "accuracy" / "queries")
    if target.exists(MANIFEST):
        return QuerySet.open(target)
    return build_queries(vocabulary(split("unseen"), KINDS), target.uri, profile, images=max(IMAGES))


def mean_over(evaluation: Evaluation, systems: list[str], kind: str) -> np.ndarray:
    """Per-query AP of a kind, averaged over systems (seeds), (Q,)."""
    return np.mean([evaluation.values(system, kind) for system in systems], axis=0)


def shown(interval: Interval) -> str:
    return f"{interval.mean:+.4f} ({interval.low:+.4f} … {interval.high:+.4f})"


def seconds_an_image(profile: Profile) -> float:
    """Seconds of generation for one image on one core, in batches of the profile's size."""
    generator = load_generator(profile)
    batch = generator_settings(profile).batch
    generator.imagine(["warm up"], batch, batch=batch)
    start = time.perf_counter()
    generator.imagine(["yellow dotted fish"], 2 * batch, batch=batch)
    return (time.perf_counter() - start) / (2 * batch)


class Measurements(NamedTuple):
    """The networks that were measured, and the evaluations that they took part in."""

    networks: dict[str, TrainedAggregator]
    """By depth and seed: ``2 layers, seed 0``."""
    by_images: dict[int, Evaluation]
    """By the number of images used, with the networks of the profile's depth; with 8 images, all networks and λ."""

    def named(self, layers: int) -> list[str]:
        """The names of the networks of one depth, in the order of their seeds."""
        return [name for name in self.networks if name.startswith(f"{layers} ")]


def measurements(gallery: Gallery, profile: Profile, layers: Sequence[int], seeds: int) -> Measurements:
    """Train what is not there yet, and rank the gallery with every number of images, network and λ."""
    networks = {
        f"{depth} layers, seed {seed}": trained(profile, seed, depth) for depth in layers for seed in range(seeds)
    }
    measured = Measurements(networks, {})
    queries = unseen_queries(profile)
    chosen = {name: networks[name] for name in measured.named(profile.train.layers)}
    for images in IMAGES:
        if images != FULL:
            measured.by_images[images] = evaluate(gallery, queries, weight=FIXED, aggregators=chosen, images=images)
    first = next(iter(chosen.values()))
    measured.by_images[FULL] = evaluate(
        gallery,
        queries,
        weight=FIXED,
        aggregators=networks | {f"trained, λ = {weight}": at_weight(first, weight) for weight in WEIGHTS},
        extra={f"mean, λ = {weight}": weight for weight in WEIGHTS},
        images=FULL,
    )
    return measured


def by_kind(full: Evaluation, seeds: list[str]) -> dict[str, Any]:
    """Figures of each kind of query, and the paired gain of the trained networks over the mean and over text."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        row = {system: full.mean(system, kind).mean for system in ("text", "visual", "fused")}
        ours_Q = mean_over(full, seeds, kind)
        gain = paired_bootstrap(ours_Q, full.values("fused", kind))
        over_text = paired_bootstrap(ours_Q, full.values("text", kind))
        each = [round(full.mean(seed, kind).mean, 4) for seed in seeds]
        found[kind] = row | {
            "trained": float(ours_Q.mean()), "by seed": each, "gain": vars(gain), "over text": vars(over_text)
        }  # fmt: skip
        figures = " ".join(f"{name} {value:.4f}" for name, value in row.items())
        print(f"{kind:18} {figures} trained {ours_Q.mean():.4f} {each}", end="")
        print(f"  gain {shown(gain)}  over text {shown(over_text)}")
    return found


def by_images(evaluations: dict[int, Evaluation], seeds: list[str]) -> dict[int, Any]:
    """Figures of each number of images."""
    found = {}
    for images, evaluation in sorted(evaluations.items()):
        found[images] = {
            kind: {
                "visual": evaluation.mean("visual", kind).mean,
                "fused": evaluation.mean("fused", kind).mean,
                "trained": float(mean_over(evaluation, seeds, kind).mean()),
            }
            for kind in KINDS
        }
        rounded = {kind: {name: round(value, 4) for name, value in row.items()} for kind, row in found[images].items()}
        print(f"K = {images:2}", rounded)
    return found


def by_layers(measured: Measurements, layers: Sequence[int]) -> dict[int, Any]:
    """Figures of each depth of the network."""
    found = {}
    for depth in layers:
        systems = measured.named(depth)
        found[depth] = {kind: float(mean_over(measured.by_images[FULL], systems, kind).mean()) for kind in KINDS}
        print(f"{depth} layers", {kind: round(value, 4) for kind, value in found[depth].items()})
    return found


def by_weight(full: Evaluation, pooled: str) -> dict[float, Any]:
    """Figures of each λ, with images pooled as the ``mean`` or by the first ``trained`` network."""
    found = {}
    for weight in WEIGHTS:
        found[weight] = {kind: full.mean(f"{pooled}, λ = {weight}", kind).mean for kind in KINDS}
        print(f"{pooled}, λ = {weight}", {kind: round(value, 4) for kind, value in found[weight].items()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", default="demo-out/gallery")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    profile = load_profile("tiny")
    with session():
        measured = measurements(Gallery.open(arguments.gallery), profile, arguments.layers, arguments.seeds)
    full, seeds = measured.by_images[FULL], measured.named(profile.train.layers)
    print(f"\nK = {FULL}, {arguments.seeds} seeds of training; gain: paired, of trained over the mean at λ = {FIXED}")
    kinds = by_kind(full, seeds)
    print("λ learned:", {name: round(network.manifest.weight, 3) for name, network in measured.networks.items()})
    found = {
        "k": by_images(measured.by_images, seeds),
        "layers": by_layers(measured, arguments.layers),
        "kinds": kinds,
        "mean by weight": by_weight(full, "mean"),
        "trained by weight": by_weight(full, "trained"),
        "seconds an image": seconds_an_image(profile),
    }
    print(f"{found['seconds an image']:.3f} s an image on one core")
    (arguments.docs / "ablations.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(found, arguments.docs / "ablations.png")


def plot(found: dict[str, Any], file: Path) -> None:
    """Draw mAP by the time that generation takes, one panel for each kind of query."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), sharey=True)
    seconds = [images * found["seconds an image"] for images in IMAGES]
    for panel, kind in zip(panels, KINDS, strict=True):
        for system, colour in (("visual", "#5b8fd6"), ("fused", "#d9822b"), ("trained", "#3d9970")):
            panel.plot(
                seconds, [found["k"][images][kind][system] for images in IMAGES], marker=".", label=system, color=colour
            )
        panel.axhline(found["kinds"][kind]["text"], color="#8a8f98", linewidth=1, label="text")
        panel.set_xscale("log", base=2)
        panel.set_xticks(
            seconds, [f"{s:.2g}\nK = {images}" for s, images in zip(seconds, IMAGES, strict=True)], fontsize=8
        )
        panel.set_xlabel("seconds of generation on one core")
        panel.set_title(kind, loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mAP, unseen categories")
    panels[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
