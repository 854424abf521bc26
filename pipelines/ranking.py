"""Exact rankings of a whole gallery, block by block: the ranks of all positives, and the best rows of each query.

Neither queries × gallery nor the gallery itself is ever held. Every positive's exact rank is found in two passes over
blocks of rows: the first collects the scores of all positives, the second counts how many rows of each block come
before each of them (``retrieval.metrics.count_better``), summed where they are counted. Positives of many rankings can
be as many as queries × gallery, so rankings are taken in groups, each of which passes over the gallery.

Shapes: M rankings (systems × queries), N rows of a block, D = D1 + D2 joint dimensions, P positives of all rankings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.progress import ProgressCounter, progress
from pipelines.executor import Shared
from pipelines.running import current_executor
from pipelines.truth import Targets, Truth
from retrieval.artifacts import Gallery
from retrieval.artifacts.columns import matrix
from retrieval.folder import Folder
from retrieval.fusion import products
from retrieval.metrics import count_better, without_junk

BLOCK_ELEMENTS = 4_000_000
"""Scores (M × N) held at once by one worker: 32 MB as float64."""
POSITIVES_AT_ONCE = 2_000_000
"""Positives (P) of a group of rankings: 24 MB of scores and ranks. A ranking that has more is a group of its own."""
_ROWS_READ = 8192
_RUNS, _ROWS_PER_RUN = 16, 65_536
"""A gallery is ranked in so many tasks, or more where each would have more rows than that."""


class _Run(NamedTuple):
    """What one task reads."""

    folder: Folder
    parts: list[str]
    rows: int
    """At once."""

    def blocks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        for part in self.parts:
            yield from self.folder.tables(part, columns, rows=self.rows)


class _Rankings(NamedTuple):
    """What both passes need: the joint queries, sorted by truth, and which rows are wanted by which."""

    joint_MD: np.ndarray
    targets: Targets
    bounds: np.ndarray
    """Where the rankings of each truth begin, and the last one's end."""


class _Wanted(NamedTuple):
    """What the second pass counts rows before: for each truth, its rows' ids, and their scores in each ranking."""

    ids: list[pa.Array]
    scores: list[np.ndarray]


def exact_ranks(
    gallery: Gallery, joint_MD: np.ndarray, truths: Sequence[Truth], rows: Mapping[Truth, int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Rank a gallery by each of M joint queries; yield where its relevant rows are, in groups of rankings.

    Args:
        gallery: the gallery to rank.
        joint_MD: fused queries (``retrieval.fusion.fused_query``), float32.
        truths: of each ranking, which rows are relevant and which are junk.
        rows: how many rows of the gallery are relevant or junk to each.

    Yields:
        Each ranking once, in any order: its place among the M, and the sorted 0-based ranks of the relevant rows that
        the gallery has, int64, in the ranking without its junk.
    """
    numbers = {truth: number for number, truth in enumerate(dict.fromkeys(truths))}
    truth_of_M = [numbers[truth] for truth in truths]
    groups = list(_groups(truth_of_M, [rows[truth] for truth in numbers]))
    with progress("ranking the gallery", gallery.manifest.rows * len(groups)) as counter:
        for group in groups:
            of_group = _ranks(gallery, joint_MD[group], [truths[m] for m in group], counter)
            yield from zip(group, of_group, strict=True)


def _groups(truth_of_M: Sequence[int], rows: Sequence[int]) -> Iterator[list[int]]:
    """Yield rankings, sorted by truth, in groups of at most ``POSITIVES_AT_ONCE`` rows that are relevant or junk."""
    group: list[int] = []
    held = 0
    for m in sorted(range(len(truth_of_M)), key=truth_of_M.__getitem__):
        count = rows[truth_of_M[m]]
        if group and held + count > POSITIVES_AT_ONCE:
            yield group
            group, held = [], 0
        group.append(m)
        held += count
    if group:
        yield group


def _ranks(
    gallery: Gallery, joint_MD: np.ndarray, truths: Sequence[Truth], counter: ProgressCounter
) -> list[np.ndarray]:
    """Return the sorted ranks of the relevant rows of each ranking of a group, in which equal truths are neighbours."""
    executor = current_executor()
    different = list(dict.fromkeys(truths))
    bounds = np.cumsum([0, *Counter(truths).values()])
    rankings = executor.share(_Rankings(joint_MD, Targets.of(different), bounds))
    runs = _runs(gallery, max(64, BLOCK_ELEMENTS // len(joint_MD)))

    found = pa.concat_tables(executor.as_completed(_find_wanted, [(run, rankings) for run in runs]))
    found = found.sort_by("truth").combine_chunks()
    starts = np.searchsorted(found["truth"].to_numpy(), np.arange(len(different) + 1))
    ids, scores, junk = [], [], []
    for truth, (start, end) in enumerate(pairwise(starts)):
        rows = found.slice(start, end - start)
        ids.append(pa.concat_arrays([pa.array([], pa.string()), *rows["id"].chunks]))
        of_rows = pc.list_flatten(rows["scores"]).to_numpy().reshape(len(rows), bounds[truth + 1] - bounds[truth])
        scores.append(np.ascontiguousarray(of_rows.T))
        junk += [rows["junk"].to_numpy()] * len(scores[-1])
    wanted = executor.share(_Wanted(ids, scores))
    del found, ids, scores

    ranks_P = np.zeros(sum(map(len, junk)), np.int64)
    for counts_P in executor.as_completed(_count_better, [(run, rankings, wanted, counter) for run in runs]):
        ranks_P += counts_P
    of_rankings = np.split(ranks_P, np.cumsum([len(of_ranking) for of_ranking in junk])[:-1])
    return [without_junk(ranks, is_junk) for ranks, is_junk in zip(of_rankings, junk, strict=True)]


def _find_wanted(run: _Run, rankings: Shared[_Rankings]) -> pa.Table:
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
    run: _Run, rankings: Shared[_Rankings], wanted: Shared[_Wanted], counter: ProgressCounter
) -> np.ndarray:
    """Return how many of some rows come before each wanted one, ranking by ranking, (P,) int64."""
    joint_MD = rankings.get().joint_MD
    ids_of_truths, scores_of_truths = wanted.get()
    scores = [row for of_truth in scores_of_truths for row in of_truth]
    ids: list[np.ndarray] = []
    for ids_of_truth, of_truth in zip(ids_of_truths, scores_of_truths, strict=True):
        ids += [ids_of_truth.to_numpy(zero_copy_only=False)] * len(of_truth)
    better_P = np.zeros(sum(map(len, scores)), np.int64)
    for block in run.blocks(["id", "vlm", "vision"]):
        better_P += np.concatenate(count_better(_scores(joint_MD, block), block["id"].to_numpy(), scores, ids))
        counter.add(block.num_rows)
    return better_P


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
    for found in executor.as_completed(_best_of_run, [(run, joint, k) for run in _runs(gallery, _ROWS_READ)]):
        best = [_best(rows + more, k) for rows, more in zip(best, found, strict=True)]
    return best


def _best_of_run(run: _Run, joint: Shared[np.ndarray], k: int) -> list[list[dict[str, Any]]]:
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


def _runs(gallery: Gallery, rows: int) -> list[_Run]:
    parts = gallery.parts()
    count = min(len(parts), max(_RUNS, gallery.manifest.rows // _ROWS_PER_RUN))
    bounds = [i * len(parts) // count for i in range(count + 1)]
    return [_Run(gallery.folder, parts[start:end], rows) for start, end in pairwise(bounds)]


def _vectors(rows: pa.Table) -> np.ndarray:
    """Return the joint vectors of rows with the columns ``vlm`` and ``vision``, float16 (N, D)."""
    return np.concatenate([matrix(rows["vlm"]), matrix(rows["vision"])], axis=1)


def _scores(joint_MD: np.ndarray, rows: pa.Table) -> np.ndarray:
    """Return the exact scores of rows with the columns ``vlm`` and ``vision``, float32 (M, N)."""
    return products(joint_MD, _vectors(rows)).astype(np.float32)
