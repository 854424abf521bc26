"""Recall of some shards of an index against exact search over the same shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import faiss
import numpy as np

from cluster.profile import IndexSettings
from cluster.progress import ProgressCounter
from pipelines.executor import Shared
from pipelines.faiss_threads import faiss_threads
from pipelines.running import current_executor
from pipelines.text_queries import measuring_texts
from retrieval.artifacts import Index
from retrieval.artifacts.manifests import Recall
from retrieval.index.effort import LAMBDA_GRID
from retrieval.index.evidence_queries import RESULTS, evidence_queries
from retrieval.index.hits import Hits, merge_topk
from retrieval.index.shard import Shard
from retrieval.index.threads import in_threads
from retrieval.index.tuning import RECALL_AT, sample_queries
from retrieval.metrics import neighbour_recall

QUERIES = 150
COMPILED = 32
"""Queries of each kind that are made of evidence, at each λ."""


class Measurement(NamedTuple):
    """Recall of some shards, by what was asked: queries made of their rows, texts, and evidence by kind."""

    recall: Recall
    text_recall: Recall | None
    evidence_recall: dict[str, Recall] | None


class _Asked(NamedTuple):
    """Queries (Q, D) of one group, equally many at each λ, one λ after the other."""

    group: str
    weights: tuple[float, ...]
    query_QD: np.ndarray


_ROWS, _TEXTS = "rows", "texts"


def measure_recall(
    index: Index, numbers: Sequence[int], settings: IndexSettings, counter: ProgressCounter
) -> Measurement:
    """Return recall of the default search of these shards against exact search over them, on queries that no shard has
    tuned itself with: of those that are made of their rows, of texts if the version has some, and of evidence.

    Args:
        index: a version.
        numbers: places of shards in its manifest.
        settings: the profile's.
        counter: of shards.
    """
    executor = current_executor()
    alone, place = (executor.shared_among(calls, settings) for calls in (1, len(numbers)))
    vision_dim = index.manifest.models["vision"].dim
    assert vision_dim is not None
    texts = measuring_texts(index.folder, vision_dim)
    queries = executor.run(_queries, index, numbers, texts, alone.cpus, place=alone)
    shards = [(index, number, queries, place.cpus, counter) for number in numbers]
    best: tuple[Hits, Hits] | None = None
    for answer in executor.as_completed(_found_and_exact, shards, place=place):
        # Merged as they come: those of all shards together would be 20 MB for each.
        best = _merged(best, answer) if best else answer
    assert best
    asked = queries.get()
    ends = np.cumsum([len(each.query_QD) for each in asked])[:-1]
    found, exact = (np.split(hits.ids, ends) for hits in best)
    recall = {
        each.group: _by_depth(ours, true, each.weights) for each, ours, true in zip(asked, found, exact, strict=True)
    }
    of_rows, of_texts = recall.pop(_ROWS), recall.pop(_TEXTS, None)
    return Measurement(of_rows, of_texts, recall or None)


def _by_depth(found_Qk: np.ndarray, exact_Qk: np.ndarray, weights: Sequence[float]) -> Recall:
    """Of equally many queries at each λ, one λ after the other."""
    recall = {}
    for depth in RECALL_AT:
        parts = (np.split(ids[:, :depth], len(weights)) for ids in (found_Qk, exact_Qk))
        recall[str(depth)] = {
            str(weight): round(neighbour_recall(*part), 4) for weight, *part in zip(weights, *parts, strict=True)
        }
    return recall


def _merged(one: tuple[Hits, Hits], other: tuple[Hits, Hits]) -> tuple[Hits, Hits]:
    found, exact = (merge_topk(hits, max(RECALL_AT)) for hits in zip(one, other, strict=True))
    return found, exact


def _queries(index: Index, numbers: Sequence[int], texts: Mapping[float, np.ndarray], cpus: float) -> list[_Asked]:
    shards = index.manifest.shards
    alive = np.array([record.rows for record in shards])
    alive -= np.bincount(index.removed()["shard"].to_numpy(), minlength=len(shards))
    alive = alive[numbers]
    # What was added last may be of other categories than all before.
    sampled = {numbers[int(np.argmax(alive))], numbers[int(np.flatnonzero(alive)[-1])]}
    with faiss_threads(cpus):
        of_shards = [_of_shard(index.shard(number), len(sampled), texts) for number in sorted(sampled)]
    asked = [
        _Asked(group, LAMBDA_GRID, np.concatenate([part for parts in zip(*of_group, strict=True) for part in parts]))
        for group in of_shards[0]
        for of_group in [[of[group] for of in of_shards]]
    ]
    return [*asked, _Asked(_TEXTS, tuple(texts), np.concatenate(list(texts.values())))] if texts else asked


def _of_shard(shard: Shard, shards: int, texts: Mapping[float, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Queries that are made of the rows of one of so many shards, for each λ of LAMBDA_GRID, by their group."""
    # Rows lie in the order of their ids, which are hashes, so any run of them is a fair sample.
    rows = np.flatnonzero(shard.alive)[-QUERIES // shards :]
    asked = {_ROWS: sample_queries(shard, rows, np.random.default_rng(1))}
    if isinstance(shard.index, faiss.IndexFlat):  # it finds what an exact search finds
        return asked
    known = [
        texts.get(weight, query_QD)[: COMPILED // shards]
        for weight, query_QD in zip(LAMBDA_GRID, asked[_ROWS], strict=True)
    ]
    near = in_threads(partial(shard.exact, k=RESULTS), np.concatenate(known)).rows
    of_weights = np.split(near, np.cumsum([len(query_QD) for query_QD in known])[:-1])
    for weight, query_QD, rows_Qk in zip(LAMBDA_GRID, known, of_weights, strict=True):
        for kind, of_kind in evidence_queries(shard, query_QD, rows_Qk, weight).items():
            asked.setdefault(kind, []).append(of_kind)
    return asked


def _found_and_exact(
    index: Index, number: int, queries: Shared[list[_Asked]], cpus: float, counter: ProgressCounter
) -> tuple[Hits, Hits]:
    with faiss_threads(cpus):
        shard, query_QD = index.shard(number), np.concatenate([each.query_QD for each in queries.get()])
        ways = (partial(way, k=max(RECALL_AT)) for way in (shard.search, shard.exact))
        found, exact = (in_threads(way, query_QD) for way in ways)
    counter.add(1)
    return found, exact
