"""What the shards answer becomes one answer."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from itertools import count, starmap
from typing import Any, NamedTuple

import numpy as np

from retrieval.index.hits import merge_topk
from serving import metrics
from serving.deployments.calls import Unavailable
from serving.deployments.messages import Part, Row

log = logging.getLogger("ray.serve")


class Found(NamedTuple):
    """What the shards found for a query, how many of them told all that matters, and what went wrong with the rest."""

    parts: list[Part]
    answered: int
    troubles: list[Unavailable]


class RowVectors(NamedTuple):
    """Joint rows [c ; d], float16 (N, D), of N ids; whether each was found, bool (N,), without which its vector is
    zero; and what went wrong with shards that may have those.
    """

    joint_ND: np.ndarray
    found_N: np.ndarray
    troubles: list[Unavailable]


def asked_for(shards: Sequence[int] | None, count: int, holders: int) -> dict[int, list[int]]:
    """Return which of ``count`` ids each of the holders of shards is asked for, by their places.

    Args:
        shards: that each row lies in; None asks every holder for every row.
        count: of ids.
        holders: which hold the shards j with j mod ``holders`` = their number.
    """
    if shards is None:
        return {number: list(range(count)) for number in range(holders)}
    asked: dict[int, list[int]] = {}
    for place, shard in enumerate(shards):
        asked.setdefault(shard % holders, []).append(place)
    return asked


def row_vectors(count: int, asked: Mapping[int, Sequence[int]], answers: Sequence[Any]) -> RowVectors:
    """Put together what each holder answered (``shards.Opened.vectors``) for the ids that it was asked for."""
    told = [
        (np.array(places)[at_n], vectors_nD)
        for places, answer in zip(asked.values(), answers, strict=True)
        if not isinstance(answer, Unavailable)
        for at_n, vectors_nD in [answer]
        if len(at_n)  # a holder without shards does not know the dimensions
    ]
    joint_ND = np.zeros((count, max((vectors_nD.shape[1] for _, vectors_nD in told), default=0)), np.float16)
    found_N = np.zeros(count, bool)
    for places_n, vectors_nD in told:
        joint_ND[places_n], found_N[places_n] = vectors_nD, True
    return RowVectors(joint_ND, found_N, [answer for answer in answers if isinstance(answer, Unavailable)])


async def replies(method: str, asked: Mapping[int, Awaitable[Any]]) -> list[Any]:
    """Return what each shard answers, asked at once, or ``Unavailable``; any other exception is raised.

    Args:
        method: for the log.
        asked: by the number of the shard.
    """

    async def reply(number: int, asked: Awaitable[Any]) -> Any:
        with metrics.shard_seconds.timed(shard=str(number)), metrics.waiting.one(part="shard"):
            return await asked

    answers = await asyncio.gather(*starmap(reply, asked.items()), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, Unavailable):
            log.warning("%s: %s", method, answer)
        elif isinstance(answer, BaseException):
            raise answer
    return answers


def only_place(answers: Sequence[tuple[str, str] | Unavailable | None]) -> tuple[str, str] | None:
    """Return the one place that the shards know of, or None.

    Raises:
        Unavailable: none knows it, and one that may did not answer.
    """
    for answer in answers:
        if answer and not isinstance(answer, Unavailable):
            return answer
    for answer in answers:
        if isinstance(answer, Unavailable):
            raise answer
    return None


def ranked(parts: Sequence[Part], k: int, sources: Mapping[str, str]) -> list[Row]:
    """Return the k best rows of all, best first, ties by ascending id.

    Args:
        parts: at least one.
        k: from 1.
        sources: the index's, by batch.
    """
    hits = merge_topk([part.hits for part in parts], k)
    scores = zip(*(values[0].tolist() for values in (hits.scores, hits.text_part, hits.visual_part)), strict=True)
    places = [count() for _ in parts]  # the ranking has rows of one part in the order of that part
    rows = []
    for id, number, of_row in zip(hits.ids[0], hits.shards[0].tolist(), scores, strict=True):
        place = next(places[number])
        columns = {name: values[place] for name, values in parts[number].columns.items()}
        path, source, label = columns.pop("path"), sources[columns.pop("batch")], columns.pop("label")
        rows.append(Row(id, parts[number].shard, path, source, label, columns, *of_row))
    return rows


def to_be_asked_again(parts: Mapping[int, Sequence[Part]], k: int) -> Counter[int]:
    """Return whose parts may lack some of the k best rows of all, and how many of each: parts that have more rows than
    they sent, and whose last one is among the k best, so that the next may be as well.

    Args:
        parts: of each deployment, by its number.
        k: from 1.
    """
    every = [(number, part) for number, of_one in parts.items() for part in of_one]
    if not any(part.more for _, part in every):
        return Counter()
    hits = merge_topk([part.hits for _, part in every], k)
    taken = np.bincount(hits.shards[0], minlength=len(every)).tolist()
    return Counter(
        number
        for (number, part), used in zip(every, taken, strict=True)
        if part.more and used == part.hits.rows.shape[1]
    )
