"""What words read from pictures are worth, and lenses, on the demo's world.

    make demo                                     # leaves the galleries, queries and words that this takes
    .venv/bin/python -m benchmarks.words [--demo demo-out] [--cache build/words]

Composed: a photo and one changed attribute ("+ blue"); what is to be found is the category that has the photo's other
attributes. Focus: a photo, and what has the same colour, pattern or shape; ignore: what has the same other two. Values
are chosen on fitting categories, figures are of unseen ones, with paired intervals. Three dictionaries: the demo's
single words; the names of categories that no photo is of, by their colour, pattern and shape; and these together with
the names of the unseen ones. Texts are imagined once and kept in --cache (about ten minutes for all of them).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.evidence import LAM, World, precision
from cluster.loading import load_query_encoder
from demo.grammar import Category
from demo.world import split
from retrieval.artifacts import QuerySet
from retrieval.artifacts.queryset import text_vectors, vision_vectors
from retrieval.bridge import Said, recomposed
from retrieval.evidence import Encoded, summed
from retrieval.fusion import unit
from retrieval.lens import lens
from retrieval.means import Means, centred
from retrieval.metrics import bootstrap_mean, paired_bootstrap
from retrieval.query import QueryEncoder, pool
from retrieval.words import NEIGHBOURS, VISION_SHARE, Dictionary, Value

ASPECTS = ("colour", "pattern", "shape")
IMAGES, NAME_IMAGES = 8, 4
PAIRS = {"fitting": 100, "unseen": 200}
PHOTOS = 120
STEPS = (1.0, 1.5, 2.0, 3.0, 5.0)
Halves = tuple[np.ndarray, np.ndarray]


class Texts:
    """Texts, each encoded and imagined once, and kept in a file."""

    def __init__(self, encoder: QueryEncoder, file: Path, images: int) -> None:
        self.encoder, self.file, self.images = encoder, file, images
        self.known: dict[str, Halves] = {}
        if file.exists():
            kept = np.load(file)
            self.known = dict(zip(kept["texts"].tolist(), zip(kept["vlm"], kept["vision"], strict=True), strict=True))

    def know(self, queries: QuerySet) -> None:
        """Take over the texts of a query set."""
        table = queries.table(["id", "text", "vlm", "vision"])
        pooled = pool(*vision_vectors(table))
        of_texts = zip(table["text"].to_pylist(), zip(text_vectors(table), pooled, strict=True), strict=True)
        self.known |= dict(of_texts)

    def of(self, texts: Sequence[str]) -> Halves:
        """Return t and v of each text, float32 (E, D1) and (E, D2)."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        for start in range(0, len(new), 32):
            for query in self.encoder.encode(new[start : start + 32], self.images):
                mask = np.ones((1, len(query.vision_KD2)), bool)
                self.known[query.text] = (query.vlm_D1, pool(query.vision_KD2[None], mask)[0])
            self._keep()
        vlm, vision = zip(*(self.known[text] for text in texts), strict=True)
        return np.stack(vlm), np.stack(vision)

    def _keep(self) -> None:
        vlm, vision = (np.stack(half) for half in zip(*self.known.values(), strict=True))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(self.file, texts=list(self.known), vlm=vlm, vision=vision)


class Pair(NamedTuple):
    """A photo, and the category that is to be found by it and one word."""

    row: int
    aspect: int
    word: str
    target: str


class Gallery:
    """A gallery in memory, and what photos of it are read by."""

    def __init__(self, folder: Path) -> None:
        self.world = World.of(folder)
        self.vlm_ND1 = self.world.vlm_ND1.astype(np.float32)
        self.vision_ND2 = self.world.vision_ND2.astype(np.float32)
        self.means = Means(self.vlm_ND1.mean(axis=0), self.vision_ND2.mean(axis=0))
        self.labels_N = np.array([" ".join(three) for three in self.world.attributes_N3])

    def scores(self, vlm_D1: np.ndarray, vision_D2: np.ndarray, lam: float = LAM) -> np.ndarray:
        return (1 - lam) * (self.vlm_ND1 @ vlm_D1) + lam * (self.vision_ND2 @ vision_D2)

    def photo(self, row: int) -> Halves:
        return unit(self.vlm_ND1[row]), unit(self.vision_ND2[row])

    def neighbours(self, row: int, count: int = NEIGHBOURS) -> Halves:
        near = np.argsort(-self.scores(*self.photo(row)), kind="stable")[:count]
        return self.world.vlm_ND1[near], self.world.vision_ND2[near]

    def pairs(self, count: int, seed: int = 0) -> list[Pair]:
        """Photos with one attribute changed to what the gallery has as well, drawn at random."""
        rng = np.random.default_rng(seed)
        there, drawn = sorted(set(self.labels_N)), []
        for row in rng.permutation(len(self.labels_N)):
            mine = self.world.attributes_N3[row]
            other = [np.array(label.split()) for label in there]
            near = [(int(np.flatnonzero(of != mine)[0]), of) for of in other if (of != mine).sum() == 1]
            if near:
                aspect, of = near[rng.integers(len(near))]
                drawn.append(Pair(int(row), aspect, str(of[aspect]), " ".join(of)))
            if len(drawn) == count:
                break
        return drawn

    def precision(self, scores_N: np.ndarray, row: int, relevant_N: np.ndarray) -> float:
        """AP without the photo itself."""
        others = np.arange(len(scores_N)) != row
        return precision(scores_N[others], relevant_N[others])


def of_names(names: Sequence[Category], texts: Texts) -> Dictionary:
    """A dictionary of category names: each of them says a colour, a pattern and a shape."""
    vlm, vision = texts.of([category.name for category in names])
    values, means = [], []
    for aspect in ASPECTS:
        said = np.array([getattr(category, aspect) for category in names])
        for value in sorted(set(said)):
            values.append(Value(aspect, value, ()))
            means.append((vlm[said == value].mean(axis=0), vision[said == value].mean(axis=0)))
    return Dictionary(ASPECTS, values, *(np.stack(half) for half in zip(*means, strict=True)))


def composed(
    gallery: Gallery, pairs: Sequence[Pair], words: Dictionary, texts: Texts, query: Callable[..., np.ndarray]
) -> np.ndarray:
    """AP of each pair, by a function from photo, word and what was read to scores."""
    found = []
    for pair in pairs:
        relevant_N = gallery.labels_N == pair.target
        found.append(gallery.precision(query(gallery, pair, words, texts), pair.row, relevant_N))
    return np.array(found)


def standardised(scores_N: np.ndarray) -> np.ndarray:
    return (scores_N - scores_N.mean()) / scores_N.std()


def photo_alone(gallery: Gallery, pair: Pair, words: Dictionary, texts: Texts) -> np.ndarray:
    return gallery.scores(*gallery.photo(pair.row))


def word_alone(gallery: Gallery, pair: Pair, words: Dictionary, texts: Texts) -> np.ndarray:
    return gallery.scores(*(half[0] for half in texts.of([pair.word])))


def summing(weight: float, *, mean: bool, imagined: bool) -> Callable[..., np.ndarray]:
    """Photo + weight · word in one sum, with or without the means of each."""

    def query(gallery: Gallery, pair: Pair, words: Dictionary, texts: Texts) -> np.ndarray:
        photo, (vlm, vision) = gallery.photo(pair.row), texts.of([pair.word])
        visual = np.stack([photo[1], vision[0] if imagined else np.zeros_like(vision[0])])
        encoded = Encoded(np.array([1.0, weight]), np.stack([photo[0], vlm[0]]), visual)
        if mean:
            encoded = centred(encoded, np.array([False, True]), words.means, gallery.means)
        return gallery.scores(summed(encoded.weights_E, encoded.vlm_ED1), summed(encoded.weights_E, encoded.vision_ED2))

    return query


def weimocir(alpha: float) -> Callable[..., np.ndarray]:
    """(1 - α)·image + α·text in the VLM's space (Wu et al. 2024), without its captions by a language model."""

    def query(gallery: Gallery, pair: Pair, words: Dictionary, texts: Texts) -> np.ndarray:
        photo, (vlm, _) = gallery.photo(pair.row), texts.of([pair.word])
        return gallery.vlm_ND1 @ unit((1 - alpha) * photo[0] + alpha * vlm[0])

    return query


def weicom(alpha: float) -> Callable[..., np.ndarray]:
    """(1 - α)·image similarity + α·text similarity, each standardised over the gallery (Psomas et al. 2024)."""

    def query(gallery: Gallery, pair: Pair, words: Dictionary, texts: Texts) -> np.ndarray:
        photo, (vlm, _) = gallery.photo(pair.row), texts.of([pair.word])
        by_image, by_text = gallery.vlm_ND1 @ photo[0], gallery.vlm_ND1 @ vlm[0]
        return (1 - alpha) * standardised(by_image) + alpha * standardised(by_text)

    return query


def pdv(weight: float) -> Callable[..., np.ndarray]:
    """Image + weight · (text with the change - text without it), by what was read (after PDV, Tursun et al. 2025)."""

    def query(gallery: Gallery, pair: Pair, words: Dictionary, texts: Texts) -> np.ndarray:
        photo = gallery.photo(pair.row)
        read = words.read(*gallery.neighbours(pair.row), gallery.means)
        before = " ".join(word.value for word in read)
        after = recomposed(words, read, [Said(pair.word, texts.of([pair.word])[0][0], True)]).text
        vlm, _ = texts.of([before, after])
        return gallery.scores(unit(photo[0] + weight * (vlm[1] - vlm[0])), photo[1])

    return query


def through_words(lam: float, photo_weight: float = 0.0) -> Callable[..., np.ndarray]:
    """What mindseye does: read, recomposed, imagined; with some of the photo in the sum as well, if wanted."""

    def query(gallery: Gallery, pair: Pair, words: Dictionary, texts: Texts) -> np.ndarray:
        read = words.read(*gallery.neighbours(pair.row), gallery.means)
        reading = recomposed(words, read, [Said(pair.word, texts.of([pair.word])[0][0], True)])
        vlm, vision = texts.of([reading.text])
        photo = gallery.photo(pair.row)
        weights = np.array([1.0, photo_weight])
        if not photo_weight:
            return gallery.scores(vlm[0], vision[0], lam)
        encoded = Encoded(weights, np.stack([vlm[0], photo[0]]), np.stack([vision[0], photo[1]]))
        encoded = centred(encoded, np.array([True, False]), words.means, gallery.means)
        return gallery.scores(summed(weights, encoded.vlm_ED1), summed(weights, encoded.vision_ED2), lam)

    return query


def oracle(gallery: Gallery, pair: Pair, words: Dictionary, texts: Texts) -> np.ndarray:
    return gallery.scores(*(half[0] for half in texts.of([pair.target])))


def read_right(gallery: Gallery, rows: Sequence[int], words: Dictionary, count: int) -> np.ndarray:
    """Which aspects of photos are read right, (rows, 3)."""
    read = [[word.value for word in words.read(*gallery.neighbours(row, count), gallery.means)] for row in rows]
    return np.array(read) == gallery.world.attributes_N3[rows]


def seen_through(gallery: Gallery, row: int, words: Dictionary, focus: str | None, ignore: Sequence[str]) -> np.ndarray:
    vlm, vision = gallery.photo(row)
    encoded = Encoded(np.ones(1), vlm[None], vision[None])
    if glass := lens(words, focus, ignore):
        encoded = glass(centred(encoded, np.zeros(1, bool), words.means, gallery.means, always=True))
    return gallery.scores(summed(encoded.weights_E, encoded.vlm_ED1), summed(encoded.weights_E, encoded.vision_ED2))


def through_lenses(gallery: Gallery, words: Dictionary, *, focus: bool, count: int) -> dict[str, Halves]:
    """AP of photos for what is the same in one aspect (focus) or the other two (ignore), without and with a lens."""
    rows = np.random.default_rng(1).choice(len(gallery.labels_N), count, False)
    found = {}
    for number, aspect in enumerate(ASPECTS):
        plain, lensed = [], []
        for row in rows.tolist():
            same_N3 = gallery.world.attributes_N3 == gallery.world.attributes_N3[row]
            relevant_N = same_N3[:, number] if focus else np.delete(same_N3, number, axis=1).all(axis=1)
            plain.append(gallery.precision(seen_through(gallery, row, words, None, ()), row, relevant_N))
            through = (aspect, ()) if focus else (None, (aspect,))
            lensed.append(gallery.precision(seen_through(gallery, row, words, *through), row, relevant_N))
        found[aspect] = (np.array(plain), np.array(lensed))
    return found


def best_of(make: Callable[[float], Callable[..., np.ndarray]], steps: Sequence[float], *given: Any) -> float:
    """The value with the highest mAP on fitting pairs."""
    gallery, pairs, words, texts = given
    means = {step: composed(gallery, pairs, words, texts, make(step)).mean() for step in steps}
    print("    " + ", ".join(f"{step:g}: {mean:.3f}" for step, mean in means.items()))
    return max(means, key=lambda step: means[step])


def report_composed(gallery: Gallery, dictionaries: Mapping[str, Dictionary], texts: Texts, ways: Mapping) -> None:
    pairs = gallery.pairs(PAIRS["unseen"])
    single = next(iter(dictionaries.values()))
    found = {title: composed(gallery, pairs, single, texts, way) for title, way in ways.items()}
    base = found["centred sum"]
    for title, words in dictionaries.items():
        for lam, what in ((0.0, "its text"), (LAM, "imagined and fused")):
            found[f"words ({title}), {what}"] = composed(gallery, pairs, words, texts, through_words(lam))
    found["the target's name, fused"] = composed(gallery, pairs, single, texts, oracle)
    print(f"| composed, {len(pairs)} unseen pairs | mAP | over the centred sum |")
    for title, values in found.items():
        mean, gain = bootstrap_mean(values), paired_bootstrap(values, base)
        print(
            f"| {title} | {mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}]"
            f" | {gain.mean:+.3f} [{gain.low:.3f}, {gain.high:.3f}] |"
        )


def report_lenses(gallery: Gallery, dictionaries: Mapping[str, Dictionary], where: str, count: int) -> None:
    for title, words in dictionaries.items():
        for focus in (True, False):
            for aspect, (plain, lensed) in through_lenses(gallery, words, focus=focus, count=count).items():
                gain = paired_bootstrap(lensed, plain)
                what = f"same {aspect}, focus" if focus else f"same but {aspect}, ignore"
                print(
                    f"| {where}, {title} | {what} | {plain.mean():.3f} | {lensed.mean():.3f}"
                    f" | {gain.mean:+.3f} [{gain.low:.3f}, {gain.high:.3f}] |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"), help="the folder that mindseye demo has filled")
    parser.add_argument("--cache", type=Path, default=Path("build/words"), help="where imagined texts are kept")
    asked = parser.parse_args()
    encoder = load_query_encoder("tiny")
    texts = Texts(encoder, asked.cache / "texts.npz", IMAGES)
    texts.know(QuerySet.open(asked.demo / "words"))
    texts.know(QuerySet.open(asked.demo / "fitting/queries"))
    texts.know(QuerySet.open(asked.demo / "queries"))
    names = Texts(encoder, asked.cache / "names.npz", NAME_IMAGES)
    single = Dictionary.of(QuerySet.open(asked.demo / "words"))
    others = of_names(split("models"), names)
    dictionaries = {"single words": single, "other names": others}
    fitting, unseen = Gallery(asked.demo / "fitting/gallery"), Gallery(asked.demo / "gallery")

    rows = np.random.default_rng(2).choice(len(fitting.labels_N), PHOTOS, False)
    for title, words in dictionaries.items():
        for count in (1, 5, 10, NEIGHBOURS, 50):
            right = read_right(fitting, rows.tolist(), words, count).mean(axis=0)
            print(f"fitting, {title}, {count} neighbours read right: " + ", ".join(f"{share:.3f}" for share in right))
        for words.vision_share in (0.0, 0.3, 0.5, 0.7, 1.0):
            right = read_right(fitting, rows.tolist(), words, NEIGHBOURS).mean(axis=0)
            told = ", ".join(f"{share:.3f}" for share in right)
            print(f"fitting, {title}, vision share {words.vision_share:g} read right: {told}")
        words.vision_share = VISION_SHARE
    given = (fitting, fitting.pairs(PAIRS["fitting"]), single, texts)
    print("fitting pairs, by weight: WeiMoCIR, WeiCom, PDV-like, three sums, the photo beside its words")
    alphas = (0.35, 0.5, 0.65, 0.8)
    ways = {
        "photo alone": photo_alone,
        "word alone": word_alone,
        "WeiMoCIR": weimocir(best_of(weimocir, alphas, *given)),
        "WeiCom": weicom(best_of(weicom, alphas, *given)),
        "PDV-like": pdv(best_of(pdv, STEPS, *given)),
    }
    for title, mean, imagined in (
        ("sum", False, True),
        ("centred sum, word not imagined", True, False),
        ("centred sum", True, True),
    ):

        def make(weight: float, mean: bool = mean, imagined: bool = imagined) -> Callable[..., np.ndarray]:
            return summing(weight, mean=mean, imagined=imagined)

        ways[title] = make(best_of(make, STEPS, *given))
    best_of(lambda weight: through_words(LAM, weight), (0.0, 0.1, 0.25, 0.5), *given)

    every = of_names([*split("models"), *split("unseen")], names)
    report_composed(unseen, {**dictionaries, "names, targets' too": every}, texts, ways)
    print("| lens | what | without | with | gain |")
    report_lenses(fitting, dictionaries, "fitting", PHOTOS)
    report_lenses(unseen, dictionaries, "unseen", PHOTOS)


if __name__ == "__main__":
    main()
