"""Recall of some shards of an index against exact search over the same shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

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
from retrieval.index.hits import Hits, merge_topk
from retrieval.index.threads import in_threads
from retrieval.index.tuning import RECALL_AT, sample_queries
from retrieval.metrics import neighbour_recall

QUERIES = 200


def measure_recall(
    index: Index, numbers: Sequence[int], settings: IndexSettings, counter: ProgressCounter
) -> tuple[Recall, Recall | None]:
    """Return recall of the default search of these shards against exact search over them, on queries that no shard has
    tuned itself with: of those that are made of their rows, and of texts if the version has some.

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
    found, exact = (hits.ids for hits in best)
    sampled = len(found) - sum(map(len, texts.values()))
    recall = _by_depth(found[:sampled], exact[:sampled], LAMBDA_GRID)
    return recall, _by_depth(found[sampled:], exact[sampled:], tuple(texts)) if texts else None


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


def _queries(index: Index, numbers: Sequence[int], texts: Mapping[float, np.ndarray], cpus: float) -> np.ndarray:
    with faiss_threads(cpus):
        return np.concatenate([_sample_queries(index, numbers), *texts.values()])


def _sample_queries(index: Index, numbers: Sequence[int]) -> np.ndarray:
    shards = index.manifest.shards
    alive = np.array([record.rows for record in shards])
    alive -= np.bincount(index.removed()["shard"].to_numpy(), minlength=len(shards))
    alive = alive[numbers]
    # What was added last may be of other categories than all before.
    asked = {numbers[int(np.argmax(alive))], numbers[int(np.flatnonzero(alive)[-1])]}
    by_weight: list[list[np.ndarray]] = [[] for _ in LAMBDA_GRID]
    for number in sorted(asked):
        shard = index.shard(number)
        # Rows lie in the order of their ids, which are hashes, so any run of them is a fair sample.
        rows = np.flatnonzero(shard.alive)[-QUERIES // len(asked) :]
        for queries, of_shard in zip(by_weight, sample_queries(shard, rows, np.random.default_rng(1)), strict=True):
            queries.append(of_shard)
    return np.concatenate([np.concatenate(queries) for queries in by_weight])


def _found_and_exact(
    index: Index, number: int, queries: Shared[np.ndarray], cpus: float, counter: ProgressCounter
) -> tuple[Hits, Hits]:
    with faiss_threads(cpus):
        shard, query_QD = index.shard(number), queries.get()
        ways = (partial(way, k=max(RECALL_AT)) for way in (shard.search, shard.exact))
        found, exact = (in_threads(way, query_QD) for way in ways)
    counter.add(1)
    return found, exact
