"""A dictionary: a query set of words, that names what a vector shows, and so turns pictures into words.

A vocabulary with the columns ``aspect`` and ``value`` (text "red", aspect "colour", value "red") says of which aspect
of an image each text is a value; its texts are encoded and imagined like any others. So each value has two vectors, the
means of t and of v over its texts, and what an image shows of an aspect is the value that is nearest to it:

    argmax over values of (1 - s)·cos(x - μ_c, t - μ_t) + s·cos(y - μ_d, v - μ_v)

Means are taken out because texts and pictures lie apart in a VLM's space, and imagined and real images in the vision
encoder's. An image is read through the gallery's rows that are nearest to it: on their mean, less rests on what is
peculiar to one picture. Without aspects, each text is a name of its own, and the names nearest to a vector are read.
Shapes: W values, N rows, D1 and D2 dimensions of VLM and vision encoder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.artifacts import QuerySet
from retrieval.artifacts.queryset import text_vectors, vision_vectors
from retrieval.means import Means

if TYPE_CHECKING:
    from retrieval.aggregator import Aggregator

NEIGHBOURS = 20
"""Rows of the gallery that a picture is read through. Chosen on fitting categories, as the next: docs/evidence.md."""
VISION_SHARE = 0.7
"""s, how much of a reading the vision encoder has."""
NAMES = 5
"""Names that are read from a vector where a dictionary has no aspects."""
PARAPHRASE = 0.3
"""Cosine, without the mean, from which on a text that has none of the words still says the nearest value."""
REFINEMENTS = 5
"""Refinements of an answer."""


@dataclass(frozen=True)
class Word:
    """What was read of one aspect, or a name if the dictionary has no aspects."""

    aspect: str | None
    value: str
    similarity: float
    """From -1 to 1; of values of one aspect, comparable."""


@dataclass(frozen=True)
class Refinement:
    """A word that splits results: ``share`` of them show it."""

    text: str
    aspect: str | None
    share: float


class Value(NamedTuple):
    """One value of an aspect, or one text where there are no aspects, and the texts that say it."""

    aspect: str | None
    name: str
    texts: tuple[str, ...]


class Dictionary:
    """The words of a query set.

    Attributes:
        aspects: their names, in the order of the vocabulary.
        values: all values, those of one aspect together.
        vlm_WD1: mean t of each, float32.
        vision_WD2: mean v of each, float32.
        means: of t and v over all values; as the query set's manifest has them, if it has.
        vision_share: s.
        said: which value each word says, by the word, case folded.
        pattern: matches any of these words, the longest first.
    """

    def __init__(
        self,
        aspects: Sequence[str],
        values: Sequence[Value],
        vlm_WD1: np.ndarray,
        vision_WD2: np.ndarray,
        *,
        means: Means | None = None,
    ) -> None:
        self.aspects = list(aspects)
        self.values = list(values)
        self.vlm_WD1 = vlm_WD1.astype(np.float32)
        self.vision_WD2 = vision_WD2.astype(np.float32)
        self.means = means or Means(self.vlm_WD1.mean(axis=0), self.vision_WD2.mean(axis=0))
        self.vision_share = VISION_SHARE
        self._of = np.array([self.aspects.index(value.aspect) if value.aspect else -1 for value in self.values])
        self._vlm_WD1 = _directions(self.vlm_WD1 - self.means.vlm_D1)
        self._vision_WD2 = _directions(self.vision_WD2 - self.means.vision_D2)
        self.said = {text.casefold(): w for w, value in enumerate(self.values) for text in (value.name, *value.texts)}
        longest_first = sorted(self.said, key=len, reverse=True)
        self.pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")

    @classmethod
    def of(cls, queries: QuerySet, network: Aggregator | None = None) -> Dictionary:
        """Make a dictionary of a query set.

        Args:
            queries: if some of its texts have an aspect, the others do not count.
            network: pools the imagined images, as it does those of queries.

        Raises:
            DamagedError: the query set cannot be read.
        """
        from retrieval.query import pool  # loads PyTorch, which a process that only opens this module need not

        table = queries.table(["id", "text", "aspect", "value", "vlm", "vision"])
        text_QD1, image_QD2 = text_vectors(table), pool(*vision_vectors(table), network)
        texts = table["text"].to_pylist()
        values, vlm, vision = [], [], []
        for (aspect, name), of in _grouped(table, queries.manifest.aspects):
            values.append(Value(aspect, name, tuple(dict.fromkeys(texts[q] for q in of))))
            vlm.append(text_QD1[of].mean(axis=0))
            vision.append(image_QD2[of].mean(axis=0))
        mean = queries.mean()
        means = Means(mean[0], mean[1] if network is None else np.stack(vision).mean(axis=0)) if mean else None
        return cls(queries.manifest.aspects, values, np.stack(vlm), np.stack(vision), means=means)

    def members(self, aspect: str) -> NDArray[np.int64]:
        """Return which values are of an aspect, which there must be."""
        return np.flatnonzero(self._of == self.aspects.index(aspect))

    def similarities(self, vlm_ND1: np.ndarray, vision_ND2: np.ndarray, means: Means | None) -> np.ndarray:
        """Return how near images are to each value, float64 (N, W).

        Args:
            vlm_ND1: c of the images, or zero rows.
            vision_ND2: d of the images, or zero rows.
            means: of the gallery that they belong to, if known.
        """
        vlm, vision = vlm_ND1.astype(np.float64), vision_ND2.astype(np.float64)
        if means:
            vlm, vision = vlm - means.vlm_D1, vision - means.vision_D2
        by_vlm, by_vision = _directions(vlm) @ self._vlm_WD1.T, _directions(vision) @ self._vision_WD2.T
        return (1 - self.vision_share) * by_vlm + self.vision_share * by_vision

    def read(self, vlm_ND1: np.ndarray, vision_ND2: np.ndarray, means: Means | None, names: int = NAMES) -> list[Word]:
        """Return what some images of a kind show: for each aspect the nearest value, or else the nearest names.

        Args:
            vlm_ND1: c of the images; what they have in common is read.
            vision_ND2: d of the same.
            means: of their gallery.
            names: how many are read where the dictionary has no aspects.
        """
        vlm_1D1, vision_1D2 = (rows.mean(axis=0, dtype=np.float64)[None] for rows in (vlm_ND1, vision_ND2))
        [near_W] = self.similarities(vlm_1D1, vision_1D2, means)
        if not self.aspects:
            best = np.argsort(-near_W, kind="stable")[:names]
        else:
            of_aspects = (self.members(aspect) for aspect in self.aspects)
            best = np.array([members[near_W[members].argmax()] for members in of_aspects])
        return [Word(self.values[w].aspect, self.values[w].name, float(near_W[w])) for w in best]

    def refinements(self, vlm_ND1: np.ndarray, vision_ND2: np.ndarray, means: Means | None) -> list[Refinement]:
        """Return the words that split results best: those of the largest entropy, first the most even split.

        Each result shows one value of each aspect, or one name; a word of which a share p shows has the entropy
        -p·log p - (1 - p)·log(1 - p). One that all or none of them show splits nothing, and is not among them.
        """
        if not len(vlm_ND1):
            return []
        near_NW = self.similarities(vlm_ND1, vision_ND2, means)
        shares_W = np.zeros(len(self.values))
        for of in np.unique(self._of):
            members = np.flatnonzero(self._of == of)
            counts = np.bincount(near_NW[:, members].argmax(axis=1), minlength=len(members))
            shares_W[members] = counts / len(near_NW)
        inside = np.flatnonzero((shares_W > 0) & (shares_W < 1))
        p = shares_W[inside]
        entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
        best = inside[np.argsort(-entropy.round(9), kind="stable")[:REFINEMENTS]]
        return [Refinement(self.values[w].name, self.values[w].aspect, float(shares_W[w])) for w in best]

    def cosines_of_texts(self, texts_BD1: np.ndarray) -> NDArray[np.float64]:
        """Return the cosines of t (B, D1) with the text vector of each value, without the mean: float64 (B, W)."""
        return _directions(texts_BD1 - self.means.vlm_D1) @ self._vlm_WD1.T

    def nearest_text(self, text_D1: np.ndarray) -> Value | None:
        """Return the value whose text vector is nearest to t (D1,), if any is as near as PARAPHRASE."""
        [near_W] = self.cosines_of_texts(text_D1[None])
        return self.values[int(near_W.argmax())] if near_W.max() >= PARAPHRASE else None


def mean_of_words(queries: QuerySet) -> NDArray[np.float32]:
    """Return the mean of [t ; v] over the values of a query set, (D1 + D2,), for its manifest. Images are averaged.

    Each value weighs the same, however many texts say it. Vectors are read part by part: a set may have more of them
    than there is memory.

    Raises:
        DamagedError: the query set cannot be read.
    """
    from retrieval.query import pool  # as above

    labels = queries.table(["id", "text", "aspect", "value"])
    groups = _grouped(labels, queries.manifest.aspects)
    ids = labels["id"].to_pylist()
    shares = {ids[q]: 1 / (len(groups) * len(of)) for _, of in groups for q in of}
    total: NDArray[np.float64] | float = 0.0
    for part in queries.parts(["id", "vlm", "vision"]):
        joint_QD = np.hstack([text_vectors(part), pool(*vision_vectors(part))]).astype(np.float64)
        total += np.array([shares.get(id, 0.0) for id in part["id"].to_pylist()]) @ joint_QD
    return np.asarray(total, np.float32)


def _grouped(table: pa.Table, aspects: Sequence[str]) -> list[tuple[tuple[str | None, str], list[int]]]:
    """Aspect and name of each value in the order of a dictionary, and which rows of a query table say it."""
    groups: dict[tuple[int, str | None, str], list[int]] = {}
    columns = (table[name].to_pylist() for name in ("aspect", "value", "text"))
    for q, (aspect, value, text) in enumerate(zip(*columns, strict=True)):
        if not aspects:
            groups.setdefault((0, None, text), []).append(q)
        elif aspect:
            groups.setdefault((aspects.index(aspect), aspect, value), []).append(q)
    in_order = sorted(groups.items(), key=lambda group: (group[0][0], group[0][2]))
    return [((aspect, name), of) for (_, aspect, name), of in in_order]


def _directions(rows_ND: np.ndarray) -> np.ndarray:
    """Unit rows, float64; zero where a row is."""
    rows = rows_ND.astype(np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
