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
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from cluster.loading import load_generator
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
    batch = profile.models.generator.batch
    generator.imagine(["warm up"], batch, batch=batch)
    start = time.perf_counter()
    generator.imagine(["yellow dotted fish"], 2 * batch, batch=batch)
    return (time.perf_counter() - start) / (2 * batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", default="demo-out/gallery")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    profile = load_profile("tiny")
    gallery = Gallery.open(arguments.gallery)
    depth = profile.train.layers
    with session():
        networks = {
            f"{layers} layers, seed {seed}": trained(profile, seed, layers)
            for layers in arguments.layers
            for seed in range(arguments.seeds)
        }
        queries = unseen_queries(profile)
        chosen = {name: network for name, network in networks.items() if name.startswith(f"{depth} ")}
        by_images = {
            images: evaluate(gallery, queries, weight=FIXED, aggregators=chosen, images=images)
            for images in IMAGES
            if images != 8
        }
        first = networks[f"{depth} layers, seed 0"]
        full = evaluate(
            gallery,
            queries,
            weight=FIXED,
            aggregators=networks | {f"trained, λ = {weight}": at_weight(first, weight) for weight in WEIGHTS},
            extra={f"mean, λ = {weight}": weight for weight in WEIGHTS},
            images=8,
        )
        by_images[8] = full
    seeds = list(chosen)
    found: dict = {"k": {}, "layers": {}, "kinds": {}}
    print(f"\nK = 8, {arguments.seeds} seeds of training; gain: paired, of trained over the mean at λ = {FIXED}")
    for kind in KINDS:
        row = {system: full.mean(system, kind).mean for system in ("text", "visual", "fused")}
        ours, mean = mean_over(full, seeds, kind), full.values("fused", kind)
        gain, over_text = paired_bootstrap(ours, mean), paired_bootstrap(ours, full.values("text", kind))
        each = [round(full.mean(seed, kind).mean, 4) for seed in seeds]
        found["kinds"][kind] = row | {
            "trained": float(ours.mean()), "by seed": each, "gain": vars(gain), "over text": vars(over_text)
        }  # fmt: skip
        figures = " ".join(f"{name} {value:.4f}" for name, value in row.items())
        print(f"{kind:18} {figures} trained {ours.mean():.4f} {each}  gain {shown(gain)}  over text {shown(over_text)}")
    print("λ learned:", {name: round(network.manifest.weight, 3) for name, network in networks.items()})
    for images, evaluation in sorted(by_images.items()):
        found["k"][images] = {
            kind: {
                "visual": evaluation.mean("visual", kind).mean,
                "fused": evaluation.mean("fused", kind).mean,
                "trained": float(mean_over(evaluation, seeds, kind).mean()),
            }
            for kind in KINDS
        }
        print(
            f"K = {images:2}",
            {kind: {n: round(v, 4) for n, v in row.items()} for kind, row in found["k"][images].items()},
        )
    for layers in arguments.layers:
        systems = [name for name in networks if name.startswith(f"{layers} ")]
        found["layers"][layers] = {kind: float(mean_over(full, systems, kind).mean()) for kind in KINDS}
        print(f"{layers} layers", {kind: round(value, 4) for kind, value in found["layers"][layers].items()})
    for pooled in ("mean", "trained"):
        found[f"{pooled} by weight"] = {}
        for weight in WEIGHTS:
            row = {kind: full.mean(f"{pooled}, λ = {weight}", kind).mean for kind in KINDS}
            found[f"{pooled} by weight"][weight] = row
            print(f"{pooled}, λ = {weight}", {kind: round(value, 4) for kind, value in row.items()})
    found["seconds an image"] = seconds_an_image(profile)
    print(f"{found['seconds an image']:.3f} s an image on one core")
    (arguments.docs / "ablations.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(found, arguments.docs / "ablations.png")


def plot(found: dict, file: Path) -> None:
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
