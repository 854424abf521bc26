"""What evidence for and against is worth, on the demo's world.

    make demo                                        # leaves the galleries that this takes
    .venv/bin/python -m benchmarks.evidence [--demo demo-out]

Against: a shape is wanted ("star") and a colour is not ("red"), for each pair that a gallery has with and without. The
weight is chosen on fitting categories; the figures are of unseen ones, beside the same wish in words ("star that is not
red"). For: a name, an image of its category, and both; that image is left out of what is to be found.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cluster.loading import load_query_encoder
from retrieval.artifacts import Gallery
from retrieval.artifacts.columns import matrix
from retrieval.evidence import AGAINST, summed
from retrieval.fusion import fused_query, products
from retrieval.metrics import average_precision, bootstrap_mean, paired_bootstrap
from retrieval.query import QueryEncoder, pool

WEIGHTS = (-0.1, -0.2, -0.3, -0.4, -0.5, -0.7, -1.0)
LAM = 0.5
TOP = 50
PHOTOS = 288


class World(NamedTuple):
    """A labelled gallery in memory: colour, pattern and shape of each row, and its vectors."""

    attributes_N3: np.ndarray
    vlm_ND1: np.ndarray
    vision_ND2: np.ndarray

    @classmethod
    def of(cls, folder: Path) -> World:
        table = pa.concat_tables(Gallery.open(folder).tables(["label", "vlm", "vision"]))
        attributes = np.array([label.split() for label in table["label"].to_pylist()])
        return cls(attributes, matrix(table["vlm"]), matrix(table["vision"]))

    def scores(self, vlm_ED1: np.ndarray, vision_ED2: np.ndarray, weights: Sequence[float], lam: float) -> np.ndarray:
        """The score of each row for a query made of pieces of evidence."""
        weights_E = np.array(weights)
        query_1D = fused_query(summed(weights_E, vlm_ED1), summed(weights_E, vision_ED2), lam)
        return products(query_1D, np.hstack([self.vlm_ND1, self.vision_ND2]))[0]

    def pairs(self) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
        """Shapes and colours, and which rows have the shape without the colour, and which the colour."""
        colours_N, shapes_N = self.attributes_N3[:, 0], self.attributes_N3[:, 2]
        for shape in np.unique(shapes_N):
            for colour in np.unique(colours_N):
                wanted, unwanted = shapes_N == shape, colours_N == colour
                if (wanted & unwanted).any() and (wanted & ~unwanted).any():
                    yield shape, colour, wanted & ~unwanted, unwanted


class Words:
    """Texts, each encoded and imagined once."""

    def __init__(self, encoder: QueryEncoder) -> None:
        self.encoder = encoder
        self.known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, *texts: str) -> tuple[np.ndarray, np.ndarray]:
        """Return t and v of each text, float32 (E, D1) and (E, D2)."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        for query in self.encoder.encode(new, 8) if new else ():
            mask = np.ones((1, len(query.vision_KD2)), bool)
            self.known[query.text] = (query.vlm_D1, pool(query.vision_KD2[None], mask)[0])
        vlm, vision = zip(*(self.known[text] for text in texts), strict=True)
        return np.stack(vlm), np.stack(vision)


def precision(scores_N: np.ndarray, positive_N: np.ndarray) -> float:
    order = np.argsort(-scores_N, kind="stable")
    return average_precision(np.flatnonzero(positive_N[order]), int(positive_N.sum()))


def against(world: World, words: Words, weight: float | None, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """AP, and the share of the unwanted colour among the first, of each pair; None says it in words."""
    measured = []
    for shape, colour, relevant_N, unwanted_N in world.pairs():
        texts = [shape, colour] if weight else [shape if weight == 0 else f"{shape} that is not {colour}"]
        scores_N = world.scores(*words.of(*texts), [1.0, weight] if weight else [1.0], lam)
        first = np.argsort(-scores_N, kind="stable")[:TOP]
        measured.append((precision(scores_N, relevant_N), unwanted_N[first].mean()))
    values = np.array(measured)
    return values[:, 0], values[:, 1]


def with_photos(world: World, words: Words, lam: float) -> dict[str, np.ndarray]:
    """AP of names, of one photo of their category, and of both, over photos drawn at random."""
    rows = np.random.default_rng(0).choice(len(world.attributes_N3), min(PHOTOS, len(world.attributes_N3)), False)
    found: dict[str, list[float]] = {"name": [], "photo": [], "both": []}
    for row in rows:
        name = " ".join(world.attributes_N3[row])
        of_name = words.of(name)
        photo = world.vlm_ND1[[row]].astype(np.float32), world.vision_ND2[[row]].astype(np.float32)
        relevant_N = (world.attributes_N3 == world.attributes_N3[row]).all(axis=1)
        relevant_N[row] = False
        for kind, pieces in {"name": [of_name], "photo": [photo], "both": [of_name, photo]}.items():
            vlm, vision = (np.concatenate(halves) for halves in zip(*pieces, strict=True))
            scores_N = world.scores(vlm, vision, [1.0] * len(pieces), lam)
            scores_N[row] = -np.inf
            found[kind].append(precision(scores_N, relevant_N))
    return {kind: np.array(values) for kind, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"), help="the folder that mindseye demo has filled")
    demo = parser.parse_args().demo
    words = Words(load_query_encoder("tiny"))
    for lam in (0.0, LAM):
        fitting = World.of(demo / "fitting/gallery")
        print(f"fitting, λ = {lam:g}: | weight | AP | unwanted in the first {TOP} |")
        for weight in (0.0, *WEIGHTS):
            precisions, unwanted = against(fitting, words, weight, lam)
            print(f"| {weight:g} | {precisions.mean():.3f} | {unwanted.mean():.3f} |")
    unseen = World.of(demo / "gallery")
    for lam in (0.0, LAM):
        alone, _ = against(unseen, words, 0.0, lam)
        print(f"unseen, λ = {lam:g}, {len(alone)} pairs: | | AP | over the shape alone | unwanted in the first {TOP} |")
        ways: dict[str, float | None] = {"shape alone": 0.0, "in words": None, f"weight {AGAINST:g}": AGAINST}
        for title, way in ways.items():
            precisions, unwanted = against(unseen, words, way, lam)
            gain = paired_bootstrap(precisions, alone)
            print(
                f"| {title} | {precisions.mean():.3f} | {gain.mean:+.3f} [{gain.low:.3f}, {gain.high:.3f}]"
                f" | {unwanted.mean():.4f} |"
            )
    for lam in (0.0, LAM, 1.0):
        found = with_photos(unseen, words, lam)
        gain = paired_bootstrap(found["both"], found["name"])
        means = " | ".join(f"{kind} {bootstrap_mean(values).mean:.3f}" for kind, values in found.items())
        print(f"unseen, λ = {lam:g}: {means} | both over name {gain.mean:+.3f} [{gain.low:.3f}, {gain.high:.3f}]")


if __name__ == "__main__":
    main()
