"""Exact rankings of a whole gallery, block by block: the ranks of all positives, and the best rows of each query.

Neither queries × gallery nor the gallery itself is ever held. Every positive's exact rank is found in two passes over
blocks of rows: the first collects the scores of all positives, the second counts how many rows of each block come
before each of them (``retrieval.metrics.count_better``). Positives of many rankings can be as many as queries ×
gallery, so rankings are taken in groups, each of which passes over the gallery, and all that is known of positives goes
from task to task: a driver is given measures.

Shapes: M rankings (systems × queries), N rows of a block, D = D1 + D2 joint dimensions, P positives of all rankings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.progress import ProgressCounter, progress
from pipelines.executor import Shared
from pipelines.gallery_rows import ROWS_READ, Run, runs
from pipelines.running import current_executor
from pipelines.truth import Targets, Truths
from retrieval.artifacts import Gallery
from retrieval.artifacts.columns import matrix
from retrieval.fusion import products
from retrieval.metrics import count_better, id_places, without_junk

BLOCK_ELEMENTS = 4_000_000
"""Elements of vectors (N × D), and scores of some of the rankings, held at once by one worker: 32 MB each as float64.
"""
POSITIVES_AT_ONCE = 2_000_000
"""Positives (P) of a group of rankings: 24 MB of scores and ranks. A ranking that has more is a group of its own."""
Measure = Callable[[np.ndarray, int], Sequence[float]]
"""Of a ranking: the sorted 0-based ranks of the relevant rows that the gallery has, int64, in the ranking without its
junk; and how many rows are relevant. A function of a module, that tasks call."""


class _Rankings(NamedTuple):
    """What both passes need: the joint queries, sorted by truth, and which rows are wanted by which."""

    joint_MD: np.ndarray
    targets: Targets
    bounds: np.ndarray
    """Where the rankings of each truth begin, and the last one's end."""


class _Wanted(NamedTuple):
    """What the second pass counts rows before: the rows of each truth, and their scores in each of its rankings."""

    ids: pa.Array
    """Of all rows, each once, sorted."""
    places: list[np.ndarray]
    """Of the rows of each truth among the ids."""
    scores: list[np.ndarray]
    junk: list[np.ndarray]
    """Which rows of each truth are junk."""


def exact_measures(
    gallery: Gallery,
    joint_MD: np.ndarray,
    truths: Shared[Truths],
    of_M: Sequence[int],
    rows: Sequence[int],
    positives_M: Sequence[int],
    measure: Measure,
) -> Iterator[tuple[int, Sequence[float]]]:
    """Rank a gallery by each of M joint queries, in groups of rankings; yield what is measured of where its relevant
    rows are.

    Args:
        gallery: the gallery to rank.
        joint_MD: fused queries (``retrieval.fusion.fused_query``), float32.
        truths: which rows are relevant and which are junk.
        of_M: which of these is the truth of each ranking, by its place.
        rows: of each truth, how many rows of the gallery are relevant or junk.
        positives_M: of each ranking, how many rows are relevant, found or not.
        measure: as above.

    Yields:
        Each ranking once, in any order: its place among the M, and its measures.
    """
    groups = list(_groups(of_M, rows))
    with progress("ranking the gallery", gallery.manifest.rows * len(groups)) as counter:
        for group in groups:
            of_group, positives = [of_M[m] for m in group], [positives_M[m] for m in group]
            values = _measured(gallery, joint_MD[group], truths, of_group, positives, measure, counter)
            yield from zip(group, values, strict=True)


def _groups(of_M: Sequence[int], rows: Sequence[int]) -> Iterator[list[int]]:
    """Yield rankings, sorted by truth, in groups of at most ``POSITIVES_AT_ONCE`` rows that are relevant or junk."""
    group: list[int] = []
    held = 0
    for m in sorted(range(len(of_M)), key=of_M.__getitem__):
        count = rows[of_M[m]]
        if group and held + count > POSITIVES_AT_ONCE:
            yield group
            group, held = [], 0
        group.append(m)
        held += count
    if group:
        yield group


def _measured(
    gallery: Gallery,
    joint_MD: np.ndarray,
    truths: Shared[Truths],
    of_M: Sequence[int],
    positives_M: Sequence[int],
    measure: Measure,
    counter: ProgressCounter,
) -> list[Sequence[float]]:
    """Return the measures of each ranking of a group, in which equal truths are neighbours."""
    executor = current_executor()
    read = runs(gallery, max(64, BLOCK_ELEMENTS // joint_MD.shape[1]))
    rankings = executor.run(_rankings, joint_MD, truths, of_M)
    found = executor.reduce(_find_wanted, [(run, rankings) for run in read], _below)
    wanted = executor.run(_sorted, found, rankings)
    counts = executor.reduce(_count_better, [(run, rankings, wanted, counter) for run in read], _sum)
    return executor.run(_measures, counts, wanted, positives_M, measure).get()


def _rankings(joint_MD: np.ndarray, truths: Shared[Truths], of_M: Sequence[int]) -> _Rankings:
    different = truths.get().different
    targets = Targets.of([different[number] for number in dict.fromkeys(of_M)])
    return _Rankings(joint_MD, targets, np.cumsum([0, *Counter(of_M).values()]))


def _below(rows: pa.Table, more: pa.Table) -> pa.Table:
    return pa.concat_tables([rows, more])


def _sum(counts_P: np.ndarray, more_P: np.ndarray) -> np.ndarray:
    return counts_P + more_P


def _sorted(shared: Shared[pa.Table], rankings: Shared[_Rankings]) -> _Wanted:
    """Return what was found, truth by truth."""
    bounds, found = rankings.get().bounds, shared.get().sort_by("truth").combine_chunks()
    starts = np.searchsorted(found["truth"].to_numpy(), np.arange(len(bounds)))
    ids = found["id"].unique()
    ids = ids.take(pc.sort_indices(ids))
    places = pc.index_in(found["id"], value_set=ids).to_numpy()
    junk, scores = found["junk"].to_numpy(), pc.list_flatten(found["scores"]).to_numpy()
    wanted = _Wanted(ids, np.split(places, starts[1:-1]), [], np.split(junk, starts[1:-1]))
    at = 0
    for rows, rankings_of_truth in zip(np.diff(starts), np.diff(bounds), strict=True):
        of_truth = scores[at : at + rows * rankings_of_truth].reshape(rows, rankings_of_truth)
        wanted.scores.append(np.ascontiguousarray(of_truth.T))
        at += of_truth.size
    return wanted


def _find_wanted(run: Run, rankings: Shared[_Rankings]) -> pa.Table:
    """Return the wanted rows among some: ``truth`` (its place), ``id``, ``junk``, ``scores`` in its rankings."""
    joint_MD, targets, bounds = rankings.get()
    schema = pa.schema(
        [("truth", pa.int32()), ("id", pa.string()), ("junk", pa.bool_()), ("scores", pa.list_(pa.float32()))]
    )
    tables = [schema.empty_table()]
    for block in run.blocks(["id", "label", "vlm", "vision"]):
        truths, places, junk = targets.among(block)
        gallery_ND = _vectors(block)
        different, first = np.unique(truths, return_index=True)
        for truth, (start, end) in zip(different, pairwise([*first, len(truths)]), strict=True):
            rows = places[start:end]
            # Products are without rounding error, so each is what it would be among all others.
            of_truth = products(joint_MD[bounds[truth] : bounds[truth + 1]], gallery_ND[rows]).astype(np.float32)
            offsets = np.arange(len(rows) + 1, dtype=np.int32) * len(of_truth)
            scores = pa.ListArray.from_arrays(pa.array(offsets), pa.array(of_truth.T.ravel()))
            numbers = pa.array(np.full(len(rows), truth, np.int32))
            columns = [numbers, block["id"].take(pa.array(rows)), pa.array(junk[start:end]), scores]
            tables.append(pa.table(columns, schema=schema))
    return pa.concat_tables(tables).combine_chunks()


def _count_better(
    run: Run, rankings: Shared[_Rankings], wanted: Shared[_Wanted], counter: ProgressCounter
) -> np.ndarray:
    """Return how many of some rows come before each wanted one, ranking by ranking, (P,) int64."""
    joint_MD = rankings.get().joint_MD
    ids, places_of_truths, scores_of_truths, _ = wanted.get()
    ids_U = ids.to_numpy(zero_copy_only=False)
    scores = [row for of_truth in scores_of_truths for row in of_truth]
    places = [of for of, rows in zip(places_of_truths, scores_of_truths, strict=True) for _ in rows]
    better_P = np.zeros(sum(map(len, scores)), np.int64)
    for block in run.blocks(["id", "vlm", "vision"]):
        places_N, places_U = id_places(block["id"].to_numpy(), ids_U)
        gallery_ND, at_once = _vectors(block), max(1, BLOCK_ELEMENTS // len(block))
        counts: list[np.ndarray] = []
        for start in range(0, len(joint_MD), at_once):
            some = slice(start, start + at_once)
            scores_MN = products(joint_MD[some], gallery_ND).astype(np.float32)
            counts += count_better(scores_MN, places_N, scores[some], [places_U[of] for of in places[some]])
        better_P += np.concatenate(counts)
        counter.add(block.num_rows)
    return better_P


def _measures(
    counts: Shared[np.ndarray], wanted: Shared[_Wanted], positives_M: Sequence[int], measure: Measure
) -> list[Sequence[float]]:
    """Return the measures of each ranking, of how many rows come before its wanted ones."""
    scores, junk = wanted.get()[2:]
    junk_M = [of_truth for of_truth, rankings in zip(junk, scores, strict=True) for _ in rankings]
    ranks_M = np.split(counts.get(), np.cumsum([len(of_ranking) for of_ranking in junk_M])[:-1])
    return [
        measure(without_junk(ranks, is_junk), count)
        for ranks, is_junk, count in zip(ranks_M, junk_M, positives_M, strict=True)
    ]


def best_rows(gallery: Gallery, joint_QD: np.ndarray, k: int) -> list[list[dict[str, Any]]]:
    """Search a gallery exactly, in tasks.

    Args:
        gallery: the gallery to search.
        joint_QD: fused queries (``retrieval.fusion.fused_query``), float32.
        k: how many rows of each query are wanted.

    Returns:
        For each query its k best rows, best first, equal scores by id: ``id``, ``path``, ``label``, ``batch`` and
        ``score``.
    """
    executor = current_executor()
    joint = executor.share(joint_QD)
    best: list[list[dict[str, Any]]] = [[] for _ in joint_QD]
    for found in executor.as_completed(_best_of_run, [(run, joint, k) for run in runs(gallery, ROWS_READ)]):
        best = [_best(rows + more, k) for rows, more in zip(best, found, strict=True)]
    return best


def _best_of_run(run: Run, joint: Shared[np.ndarray], k: int) -> list[list[dict[str, Any]]]:
    """Return for each query its k best of some rows, as ``best_rows``."""
    joint_QD, columns = joint.get(), ["id", "path", "label", "batch"]
    best: list[list[dict[str, Any]]] = [[] for _ in joint_QD]
    for block in run.blocks([*columns, "vlm", "vision"]):
        described = block.select(columns)
        _, id_places_N = np.unique(block["id"].to_numpy(), return_inverse=True)
        for q, scores_N in enumerate(_scores(joint_QD, block)):
            rows = np.lexsort((id_places_N, -scores_N))[:k]
            found = described.take(pa.array(rows)).to_pylist()
            candidates = [row | {"score": float(score)} for row, score in zip(found, scores_N[rows], strict=True)]
            best[q] = _best(best[q] + candidates, k)
    return best


def _best(rows: list[dict[str, Any]], k: int) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (-row["score"], row["id"]))[:k]


def _vectors(rows: pa.Table) -> np.ndarray:
    """Return the joint vectors of rows with the columns ``vlm`` and ``vision``, float16 (N, D)."""
    return np.concatenate([matrix(rows["vlm"]), matrix(rows["vision"])], axis=1)


def _scores(joint_MD: np.ndarray, rows: pa.Table) -> np.ndarray:
    """Return the exact scores of rows with the columns ``vlm`` and ``vision``, float32 (M, N)."""
    return products(joint_MD, _vectors(rows)).astype(np.float32)
