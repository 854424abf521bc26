"""A learned composer and a textual inverter beside what needs no training, on the demo's world.

    make demo                                     # leaves the galleries, queries and words that this takes
    .venv/bin/python -m benchmarks.composer [--demo demo-out] [--cache build/words]

The very pairs of ``benchmarks.words``: a photo, one changed attribute, and the category to be found. The composer is
trained by ``mindseye train-composer`` on photos of the ``models`` and ``fitting`` categories (``demo/work``, made if
they are not there), with a quarter of these held out to stop by. The inverter is trained on texts of ``models``
categories alone: a picture becomes one token of the VLM's text tower (SEARLE, Baldrati et al. 2023; LinCIR, Gu et al.
2024: MSE of the vector of a text with φ(e + noise) in place of its words, and the vector of the text). What it has to
choose, it chooses on fitting pairs. Weights of the others are those that ``benchmarks.words`` has chosen.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import words as by_words
from benchmarks.words import Gallery, Pair, Texts, composed, of_names
from cluster.loading import load_query_encoder
from cluster.profile import load_profile
from cluster.session import session
from demo.train_aggregator import seen_gallery
from demo.world import split
from retrieval.artifacts import MANIFEST, QuerySet, TrainedComposer
from retrieval.bridge import Said, recomposed
from retrieval.composer import Composer
from retrieval.fusion import unit
from retrieval.metrics import bootstrap_mean, paired_bootstrap
from retrieval.models.vlm import VLM
from retrieval.nearest import NEAREST, visual_half
from retrieval.words import Dictionary
from training.composing import train_composer

WORK = Path("demo/work")
FRAMES = ("{}", "a {}", "a photo of a {}", "a picture of a {}", "one {} among other things", "a {} in the scene")
PHRASES = ("{word} $", "$, {word}", "a photo of a {word} $")
NOISE = (0.0, 0.1)
STEPS, BATCH, WIDTH = 200, 32, 512
Query = Callable[[Gallery, Pair, Dictionary, Texts], np.ndarray]


class Inverter:
    """φ: a picture's vector in the VLM's space to the embedding of one token of its text tower.

    Args:
        vlm: whose text tower it is for.
        texts: to learn from.
        noise: the largest deviation that is added to each number of e.
    """

    def __init__(self, vlm: VLM, texts: Sequence[str], noise: float) -> None:
        torch.manual_seed(0)
        self._model, _ = open_clip.create_model_from_pretrained(vlm.uri)
        self._tokenizer = open_clip.get_tokenizer(vlm.uri)
        embedding = next(m for m in self._model.modules() if isinstance(m, nn.Embedding))
        [self._token] = set(self._tokenizer(["$"])[0].tolist()) - set(self._tokenizer([""])[0].tolist())
        self._put: Tensor | None = None
        embedding.register_forward_hook(self._in_place)
        sizes = (vlm.dim, WIDTH, WIDTH, embedding.embedding_dim)
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.GELU())]
        self.network = nn.Sequential(*layers[:-1])
        self._learn(texts, torch.from_numpy(vlm.encode_text(list(texts))), noise)

    def _in_place(self, module: nn.Module, given: tuple[Tensor], embedded_BTW: Tensor) -> Tensor:
        if self._put is None:
            return embedded_BTW
        return torch.where((given[0] == self._token)[..., None], self._put[:, None], embedded_BTW)

    def _learn(self, texts: Sequence[str], vectors_VD1: Tensor, noise: float) -> None:
        self._model.requires_grad_(False)
        optimiser = torch.optim.AdamW(self.network.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
        rng = np.random.default_rng(0)
        for _ in range(STEPS):
            chosen, frame = rng.integers(len(texts), size=BATCH), FRAMES[rng.integers(len(FRAMES))]
            with torch.no_grad():
                wanted_BD1 = self._vectors([frame.format(texts[i]) for i in chosen])
            given_BD1 = vectors_VD1[chosen]
            given_BD1 = given_BD1 + noise * torch.rand(BATCH, 1) * torch.randn_like(given_BD1)
            self._put = self.network(given_BD1)
            loss = functional.mse_loss(self._vectors([frame.format("$")] * BATCH), wanted_BD1)
            self._put = None
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()

    def _vectors(self, texts: Sequence[str]) -> Tensor:
        return functional.normalize(self._model.encode_text(self._tokenizer(list(texts))), dim=1)

    @torch.no_grad()
    def __call__(self, picture_D1: np.ndarray, phrase: str) -> np.ndarray:
        """t of a phrase with the picture in the place of its $, float32 (D1,)."""
        self._put = self.network(torch.from_numpy(picture_D1.astype(np.float32))[None])
        [vector_D1] = self._vectors([phrase]).numpy()
        self._put = None
        return vector_D1


def inverted(inverter: Inverter, phrase: str, centred: bool, near: bool, nearest: bool, means: np.ndarray) -> Query:
    """The photo as a token beside the word: by text alone, or with the nearest real images for a visual half."""

    def query(gallery: Gallery, pair: Pair, words: Dictionary, texts: Texts) -> np.ndarray:
        picture_D1 = (
            gallery.neighbours(pair.row)[0].mean(axis=0, dtype=np.float64) if near else gallery.photo(pair.row)[0]
        )
        if centred:
            moved_D1 = picture_D1 - gallery.means.vlm_D1
            picture_D1 = means + moved_D1 / np.linalg.norm(moved_D1) * np.sqrt(1 - means @ means)
        vlm_D1 = inverter(unit(picture_D1), phrase.format(word=pair.word))
        return with_nearest(gallery, vlm_D1) if nearest else gallery.vlm_ND1 @ vlm_D1

    return query


def with_nearest(gallery: Gallery, vlm_D1: np.ndarray) -> np.ndarray:
    """Scores of a text whose visual half is that of the nearest real images."""
    best = np.argsort(-(gallery.vlm_ND1 @ vlm_D1), kind="stable")[:NEAREST]
    return gallery.scores(vlm_D1, visual_half(gallery.world.vision_ND2[best]))


def read_not_imagined(gallery: Gallery, pair: Pair, words: Dictionary, texts: Texts) -> np.ndarray:
    """Read into words and recomposed, with the nearest real images in place of imagined ones."""
    read = words.read(*gallery.neighbours(pair.row), gallery.means)
    reading = recomposed(words, read, [Said(pair.word, texts.of([pair.word])[0][0], True)])
    return with_nearest(gallery, texts.of([reading.text])[0][0])


def by_composer(network: Composer) -> Query:
    def query(gallery: Gallery, pair: Pair, words: Dictionary, texts: Texts) -> np.ndarray:
        near_ND = np.hstack(gallery.neighbours(pair.row))
        return gallery.scores(*network.compose(*gallery.photo(pair.row), near_ND, [texts.of([pair.word])[0][0]]))

    return query


def trained(target: Path, demo: Path, address: str | None) -> Composer:
    """The composer, trained on seen categories if it is not there."""
    if not (target / MANIFEST).exists():
        profile = load_profile("tiny")
        with session(address):
            gallery = seen_gallery(WORK / "aggregator", profile)
        made = train_composer(gallery, demo / "words", target, profile, address=address, log=print)
        print("mAP on held-out labels: " + ", ".join(f"{line['step']}: {line['map']:.3f}" for line in made.history))
    return TrainedComposer.open(target).network()


def best_inverter(vlm: VLM, *given: Any) -> tuple[Inverter, dict[str, Any]]:
    """The inverter, and how it is asked, with the highest mAP on fitting pairs, by text alone."""
    names = [category.name for category in split("models")]
    means = vlm.encode_text(names).mean(axis=0)
    best: tuple[float, Inverter | None, dict[str, Any]] = (-1.0, None, {})
    for noise in NOISE:
        inverter = Inverter(vlm, names, noise)
        for phrase, centred, near in product(PHRASES, (False, True), (False, True)):
            how = {"phrase": phrase, "centred": centred, "near": near, "means": means}
            found = composed(given[0], given[1], given[2], given[3], inverted(inverter, nearest=False, **how)).mean()
            print(f"    noise {noise:g}, {phrase!r}, centred {centred}, through nearest rows {near}: {found:.3f}")
            best = max(best, (float(found), inverter, how), key=lambda one: one[0])
    assert best[1]
    return best[1], best[2]


def milliseconds(call: Callable[[], Any], times: int) -> float:
    """The median time of a call, after one that is not counted."""
    spent = []
    for _ in range(times + 1):
        start = time.perf_counter()
        call()
        spent.append(1000 * (time.perf_counter() - start))
    return float(np.median(spent[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"), help="the folder that mindseye demo has filled")
    parser.add_argument("--cache", type=Path, default=Path("build/words"), help="where imagined texts are kept")
    parser.add_argument("--composer", type=Path, default=WORK / "composer", help="trained there, if there is none")
    parser.add_argument("--address", help='Ray cluster to train on; "none" trains in this process')
    asked = parser.parse_args()
    network = trained(asked.composer, asked.demo, asked.address)
    encoder = load_query_encoder("tiny")
    texts = Texts(encoder, asked.cache / "texts.npz", by_words.IMAGES)
    for known in ("words", "fitting/queries", "queries"):
        texts.know(QuerySet.open(asked.demo / known))
    single = Dictionary.of(QuerySet.open(asked.demo / "words"))
    names = of_names(split("models"), Texts(encoder, asked.cache / "names.npz", by_words.NAME_IMAGES))
    fitting, unseen = Gallery(asked.demo / "fitting/gallery"), Gallery(asked.demo / "gallery")
    pairs = unseen.pairs(by_words.PAIRS["unseen"])
    ways: dict[str, tuple[Dictionary, Query]] = {
        "WeiMoCIR": (single, by_words.weimocir(0.5)),
        "WeiCom": (single, by_words.weicom(0.5)),
        "centred sum": (single, by_words.summing(2.0, mean=True, imagined=True)),
        "PDV-like": (single, by_words.pdv(5.0)),
        "read by 30 words, text alone": (single, by_words.through_words(0.0)),
        "read by 30 words, nearest real images": (single, read_not_imagined),
        "read by 480 names, nearest real images": (names, read_not_imagined),
        "read by 30 words, imagined and fused": (single, by_words.through_words(by_words.LAM)),
        "read by 480 names, imagined and fused": (names, by_words.through_words(by_words.LAM)),
        "composer": (single, by_composer(network)),
    }
    over = composed(unseen, pairs, single, texts, by_composer(network))
    print(f"| composed, {len(pairs)} unseen pairs | mAP | the composer over it |")

    def report(title: str, words: Dictionary, way: Query) -> None:
        values = composed(unseen, pairs, words, texts, way)
        mean, gain = bootstrap_mean(values), paired_bootstrap(over, values)
        print(
            f"| {title} | {mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}]"
            f" | {gain.mean:+.3f} [{gain.low:.3f}, {gain.high:.3f}] |",
            flush=True,
        )

    for title, (words, way) in ways.items():
        report(title, words, way)
    pair = pairs[0]
    photo, near_ND = unseen.photo(pair.row), np.hstack(unseen.neighbours(pair.row))
    text_D1 = texts.of([pair.word])[0][0]
    compose = milliseconds(partial(network.compose, *photo, near_ND, [text_D1]), 50)
    imagine = milliseconds(partial(encoder.encode, [pair.target], by_words.IMAGES), 3)
    print(f"a query: composing {compose:.1f} ms; imagining {by_words.IMAGES} images and their vectors {imagine:.0f} ms")
    print("inverter, mAP of fitting pairs by text alone:")
    inverter, how = best_inverter(encoder.vlm, fitting, fitting.pairs(by_words.PAIRS["fitting"]), single, texts)
    report("inverter, text alone", single, inverted(inverter, nearest=False, **how))
    report("inverter, nearest real images", single, inverted(inverter, nearest=True, **how))


if __name__ == "__main__":
    main()
