"""What evidence for and against is worth, on the demo's world.

    make demo                                        # leaves the galleries that this takes
    .venv/bin/python -m benchmarks.evidence [--demo demo-out]

Against: a shape is wanted ("star") and a colour is not ("red"), for each pair that a gallery has with and without. The
weight is chosen on fitting categories, and so is how much more imagined images of the colour weigh, beside other ways
to keep it out; the figures are of unseen ones, beside the same wish in words ("star that is not red"). For: a name, an
image of its category, and both; that image is left out of what is to be found.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cluster.loading import load_query_encoder
from retrieval.artifacts import Gallery, QuerySet
from retrieval.artifacts.columns import matrix
from retrieval.artifacts.queryset import text_vectors, vision_vectors
from retrieval.evidence import AGAINST, IMAGINED_AGAINST, summed
from retrieval.fusion import fused_query, products, unit
from retrieval.metrics import average_precision, bootstrap_mean, paired_bootstrap
from retrieval.nearest import NEAREST, visual_half
from retrieval.query import QueryEncoder, pool
from retrieval.words import Dictionary

WEIGHTS = (-0.1, -0.2, -0.3, -0.4, -0.5, -0.7, -1.0)
FACTORS = (0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
KEPT = 4
LAM = 0.5
TOP = 50
PHOTOS = 288
COLOUR, SHAPE = 0, 2

Query = Callable[[str, str], tuple[np.ndarray, np.ndarray]]
"""From a shape that is wanted and a colour that is not to the sums of both halves, (D1,) and (D2,), of any length."""


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

    def scores(self, vlm_D1: np.ndarray, vision_D2: np.ndarray, lam: float) -> np.ndarray:
        """The score of each row for the sums of both halves."""
        query_1D = fused_query(unit(vlm_D1), unit(vision_D2), lam)
        return products(query_1D, np.hstack([self.vlm_ND1, self.vision_ND2]))[0]

    def pairs(self, wanted: int = SHAPE, unwanted: int = COLOUR) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
        """Values of two attributes, and which rows have the first without the second, and which the second."""
        wanted_N, unwanted_N = self.attributes_N3[:, wanted], self.attributes_N3[:, unwanted]
        for value in np.unique(wanted_N):
            for other in np.unique(unwanted_N):
                there, not_so = wanted_N == value, unwanted_N == other
                if (there & not_so).any() and (there & ~not_so).any():
                    yield value, other, there & ~not_so, not_so


class Words:
    """Texts, each encoded and imagined once, and those of query sets; ``known`` are t and g_1 … g_K of each."""

    def __init__(self, encoder: QueryEncoder, *imagined: QuerySet) -> None:
        self.encoder = encoder
        self.known: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for queries in imagined:
            table = queries.table()
            images, mask = vision_vectors(table)
            assert mask.all(), "the demo's generator rejects no image"
            of_texts = zip(text_vectors(table), images, strict=True)
            self.known |= dict(zip(table["text"].to_pylist(), of_texts, strict=True))

    def of(self, *texts: str) -> tuple[np.ndarray, np.ndarray]:
        """Return t and v of each text, float32 (E, D1) and (E, D2)."""
        vlm, images = zip(*self.images_of(*texts), strict=True)
        return np.stack(vlm), np.stack([pool(each[None], np.ones((1, len(each)), bool))[0] for each in images])

    def images_of(self, *texts: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return t and g_1 … g_K of each text, float32 (D1,) and (K, D2)."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        for query in self.encoder.encode(new, 8) if new else ():
            self.known[query.text] = query.vlm_D1, query.vision_KD2
        return [self.known[text] for text in texts]


def precision(scores_N: np.ndarray, positive_N: np.ndarray) -> float:
    order = np.argsort(-scores_N, kind="stable")
    return average_precision(np.flatnonzero(positive_N[order]), int(positive_N.sum()))


def against(
    world: World, query: Query, lam: float, wanted: int = SHAPE, unwanted: int = COLOUR
) -> tuple[np.ndarray, np.ndarray]:
    """AP, and the share of what is not wanted among the first, of each pair."""
    measured = []
    for value, other, relevant_N, unwanted_N in world.pairs(wanted, unwanted):
        scores_N = world.scores(*query(value, other), lam)
        first = np.argsort(-scores_N, kind="stable")[:TOP]
        measured.append((precision(scores_N, relevant_N), unwanted_N[first].mean()))
    values = np.array(measured)
    return values[:, 0], values[:, 1]


def signed(words: Words, weight: float = AGAINST, factor: float = IMAGINED_AGAINST) -> Query:
    """The colour as evidence of that weight; its images weigh so much more."""

    def query(shape: str, colour: str) -> tuple[np.ndarray, np.ndarray]:
        vlm, vision = words.of(shape, colour)
        return vlm[0] + weight * vlm[1], vision[0] + weight * factor * vision[1]

    return query


def said(words: Words) -> Query:
    """The same wish in words."""
    return lambda shape, colour: tuple(half[0] for half in words.of(f"{shape} that is not {colour}"))


def beside_names(world: World, words: Words, query: Query) -> np.ndarray:
    """AP of names beside a value of each attribute that is not theirs: of what nobody would have found."""
    found = []
    for name in np.unique([" ".join(row) for row in world.attributes_N3]):
        values = name.split()
        relevant_N = (world.attributes_N3 == values).all(axis=1)
        for attribute, value in enumerate(values):
            other = next(one for one in np.unique(world.attributes_N3[:, attribute]) if one != value)
            found.append(precision(world.scores(*query(name, other), LAM), relevant_N))
    return np.array(found)


def other_ways(
    world: World, words: Words, dictionary: Dictionary, factor: float, aspect: str = "colour"
) -> Iterator[tuple[str, Query]]:
    """Other ways to keep the colour out of the visual half, at one weight."""
    colours = dictionary.members(aspect)
    means = [values[colours].mean(axis=0) for values in (dictionary.vlm_WD1, dictionary.vision_WD2)]
    spans = [_span(values[colours]) for values in (dictionary.vlm_WD1, dictionary.vision_WD2)]
    joint_ND = np.hstack([world.vlm_ND1, world.vision_ND2])
    ours, weight = signed(words), AGAINST * factor

    def rejected(shape: str, colour: str) -> tuple[np.ndarray, np.ndarray]:
        _, vision = words.of(shape, colour)
        return ours(shape, colour)[0], vision[0] - (vision[0] @ vision[1]) * vision[1] + weight * vision[1]

    def contrasted(shape: str, colour: str) -> tuple[np.ndarray, np.ndarray]:
        vlm, vision = words.of(shape, colour)
        return vlm[0] + AGAINST * (vlm[1] - means[0]), vision[0] + weight * (vision[1] - means[1])

    def least_like(shape: str, colour: str) -> tuple[np.ndarray, np.ndarray]:
        [(_, images_KD2)], (_, [unwanted_D2]) = words.images_of(shape), words.of(colour)
        kept = images_KD2[np.argsort(images_KD2 @ unwanted_D2, kind="stable")[:KEPT]].mean(axis=0)
        return ours(shape, colour)[0], unit(kept) + weight * unwanted_D2

    def by_real_images(shape: str, colour: str) -> tuple[np.ndarray, np.ndarray]:
        vlm, vision = words.of(shape, colour)
        by_text = products(fused_query(vlm[1], np.zeros_like(vision[1]), 0.0), joint_ND)[0]
        best = np.argsort(-by_text, kind="stable")[:NEAREST]
        return ours(shape, colour)[0], vision[0] + weight * visual_half(world.vision_ND2[best].astype(np.float16))

    def ignored(shape: str, colour: str) -> tuple[np.ndarray, np.ndarray]:
        vlm, vision = (half - half @ span.T @ span for half, span in zip(words.of(shape), spans, strict=True))
        unwanted = words.of(colour)
        return vlm[0] + AGAINST * unwanted[0][0], vision[0] + weight * unwanted[1][0]

    yield "the part along the colour taken out first", rejected
    yield f"the {KEPT} of 8 images least like the colour", least_like
    yield "the colour less the mean of all colours", contrasted
    yield "real images nearest to the colour's text", by_real_images
    yield "colour ignored in what is wanted", ignored


def _span(values_WD: np.ndarray) -> np.ndarray:
    _, _, rows = np.linalg.svd(values_WD - values_WD.mean(axis=0), full_matrices=False)
    return rows[: len(values_WD) - 1]


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
            ones = np.ones(len(pieces))
            scores_N = world.scores(summed(ones, vlm), summed(ones, vision), lam)
            scores_N[row] = -np.inf
            found[kind].append(precision(scores_N, relevant_N))
    return {kind: np.array(values) for kind, values in found.items()}


def choose(fitting: World, words: Words, dictionary: Dictionary) -> None:
    def line(title: str, query: Query, lam: float = LAM) -> None:
        precisions, unwanted = against(fitting, query, lam)
        print(f"| {title} | {precisions.mean():.4f} | {unwanted.mean():.4f} |", flush=True)

    print(f"fitting: | | AP | unwanted in the first {TOP} |")
    for lam in (0.0, LAM):
        for weight in (0.0, *WEIGHTS):
            line(f"λ = {lam:g}, weight {weight:g}, factor 1", signed(words, weight, 1.0), lam)
    for factor in FACTORS:
        line(f"weight {AGAINST:g}, factor {factor:g}", signed(words, factor=factor))
    for factor in (1.0, 2.0, IMAGINED_AGAINST):
        for title, query in other_ways(fitting, words, dictionary, factor):
            line(f"{title}, factor {factor:g}", query)
    print("fitting, beside: | | a colour without a shape, AP | names less what they have not, AP |")
    [*_, (title, ignored)] = other_ways(fitting, words, dictionary, 1.0)
    [*_, (_, shapes_ignored)] = other_ways(fitting, words, dictionary, 1.0, "shape")
    ways = {f"factor {factor:g}": (signed(words, factor=factor),) * 2 for factor in FACTORS}
    ways = {"nothing against": (signed(words, 0.0),) * 2, **ways, f"{title}, factor 1": (shapes_ignored, ignored)}
    for title, (without_shape, less) in ways.items():
        precisions, _ = against(fitting, without_shape, LAM, COLOUR, SHAPE)
        names = beside_names(fitting, words, less).mean()
        print(f"| {title} | {precisions.mean():.4f} | {names:.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"), help="the folder that mindseye demo has filled")
    demo = parser.parse_args().demo
    imagined = QuerySet.open(demo / "words")
    words = Words(load_query_encoder("tiny"), imagined, QuerySet.open(demo / "fitting/queries"))
    dictionary = Dictionary.of(imagined)
    fitting, unseen = World.of(demo / "fitting/gallery"), World.of(demo / "gallery")
    choose(fitting, words, dictionary)
    for lam in (0.0, LAM):
        alone, _ = against(unseen, signed(words, 0.0), lam)
        print(f"unseen, λ = {lam:g}, {len(alone)} pairs: | | AP | over the shape alone | unwanted in the first {TOP} |")
        ways = {
            "shape alone": signed(words, 0.0),
            "in words": said(words),
            f"weight {AGAINST:g}, factor 1": signed(words, factor=1.0),
            f"weight {AGAINST:g}, factor {IMAGINED_AGAINST:g}": signed(words),
        }
        for title, way in ways.items():
            precisions, unwanted = against(unseen, way, lam)
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
