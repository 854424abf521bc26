"""The bridge from pictures to words: a picture with a text that changes it becomes a text, which can be imagined.

"Like this photo, but blue" in one sum of vectors finds photos that are a little of both. So the photo is read into
words (``retrieval.words``), the text's word takes the place of the photo's, and the whole is searched for as the text
that it is now, with imagined images of its own: CIReVL (Karthik et al. 2024) with a dictionary for its language model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import UserError
from retrieval.means import Means
from retrieval.prompts import MAX_CHARACTERS
from retrieval.words import Dictionary, Refinement, Value, Word

Bridge = Literal["auto", "none", "words", "composer"]


class Said(NamedTuple):
    """A text beside a picture.

    Attributes:
        text: as it was given.
        vlm_D1: its text vector t.
        wanted: whether its weight is positive.
    """

    text: str
    vlm_D1: NDArray[np.float32]
    wanted: bool


@dataclass(frozen=True)
class Reading:
    """What was read from pictures and rows, and what became of it.

    Attributes:
        words: what was read, in the order of the dictionary's aspects.
        text: the query in words, with what its texts change; searching for this text, edited or not, needs no picture.
        replaced: the values among ``words`` that texts have replaced or removed.
        told: the share of ``text`` that its texts have told, from 0 to 1; the pictures have told the rest.
        shortfall: why no assistant worded ``text``, where one was to.
    """

    words: list[Word]
    text: str
    replaced: list[str]
    told: float
    shortfall: str | None = None


def bridges(bridge: Bridge, aspects: Sequence[str] | None, *, pictures: bool, texts: bool) -> bool:
    """Return whether a query is to be read into words.

    Args:
        bridge: ``words``: whatever has pictures; ``auto``: pictures with texts, if there is a dictionary with aspects;
            ``composer`` reads nothing.
        aspects: of the dictionary; None without a dictionary.
        pictures: whether a picture or a row is wanted.
        texts: whether there are texts, for or against.

    Raises:
        UserError: ``bridge`` is none of these (code ``unknown``), or is ``words`` without a dictionary (``no-words``),
            or with one that has no aspects (``no-aspects``). The field is ``bridge``.
    """
    if bridge not in get_args(Bridge):
        raise UserError(f"bridge is {', '.join(get_args(Bridge))}, not {bridge!r}", code="unknown", field="bridge")
    if bridge == "words" and not aspects:
        what, code = ("a dictionary", "no-words") if aspects is None else ("one with aspects", "no-aspects")
        raise UserError(
            f"reading a picture into words needs {what}: give a query set of words with a column aspect",
            code=code,
            field="bridge",
        )
    return pictures and bool(aspects) and (bridge == "words" or (bridge == "auto" and texts))


def composes(bridge: str, *, composer: bool, pictures: bool, texts: bool) -> bool:
    """Return whether pictures and texts of a query are to be composed (``retrieval.composer``).

    Args:
        bridge: only ``composer`` composes.
        composer: whether there is one.
        pictures: whether a picture or a row is wanted.
        texts: whether a text is wanted.

    Raises:
        UserError: it asks for a composer, and there is none (code ``no-composer``, field ``bridge``).
    """
    if bridge != "composer":
        return False
    if not composer:
        raise UserError(
            "composing needs a composer, and there is none: train one on a labelled gallery and a dictionary, and name"
            " it, in a profile as models.composer",
            code="no-composer",
            field="bridge",
        )
    return pictures and texts


def composing(weights: Sequence[float]) -> tuple[list[int], NDArray[np.float64]]:
    """Return what composing makes of evidence: one piece in place of all that is wanted; the others remain.

    Args:
        weights: of the given pieces.

    Returns:
        As of ``merging``: all that is wanted shares by weight.
    """
    weights_G = np.array(weights, np.float64)
    kept = np.flatnonzero(weights_G < 0).tolist()
    brings_EG = np.zeros((1 + len(kept), len(weights_G)))
    brings_EG[0] = weights_G.clip(min=0) / weights_G.clip(min=0).sum()
    brings_EG[np.arange(1, 1 + len(kept)), kept] = 1.0
    return kept, brings_EG


def read(dictionary: Dictionary, joint_ND: NDArray[np.float16], means: Means | None, texts: Sequence[Said]) -> Reading:
    """Return what pictures are in words, with the changes that texts make.

    Args:
        dictionary: with aspects.
        joint_ND: rows [c ; d] of the gallery that are nearest to the pictures.
        means: of the gallery.
        texts: beside the pictures.
    """
    return recomposed(dictionary, dictionary.read(*_split(dictionary, joint_ND), means), texts)


def refinements(dictionary: Dictionary | None, joint_ND: NDArray[np.float16], means: Means | None) -> list[Refinement]:
    """Return the words that split results best, by their rows [c ; d]; none without a dictionary."""
    return dictionary.refinements(*_split(dictionary, joint_ND), means) if dictionary else []


def _split(dictionary: Dictionary, joint_ND: NDArray[np.float16]) -> tuple[np.ndarray, np.ndarray]:
    vlm_dim = dictionary.vlm_WD1.shape[1]
    return joint_ND[:, :vlm_dim], joint_ND[:, vlm_dim:]


def recomposed(dictionary: Dictionary, words: Sequence[Word], texts: Sequence[Said]) -> Reading:
    """Return what was read with the changes that texts make: their values take the places of those of their aspects.

    "+ blue" on what was read as "red striped star" is "blue striped star", and "- striped" leaves "red star". A text
    that says more than words of the dictionary follows as it is, in place of the values that it names.
    """
    read = {word.aspect: word.value for word in words}
    left, told, further = {aspect: [value] for aspect, value in read.items()}, dict[str | None, list[str]](), []
    for said in texts:
        values, nothing_else = spoken(dictionary, said)
        for value in values:
            if not said.wanted:
                if read.get(value.aspect) == value.name:
                    left[value.aspect] = []
            elif nothing_else:
                told.setdefault(value.aspect, []).append(value.name)
            else:
                told.setdefault(value.aspect, [])
        if said.wanted and not nothing_else:
            further.append(said.text)
    together = left | told
    phrase = [value for values in together.values() for value in values]
    count = len(phrase) + len(further)
    new = sum(map(len, told.values())) + len(further)
    replaced = [value for aspect, value in read.items() if value not in together[aspect]]
    text = ", ".join(part for part in (" ".join(phrase), *further) if part)
    return Reading(list(words), text, replaced, new / count if count else 0.0)


def merging(
    reading: Reading, texts: Sequence[bool], weights: Sequence[float]
) -> tuple[list[int], NDArray[np.float64]] | None:
    """Return what a reading makes of evidence: one text in place of all that is wanted; what is not wanted remains.

    Args:
        reading: as ``recomposed``.
        texts: of each given piece, whether it is a text.
        weights: theirs.

    Returns:
        The numbers of the pieces that follow the text; and for the text and each of these, which share of what it
        brings to a score is a given piece's, float64 (1 + kept, given). Pictures and texts share by the words that they
        have told, several of one kind by their weights. None if no word is left, or texts that are not wanted have
        removed none, so that the words say less than the pictures; or if the text would be too long for one.
    """
    if not 0 < len(reading.text) <= MAX_CHARACTERS or (any(texts) and not reading.told and not reading.replaced):
        return None
    weights_G, texts_G = np.array(weights, np.float64), np.array(texts, bool)
    kept = np.flatnonzero(weights_G < 0).tolist()
    brings = np.zeros((1 + len(kept), len(weights_G)))
    for of_G, share in ((texts_G, reading.told), (~texts_G, 1 - reading.told)):
        wanted_G = np.where(of_G, weights_G.clip(min=0), 0)
        if share:
            brings[0] += share * wanted_G / wanted_G.sum()
    brings[np.arange(1, 1 + len(kept)), kept] = 1.0
    return kept, brings


def given_shares(shares: Sequence[Sequence[float]], brings_EG: NDArray[np.float64]) -> list[list[float]]:
    """Return shares of what was searched for as shares of what was given; a result that has none keeps none."""
    return [(np.asarray(of_one) @ brings_EG).tolist() if of_one else [] for of_one in shares]


def spoken(dictionary: Dictionary, said: Said) -> tuple[list[Value], bool]:
    """Return the values that a text says, and whether it says nothing else.

    Where none of the dictionary's words is in it, that is the value whose text vector is near, if one is.
    """
    folded = said.text.casefold()
    found = [dictionary.values[dictionary.said[word]] for word in dictionary.pattern.findall(folded)]
    if found:
        return found, not re.search(r"\w", dictionary.pattern.sub("", folded))
    nearest = dictionary.nearest_text(said.vlm_D1)
    return [nearest] if nearest else [], False
