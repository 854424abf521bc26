"""What the aggregator's attention is worth, by how many of a query's imagined images show something else.

    make demo                                        # leaves the vectors of the fitting categories that this takes
    .venv/bin/python -m benchmarks.attention [--demo demo-out]

Of each query's K images some are replaced by images of other queries. Attention starts as softmax(τ · cosine), which is
the plain mean at τ = 0 and looks at the most typical images alone for large τ; ``init: identity`` of a profile is
τ = 1/√D. mAP of the fused ranking on fitting categories, never on those of the evaluation.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch

from cluster.profile import load_profile
from retrieval.artifacts import Gallery, QuerySet
from training.dataset import load_examples
from training.examples import Examples
from training.learner import Learner

WRONG = (0, 1, 2, 3, 4)
SHARPNESS = (0.0, 1.0, 4.0, 8.0, 16.0)


def with_wrong_images(examples: Examples, wrong: int, seed: int = 0) -> tuple[Examples, np.ndarray]:
    """Replace ``wrong`` images of each query by images of other labels; return where, bool (Q, K), as well."""
    rng = np.random.default_rng(seed)
    images_QKD2 = examples.images_QKD2.copy()
    queries, count, _ = images_QKD2.shape
    replaced_QK = np.zeros((queries, count), bool)
    for query in range(queries):
        others = np.flatnonzero(examples.query_label_Q != examples.query_label_Q[query])
        for place, other in zip(rng.permutation(count)[:wrong], rng.permutation(others), strict=False):
            images_QKD2[query, place] = examples.images_QKD2[other, rng.integers(count)]
            replaced_QK[query, place] = True
    return dataclasses.replace(examples, images_QKD2=images_QKD2), replaced_QK


@torch.no_grad()
def sharpen(learner: Learner, sharpness: float) -> None:
    """Start each layer's attention as softmax(sharpness · cosine)."""
    for layer in learner.network.layers:
        scale = (sharpness * layer.embed_dim**0.5) ** 0.5
        for projection in layer.in_proj_weight.chunk(3)[:2]:
            projection.copy_(torch.eye(layer.embed_dim) * scale)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"), help="the folder that mindseye demo has filled")
    fitting = parser.parse_args().demo / "fitting"
    settings = load_profile("tiny").train
    gallery, queries = Gallery.open(fitting / "gallery"), QuerySet.open(fitting / "queries")
    examples, _ = load_examples(gallery, queries, rows_per_label=settings.rows_per_label, seed=0)
    images_QKD2 = examples.images_QKD2
    alike = np.einsum("qkd,qjd->qkj", images_QKD2, images_QKD2).mean()
    print(f"{len(images_QKD2)} queries, cosine of two images of one query: {alike:.3f}")
    print("| wrong of 8 | " + " | ".join(f"τ = {sharpness:g}" for sharpness in SHARPNESS) + " |")
    for wrong in WRONG:
        mixed, replaced_QK = with_wrong_images(examples, wrong)
        row = []
        for sharpness in SHARPNESS:
            learner = Learner(settings, images_QKD2.shape[2])
            sharpen(learner, sharpness)
            attention_QK = learner.network.eval().attention(torch.from_numpy(mixed.images_QKD2)).detach().numpy()
            share = f" ({attention_QK[replaced_QK].mean():.3f})" if wrong else ""
            row.append(f"{learner.validate(mixed):.4f}{share}")
        print(f"| {wrong} | " + " | ".join(row) + " |")
    print("mAP of the fused ranking (attention that a wrong image gets; 0.125 is that of the mean)")


if __name__ == "__main__":
    main()
