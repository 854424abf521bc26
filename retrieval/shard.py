"""One immutable FAISS shard over joint rows [c ; d], searched by inner product and rescored exactly.

FAISS proposes candidates; their scores are then computed from the float16 vectors without rounding error (see
`fusion`), so every score, from any kind of index and any shard, is the exact one, and a row's score does not
depend on the shard it lies in. Rows are kept in ascending id order, which makes "equal scores by ascending
id" the same as "by ascending row". A flat shard gives the exact answer, ties included: the candidates are
widened until no unseen row can reach the k-th score.

How far an approximate index must look depends on the data and on λ (at λ = 0 the vision half of the
clustering is noise), so `build` measures it: the smallest effort (nprobe or efSearch) that reaches
RECALL_TARGET is kept for each λ of LAMBDA_GRID, and a query, which carries its λ, gets the effort of its own
λ. Shapes: Q queries, N rows, D = D1 + D2 dimensions (VLM, vision).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from retrieval.fusion import fused_query, on_grid, products, unit
from retrieval.hits import Hits, checked_k
from retrieval.metrics import neighbour_recall
from retrieval.shard_files import (
    INDEX,
    LAMBDA_GRID,
    RECORD,
    ROWS,
    VECTORS,
    check_bytes,
    check_index_header,
    file_record,
    naming,
    read_record,
)

FLAT_UP_TO: Final = 50_000
# Of sampled queries, at build; above the 0.95 that is promised, since real queries differ from them.
RECALL_TARGET: Final = 0.97
_TUNING_QUERIES: Final = 100
# Rows are expanded to float64 (scan) or float32 (add) this many at a time.
_BLOCK: Final = 4096
# FAISS's own minimum; with fewer it warns that centroids are badly placed, and refuses below one.
_ROWS_PER_CENTROID: Final = 39


@dataclass(frozen=True)
class SearchParams:
    """Effort of one search, in place of the measured one; an index without such a parameter ignores it."""

    nprobe: int | None = None
    ef_search: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("nprobe", self.nprobe), ("ef_search", self.ef_search)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


class Shard:
    """Made by `build` or `load`; nothing changes it afterwards, so any number of threads may search it.

    Attributes:
        rows: the table of its N rows, column `id` first and ascending.
        factory: the FAISS factory string it was really built with, after `fitted_factory`.
        vlm_dim: D1, where c ends and d begins.
        efforts: int64 (5,), the measured nprobe or efSearch by LAMBDA_GRID; empty when the index has neither.
    """

    def __init__(
        self,
        index: faiss.Index,
        vectors_ND: NDArray[np.float16],
        rows: pa.Table,
        *,
        vlm_dim: int,
        factory: str,
        efforts: Sequence[int] = (),
    ) -> None:
        self.rows = rows
        self.factory = factory
        self.vlm_dim = vlm_dim
        self.efforts = np.asarray(efforts, dtype=np.int64)
        self._index = index
        self._vectors = vectors_ND
        self._is_flat = isinstance(index, faiss.IndexFlat)

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def dim(self) -> int:
        return self._vectors.shape[1]

    @property
    def vectors(self) -> NDArray[np.float16]:
        """The joint rows [c ; d], float16 (N, D), in the order of `rows`; mapped from the file, do not write."""
        return self._vectors

    @classmethod
    def build(
        cls,
        ids: Sequence[str],
        joint_ND: NDArray[np.float16] | NDArray[np.float32],
        *,
        vlm_dim: int,
        factory: str = "auto",
        rows: pa.Table | None = None,
        seed: int = 0,
    ) -> Shard:
        """A shard of N ≥ 0 rows, the same whatever their order.

        Args:
            ids: N different strings.
            joint_ND: [c ; d], each half of unit norm; kept as float16.
            vlm_dim: D1, where c ends and d begins.
            factory: `auto` or a FAISS factory string (Flat, IVF1024,Flat, IVF1024,SQ8, HNSW32,
                IVF1024,PQ64…); fitted to few rows as in `fitted_factory`.
            rows: further columns (path, label…), in the order of ids.
            seed: of the training sample, the k-means and the tuning queries.
        """
        vectors = np.asarray(joint_ND)
        table, order = _sorted_table(ids, rows)
        if vectors.ndim != 2 or len(vectors) != len(order) or vectors.dtype not in (np.float16, np.float32):
            raise ValueError(
                f"a shard of {len(order)} ids takes float16 or float32 vectors ({len(order)}, D), "
                f"got {vectors.dtype} {vectors.shape}"
            )
        if not 0 < vlm_dim < vectors.shape[1]:
            raise ValueError(f"vlm_dim must split the {vectors.shape[1]} dimensions in two, {vlm_dim} does not")
        vectors = vectors.astype(np.float16)[order]
        _check_unit_halves(vectors, vlm_dim, table)
        factory = fitted_factory(factory, len(vectors), vectors.shape[1])
        index = _filled_index(vectors, factory, seed)
        shard = cls(index, vectors, table, vlm_dim=vlm_dim, factory=factory)
        shard.efforts = shard._measured_efforts(seed)
        return shard

    def save(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Write the shard's four files into `folder`; shard.json, the last, records the other three.

        Returns {file name: {"bytes": int, "sha256": hex}} of all four, for the manifest of an index.
        ValueError for a mapped shard: FAISS would write a file that points to the one it is mapped from.
        """
        if isinstance(self._vectors, np.memmap):
            raise ValueError("this shard is mapped from files already; copy those, or load it with mmap=False")
        folder.mkdir(parents=True, exist_ok=True)
        faiss.write_index(self._index, str(folder / INDEX))
        np.save(folder / VECTORS, self._vectors, allow_pickle=False)
        pq.write_table(self.rows, folder / ROWS)
        files = {name: file_record(folder / name) for name in (INDEX, VECTORS, ROWS)}
        record = {
            "rows": len(self),
            "dim": self.dim,
            "vlm_dim": self.vlm_dim,
            "factory": self.factory,
            "efforts": self.efforts.tolist(),
            "files": files,
        }
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return {**files, RECORD: file_record(folder / RECORD)}

    @classmethod
    def load(cls, folder: Path, *, mmap: bool = True) -> Shard:
        """A saved shard, its index and vectors mapped into memory rather than read unless `mmap` is off.

        Sizes and headers are checked against shard.json before anything is allocated; contents are checked by
        `verify`. ValueError names the file that is missing, cut short or of another shard.
        """
        record = read_record(folder)
        for name, expected in record["files"].items():
            check_bytes(folder / name, expected["bytes"])
        rows, dim = record["rows"], record["dim"]
        check_index_header(folder / INDEX, rows, dim)
        flags = _map_flags(record["factory"]) if mmap else 0
        with naming(folder / INDEX):
            index = faiss.read_index(str(folder / INDEX), flags)
        with naming(folder / VECTORS):
            vectors = np.load(folder / VECTORS, mmap_mode="r" if mmap else None, allow_pickle=False)
        with naming(folder / ROWS):
            table = pq.read_table(folder / ROWS)
        if vectors.shape != (rows, dim) or vectors.dtype != np.float16:
            raise ValueError(f"{folder / VECTORS} holds {vectors.dtype} {vectors.shape}, not float16 ({rows}, {dim})")
        if table.num_rows != rows or "id" not in table.column_names:
            raise ValueError(f"{folder / ROWS} holds {table.num_rows} rows {table.column_names}, not {rows} with an id")
        return cls(
            index,
            vectors,
            table,
            vlm_dim=record["vlm_dim"],
            factory=record["factory"],
            efforts=record["efforts"],
        )

    def search(
        self, query_QD: ArrayLike, k: int, *, params: SearchParams | None = None, rescore: int | None = None
    ) -> Hits:
        """The min(k, N) best rows of each query [(1 - λ)t ; λv], with exact scores.

        Args:
            query_QD: (Q, D) or (D,), float32, of norm up to 16.
            k: from 1; as large as one likes.
            params: effort in place of the measured one.
            rescore: candidates scored exactly for each query, never fewer than 2k, so that a tie at the cut
                is seen. By default 200 or 5k, whichever is more; a flat shard needs no more than 2k.
        """
        query = self._checked_query(query_QD)
        k = min(checked_k(k), len(self))
        depth = max(2 * k, rescore or (0 if self._is_flat else max(200, 5 * k)))
        best = np.empty((len(query), k), dtype=np.int64)
        pending = np.arange(len(query))
        to_scan: list[int] = []
        while pending.size and depth < len(self):
            scores, candidates = self._candidates(query[pending], depth, params)
            to_widen: list[int] = []
            for q, found, approximate in zip(pending, candidates, scores, strict=True):
                settled = self._settle(query[q], found, approximate, k)
                if settled is not None:
                    best[q] = settled
                else:
                    (to_scan if found[-1] < 0 else to_widen).append(int(q))
            pending = np.asarray(to_widen, dtype=np.int64)
            depth *= 4
        rest = [*to_scan, *pending]
        if rest:
            best[rest] = self._scan(query[rest], k)
        return self._hits(query, best)

    def exact(self, query_QD: ArrayLike, k: int) -> Hits:
        """What `search` should find: the true best rows, by going through all of them in blocks."""
        query = self._checked_query(query_QD)
        return self._hits(query, self._scan(query, min(checked_k(k), len(self))))

    def _checked_query(self, query_QD: ArrayLike) -> NDArray[np.float32]:
        query = np.atleast_2d(np.asarray(query_QD, dtype=np.float32))
        if query.ndim != 2 or query.shape[1] != self.dim:
            raise ValueError(
                f"the query has shape {query.shape}, this shard has {self.dim} dimensions "
                f"({self.vlm_dim} vlm + {self.dim - self.vlm_dim} vision)"
            )
        if not np.all(np.linalg.norm(query, axis=1) <= 16):  # also false for NaN
            raise ValueError("a query must be finite and of norm up to 16; a fused query has norm up to 1")
        return on_grid(query).astype(np.float32)

    def _candidates(
        self, query: NDArray[np.float32], depth: int, params: SearchParams | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Approximate scores and rows (Q, depth), best first, -1 where the index found no more."""
        if not _has_effort(self._index):
            return self._index.search(query, depth)
        efforts = self._efforts_of(query, params)
        scores = np.empty((len(query), depth), dtype=np.float32)
        rows = np.empty((len(query), depth), dtype=np.int64)
        for effort in np.unique(efforts):
            of = efforts == effort
            scores[of], rows[of] = self._index.search(
                query[of], depth, params=_faiss_params(self._index, int(effort), depth)
            )
        return scores, rows

    def _efforts_of(self, query: NDArray[np.float32], params: SearchParams | None) -> NDArray[np.int64]:
        """(Q,): what was asked for, or the more careful of the two measured efforts around each query's λ."""
        asked = params and (params.nprobe if _is_ivf(self._index) else params.ef_search)
        if asked:
            return np.full(len(query), asked)
        text, visual = (np.linalg.norm(half, axis=1) for half in np.split(query, [self.vlm_dim], axis=1))
        # t and v are unit vectors, so the halves have norms 1 - λ and λ. For a zero query any λ will do.
        lam = visual / np.maximum(text + visual, np.finfo(np.float32).tiny)
        place = np.round(lam * (len(LAMBDA_GRID) - 1), 3)
        return np.maximum(self.efforts[np.floor(place).astype(int)], self.efforts[np.ceil(place).astype(int)])

    def _settle(
        self, query: NDArray[np.float32], candidates: NDArray[np.int64], scores: NDArray[np.float32], k: int
    ) -> NDArray[np.int64] | None:
        """The k best rows among one query's candidates, or None when other rows might belong there."""
        rows = np.sort(candidates[candidates >= 0])
        if len(rows) < k:
            return None
        exact = products(query[None], self._vectors[rows])[0].astype(np.float32)
        best = _best(exact, k)
        if len(rows) == len(candidates):
            # Rows beyond a flat index's last candidate score at most as it did, up to the rounding of a
            # float32 inner product, below D·2⁻²⁴·‖q‖·‖x‖ (Higham, "Accuracy and Stability of Numerical
            # Algorithms", §3.1), and of the exact scores (the 2). An approximate index promises nothing, but
            # duplicates share their approximate scores too: widen while the cut runs through a tie.
            rounding = 1.02 * math.sqrt(2) * (self.dim + 2) * 2.0**-24 * float(np.linalg.norm(query))
            reachable = float(scores[-1]) + rounding if self._is_flat else float(exact.min())
            if float(exact[best[-1]]) <= reachable:
                return None
        return rows[best]

    def _scan(self, query: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Rows (Q, k) of the exact k best, in memory O(Q·(k + block))."""
        best_scores = np.empty((len(query), 0), dtype=np.float32)
        best_rows = np.empty((len(query), 0), dtype=np.int64)
        for start in range(0, len(self), _BLOCK):
            block = products(query, self._vectors[start : start + _BLOCK]).astype(np.float32)
            numbers = np.broadcast_to(np.arange(start, start + block.shape[1]), block.shape)
            scores = np.concatenate([best_scores, block], axis=1)
            rows = np.concatenate([best_rows, numbers], axis=1)
            keep = np.empty((len(query), min(k, scores.shape[1])), dtype=np.int64)
            for q, row in enumerate(scores):
                keep[q] = _best(row, k)
            best_scores = np.take_along_axis(scores, keep, axis=1)
            best_rows = np.take_along_axis(rows, keep, axis=1)
        return best_rows

    def _hits(self, query: NDArray[np.float32], rows_Qk: NDArray[np.int64]) -> Hits:
        text = np.empty(rows_Qk.shape)
        visual = np.empty(rows_Qk.shape)
        for q, rows in enumerate(rows_Qk):
            vectors = self._vectors[rows]
            text[q] = products(query[q : q + 1, : self.vlm_dim], vectors[:, : self.vlm_dim])[0]
            visual[q] = products(query[q : q + 1, self.vlm_dim :], vectors[:, self.vlm_dim :])[0]
        ids = self.rows["id"].take(pa.array(rows_Qk.ravel())).to_numpy().astype(object).reshape(rows_Qk.shape)
        return Hits(
            ids=ids,
            rows=rows_Qk,
            scores=(text + visual).astype(np.float32),
            text_part=text.astype(np.float32),
            visual_part=visual.astype(np.float32),
            shards=np.zeros(rows_Qk.shape, dtype=np.int32),
        )

    def _measured_efforts(self, seed: int) -> NDArray[np.int64]:
        """For each λ the smallest power of two with which sampled queries reach RECALL_TARGET of recall@10."""
        if not len(self) or not _has_effort(self._index):
            return np.empty(0, dtype=np.int64)
        lowest, highest = (8, _inner(self._index).nlist) if _is_ivf(self._index) else (32, 4096)
        rng = np.random.default_rng(seed)
        sample = self._vectors[rng.integers(len(self), size=_TUNING_QUERIES)]
        queries = sample_queries(sample, self.vlm_dim, rng)
        k = min(10, len(self))
        truths = np.split(self.exact(np.concatenate(queries), k).ids, len(LAMBDA_GRID))
        efforts = []
        for query, truth in zip(queries, truths, strict=True):
            effort = lowest
            while effort < highest:
                params = SearchParams(nprobe=effort, ef_search=effort)
                if neighbour_recall(self.search(query, k, params=params).ids, truth) >= RECALL_TARGET:
                    break
                effort *= 2
            efforts.append(min(effort, highest))
        return np.asarray(efforts, dtype=np.int64)


def sample_queries(joint_ND: NDArray, vlm_dim: int, rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """Queries to measure recall with, made from gallery rows: for each λ of LAMBDA_GRID float32 (N, D).

    Noise of twice a row's norm is added to each half (cosine to the row about 0.45), because real queries come
    from text and from imagined images and lie well off the gallery.
    """
    halves = np.split(joint_ND.astype(np.float32), [vlm_dim], axis=1)
    text, visual = (unit(half + 2 * unit(rng.standard_normal(half.shape))) for half in halves)
    return [fused_query(text, visual, weight) for weight in LAMBDA_GRID]


def fitted_factory(factory: str, rows: int, dim: int) -> str:
    """The FAISS factory string for this many rows; ValueError if FAISS knows none such for D dimensions.

    `auto` is Flat up to FLAT_UP_TO rows, then IVF with 4·√N lists of 8-bit codes. Any other is kept, except
    that k-means is not given fewer than 39 rows a centroid, FAISS's minimum: IVF gets fewer lists, and what
    cannot be trained at all (PQ, or IVF with under 39 rows) becomes Flat, which is exact and at such sizes
    quick.
    """
    if factory == "auto":
        factory = "Flat" if rows <= FLAT_UP_TO else f"IVF{4 * math.isqrt(rows)},SQ8"
    kind = _inner(_new_index(factory, dim))
    if isinstance(kind, faiss.IndexRefine | faiss.IndexIDMap):
        raise ValueError(
            f"index factory {factory!r}: leave out RFlat, Refine and IDMap; a shard rescores and keeps ids by itself"
        )
    codebook = re.search(r"(?<!O)PQ\d+(?:x(\d+))?", factory)
    if codebook and rows < _ROWS_PER_CENTROID * 2 ** int(codebook[1] or 8):
        return "Flat"
    lists = re.search(r"IVF(\d+)", factory)
    if lists and rows < _ROWS_PER_CENTROID * int(lists[1]):
        fewer = rows // _ROWS_PER_CENTROID
        return factory.replace(lists[0], f"IVF{fewer}") if fewer else "Flat"
    return factory


def _best(scores_N: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Places of the k highest scores, highest first; equal scores by ascending place, at the cut as well."""
    if k < len(scores_N):
        cut = np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k]
        above = np.flatnonzero(scores_N > cut)
        kept = np.concatenate([above, np.flatnonzero(scores_N == cut)[: k - len(above)]])
    else:
        kept = np.arange(len(scores_N))
    return kept[np.lexsort((kept, -scores_N[kept]))]


def _sorted_table(ids: Sequence[str], rows: pa.Table | None) -> tuple[pa.Table, NDArray[np.int64]]:
    """The row table in ascending id order (by code point) and the order that brought it there."""
    try:
        names = pa.array(ids, pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"ids must be strings: {error}") from error
    if names.null_count:
        raise ValueError(f"{names.null_count} of {len(names)} ids are missing")
    if rows is not None and rows.num_rows != len(names):
        raise ValueError(f"{len(names)} ids do not fit a row table of {rows.num_rows} rows")
    if rows is not None and "id" in rows.column_names and rows["id"].to_pylist() != names.to_pylist():
        raise ValueError("the row table's id column holds other ids, or in another order, than were given")
    values = names.to_numpy(zero_copy_only=False)
    order = np.argsort(values, kind="stable")
    values = values[order]
    twice = np.flatnonzero(values[1:] == values[:-1])
    if twice.size:
        raise ValueError(f"ids must differ, {values[twice[0]]!r} comes more than once ({twice.size} repetitions)")
    columns = {"id": names}
    if rows is not None:
        columns |= {name: rows[name] for name in rows.column_names if name != "id"}
    return pa.table(columns).take(pa.array(order)), order


def _check_unit_halves(vectors: NDArray[np.float16], vlm_dim: int, table: pa.Table) -> None:
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK].astype(np.float32)
        for half, name in ((block[:, :vlm_dim], "vlm"), (block[:, vlm_dim:], "vision")):
            norms = np.linalg.norm(half, axis=1)
            bad = np.flatnonzero(~(np.abs(norms - 1) < 0.01))  # also where the norm is NaN
            if bad.size:
                row_id = table["id"][start + int(bad[0])].as_py()
                raise ValueError(
                    f"the {name} vector of row {row_id!r} has norm {norms[bad[0]]:.4g}, "
                    "both halves of a joint row must have norm 1"
                )


def _new_index(factory: str, dim: int) -> faiss.Index:
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        # FAISS's messages are "Error in <C++ signature> at <source file>: <what is wrong>".
        reason = re.sub(r"^.* at \S+:\d+: ", "", str(error))
        raise ValueError(f"index factory {factory!r} does not suit {dim} dimensions: {reason}") from error


def _filled_index(vectors: NDArray[np.float16], factory: str, seed: int) -> faiss.Index:
    index = _new_index(factory, vectors.shape[1])
    if not index.is_trained:
        if _is_ivf(index):
            # Ten rounds over 64 rows a list, not FAISS's 25 over 256: a tenth of the time, and the efforts
            # that are measured afterwards make up for lists that are placed a little worse.
            kmeans = _inner(index).cp
            kmeans.seed, kmeans.niter, kmeans.max_points_per_centroid = seed, 10, 64
            wanted = max(64 * _inner(index).nlist, FLAT_UP_TO)
        else:
            wanted = FLAT_UP_TO
            if isinstance(index, faiss.IndexPQ):
                # Most of PQ's training time, for a filter that is not used here.
                index.do_polysemous_training = False  # type: ignore[attr-defined]
        sample = np.random.default_rng(seed).permutation(len(vectors))[:wanted]
        index.train(vectors[np.sort(sample)].astype(np.float32))
    for start in range(0, len(vectors), _BLOCK):
        index.add(vectors[start : start + _BLOCK].astype(np.float32))
    return index


def _inner(index: faiss.Index) -> Any:
    """The index that searches, behind a rotation or projection (OPQ, PCA) if there is one."""
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def _is_ivf(index: faiss.Index) -> bool:
    return isinstance(_inner(index), faiss.IndexIVF)


def _has_effort(index: faiss.Index) -> bool:
    return isinstance(_inner(index), faiss.IndexIVF | faiss.IndexHNSW)


def _faiss_params(index: faiss.Index, effort: int, depth: int) -> faiss.SearchParameters:
    """Parameters of one call; the index itself is shared by concurrent searches and never touched."""
    if _is_ivf(index):
        params = faiss.SearchParametersIVF(nprobe=effort)  # type: ignore[call-arg]
    else:
        params = faiss.SearchParametersHNSW(efSearch=max(effort, depth))  # type: ignore[attr-defined]
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=params)  # type: ignore[call-arg]
    return params


def _map_flags(factory: str) -> int:
    # FAISS maps inverted lists in one way and the codes of all other kinds in another; both at once fail.
    return faiss.IO_FLAG_READ_ONLY | (faiss.IO_FLAG_MMAP if "IVF" in factory else faiss.IO_FLAG_MMAP_IFC)
