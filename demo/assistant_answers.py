"""What the demo's assistant answers: texts by the grammar of the demo world, pictures by the demo's own small VLM.

It is no language model. It knows mindseye's five tasks and the world's words, and nothing it is told otherwise: it
stands in for a model behind the protocol, so that the way there and back can be tried on any machine.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from demo.grammar import Category, describe
from demo.slots import ASPECTS, merged, named, slots
from retrieval.assistant.grid import STRIP, TILE
from retrieval.models.vlm import VLM

_SCALE = 30.0
"""Of similarities before the softmax over the values of an aspect."""
_TRIES = 64
"""Sentences of a category that are drawn, to choose different ones from."""


class GrammarAnswers:
    """Answers to the tasks of ``retrieval.assistant``.

    Args:
        vlm: of the demo; texts and images to one space.
    """

    def __init__(self, vlm: VLM) -> None:
        self._vlm = vlm
        self._values = {aspect: list(table) for aspect, table in ASPECTS.items()}
        self._vectors = {aspect: vlm.encode_text(values) for aspect, values in self._values.items()}

    def rewrite(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """One value of each aspect: what is wanted before what the picture shows, and nothing unwanted."""
        unwanted = merged(_texts(data, "unwanted"))
        values: dict[str, str] = {}
        for source in ("wanted", "picture"):
            for aspect, found in merged(_texts(data, source)).items():
                kept = [value for value in found if value not in unwanted.get(aspect, [])]
                if kept:
                    values.setdefault(aspect, kept[0])
        return {"text": named(values) or " ".join(_texts(data, "wanted"))}

    def ask(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Which value of the open aspect that most of the words differ in."""
        decided = merged(_texts(data, "wanted"))
        by_aspect: dict[str, dict[str, int]] = {}
        for number, word in data["found"].items():
            for aspect, [value, *_] in slots(word).items():
                if aspect not in decided:
                    by_aspect.setdefault(aspect, {}).setdefault(value, int(number))
        if not by_aspect:
            return {"question": "Which of these?", "choices": [int(number) for number in data["found"]][:8]}
        aspect = max(by_aspect, key=lambda each: len(by_aspect[each]))
        return {"question": f"Which {aspect}?", "choices": list(by_aspect[aspect].values())[:8]}

    def describe(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Descriptions of a category of the world, by clauses that name nothing; none of anything else."""
        found = merged([str(data["name"])])
        if found.keys() != ASPECTS.keys():
            return {"descriptions": []}
        category = Category(**{aspect: values[0] for aspect, values in found.items()})
        rng = np.random.default_rng(sum(category.name.encode()))
        made = dict.fromkeys(describe(category, "evaluation", rng) for _ in range(_TRIES))
        new = [text for text in made if text not in _texts(data, "others")]
        return {"descriptions": new[: int(data["count"])]}

    def judge(self, data: Mapping[str, Any], picture: Image.Image) -> float:
        """P(yes): the product of its aspects' probabilities, each a softmax over the values of the aspect."""
        [score] = self._scores(data, [picture])
        return float(score)

    def order(self, data: Mapping[str, Any], sheet: Image.Image) -> dict[str, Any]:
        """The numbers on a grid by P(yes)."""
        columns, count = int(data["columns"]), int(data["count"])
        tiles = []
        for place in range(count):
            left, top = place % columns * TILE, place // columns * (TILE + STRIP) + STRIP
            tiles.append(sheet.crop((left, top, left + TILE, top + TILE)))
        scores = self._scores(data, tiles)
        return {"order": [int(place) + 1 for place in np.argsort(-scores, kind="stable")]}

    def _scores(self, data: Mapping[str, Any], pictures: Sequence[Image.Image]) -> np.ndarray:
        pixels = np.stack([self._vlm.preprocess.pixels(picture) for picture in pictures])
        vectors_BD = self._vlm.encode_images(pixels)
        scores = np.ones(len(pictures))
        shall, shall_not = _texts(data, "wanted") + _texts(data, "picture"), _texts(data, "unwanted")
        for texts, wanted in ((shall, True), (shall_not, False)):
            for aspect, found in merged(texts).items():
                logits = _SCALE * vectors_BD @ self._vectors[aspect].T
                shares = np.exp(logits - logits.max(axis=1, keepdims=True))
                shares /= shares.sum(axis=1, keepdims=True)
                shown = shares[:, [self._values[aspect].index(value) for value in found]].sum(axis=1)
                scores *= shown if wanted else 1 - shown
        return scores


def opened(jpeg: bytes) -> Image.Image:
    """Return the RGB picture in a JPEG file."""
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
        return picture.convert("RGB")


def _texts(data: Mapping[str, Any], name: str) -> list[str]:
    return [str(text) for text in data.get(name, [])]
