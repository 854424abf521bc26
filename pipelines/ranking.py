"""Exact rankings of a whole gallery, block by block: the ranks of all positives, and the best rows of each query.

Neither queries × gallery nor the gallery itself is ever held. Every positive's exact rank is found in two passes over
blocks of rows: the first collects the scores of all positives, the second counts how many rows of each block come
before each of them (``retrieval.metrics.count_better``).

Shapes: M rankings (systems × queries), N rows of a block, D = D1 + D2 joint dimensions, P positives of all rankings.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.progress import ProgressCounter, progress
from pipelines.executor import Each, Files, Shared, current_executor
from retrieval.artifacts import Gallery
from retrieval.artifacts.columns import fixed_size_list, matrix
from retrieval.fusion import products
from retrieval.metrics import count_better

BLOCK_ELEMENTS = 4_000_000
"""Scores (M × N) held at once by one worker: 32 MB as float64."""
_ROWS_READ = 8192


class _Rankings(NamedTuple):
    """What both passes need: the joint queries, and which rows are positives of which."""

    joint_MD: np.ndarray
    labels: pa.Array
    """The labels that are looked for, each once."""
    label_of_M: np.ndarray
    """Place in ``labels`` of each ranking's label."""


class _Positives(NamedTuple):
    """What the second pass counts rows before: for each ranking, the scores and ids of its positives."""

    scores: list[np.ndarray]
    ids: list[np.ndarray]


def exact_ranks(gallery: Gallery, joint_MD: np.ndarray, labels: Sequence[str]) -> list[np.ndarray]:
    """Rank a gallery by each of M joint queries; return where its positives are.

    Args:
        gallery: the gallery to rank.
        joint_MD: fused queries (``retrieval.fusion.fused_query``), float32.
        labels: of each ranking, the label of the rows that are positives.

    Returns:
        For each ranking the sorted 0-based ranks of its positives, int64.
    """
    executor = current_executor()
    rows = max(64, BLOCK_ELEMENTS // len(joint_MD))
    names, label_of_M = np.unique(np.array(labels, object), return_inverse=True)
    rankings = executor.share(_Rankings(joint_MD, pa.array(names, pa.string()), label_of_M))

    source = Files(gallery.folder, gallery.parts(), ["id", "label", "vlm", "vision"])
    first = Each(partial(_find_positives, rankings=rankings), rows)
    found = pa.concat_tables(executor.tables(source, first)).sort_by([("ranking", "ascending"), ("id", "ascending")])
    bounds = np.searchsorted(found["ranking"].to_numpy(), np.arange(len(joint_MD) + 1))
    scores_P, ids_P = found["score"].to_numpy(), found["id"].to_numpy()
    of_rankings = list(pairwise(bounds))
    positives = executor.share(
        _Positives([scores_P[a:b] for a, b in of_rankings], [ids_P[a:b] for a, b in of_rankings])
    )

    ranks_P = np.zeros(len(ids_P), np.int64)
    with progress("ranking the gallery", gallery.manifest.rows) as counter:
        second = Each(partial(_count_better, rankings=rankings, positives=positives, counter=counter), rows)
        for block in executor.tables(source._replace(columns=["id", "vlm", "vision"]), second):
            ranks_P += matrix(block["better"]).sum(axis=0)
    return [np.sort(ranks_P[a:b]) for a, b in of_rankings]


def _find_positives(rows: pa.Table, rankings: Shared[_Rankings]) -> pa.Table:
    """Return the positives among the rows of one block: ``ranking``, ``id``, ``score``."""
    joint_MD, labels, label_of_M = rankings.get()
    label_of_N = pc.fill_null(pc.index_in(rows["label"], value_set=labels), -1).to_numpy()
    ranking, row = np.nonzero(label_of_M[:, None] == label_of_N[None, :])
    scores_MN = _scores(joint_MD, rows)
    return pa.table({"ranking": ranking, "id": rows["id"].take(pa.array(row)), "score": scores_MN[ranking, row]})


def _count_better(
    rows: pa.Table, rankings: Shared[_Rankings], positives: Shared[_Positives], counter: ProgressCounter
) -> pa.Table:
    """Return how many rows of one block come before each positive: one row, ``better``, of P counts."""
    scores_MN = _scores(rankings.get().joint_MD, rows)
    counts = count_better(scores_MN, rows["id"].to_numpy(), *positives.get())
    counter.add(rows.num_rows)
    return pa.table({"better": fixed_size_list(np.concatenate(counts)[None, :])})


def best_rows(gallery: Gallery, joint_QD: np.ndarray, k: int) -> list[list[dict[str, Any]]]:
    """Search a gallery exactly, in this process.

    Args:
        gallery: the gallery to search.
        joint_QD: fused queries (``retrieval.fusion.fused_query``), float32.
        k: how many rows of each query are wanted.

    Returns:
        For each query its k best rows, best first, equal scores by id: ``id``, ``path``, ``label``, ``batch`` and
        ``score``.
    """
    columns = ["id", "path", "label", "batch"]
    best: list[list[dict[str, Any]]] = [[] for _ in joint_QD]
    for block in gallery.tables([*columns, "vlm", "vision"], rows=_ROWS_READ):
        described = block.select(columns)
        _, id_places_N = np.unique(block["id"].to_numpy(), return_inverse=True)
        for q, scores_N in enumerate(_scores(joint_QD, block)):
            rows = np.lexsort((id_places_N, -scores_N))[:k]
            found = described.take(pa.array(rows)).to_pylist()
            candidates = [row | {"score": float(score)} for row, score in zip(found, scores_N[rows], strict=True)]
            best[q] = sorted(best[q] + candidates, key=lambda row: (-row["score"], row["id"]))[:k]
    return best


def _scores(joint_MD: np.ndarray, rows: pa.Table) -> np.ndarray:
    """Return the exact scores of rows with the columns ``vlm`` and ``vision``, float32 (M, N)."""
    gallery_ND = np.concatenate([matrix(rows["vlm"]), matrix(rows["vision"])], axis=1)
    return products(joint_MD, gallery_ND).astype(np.float32)
