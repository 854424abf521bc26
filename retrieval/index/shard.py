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

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from retrieval.fusion import fused_query, on_grid, products, unit
from retrieval.index.files import (
    INDEX,
    LAMBDA_GRID,
    ROWS,
    VECTORS,
    check_bytes,
    check_index_header,
    naming,
    read_index,
    read_record,
    write_record,
)
from retrieval.index.hits import Hits, checked_k
from retrieval.index.kinds import (
    fitted_factory,
    has_effort,
    has_selector,
    inner,
    is_ivf,
    map_flags,
    search_parameters,
    train,
    training_rows,
)
from retrieval.metrics import neighbour_recall

# Of sampled queries, at build; above the 0.95 that is promised, since real queries differ from them.
RECALL_TARGET: Final = 0.97
RECALL_AT: Final = (10, 100)
_TUNING_QUERIES: Final = 100
_NEIGHBOURS: Final = 10
# Rows are expanded to float64 (scan, checks) this many at a time, and to float32 (add, first pass of exact) this many.
_BLOCK: Final = 4096
_FLOAT32_BLOCK: Final = 16_384
# Deeper than this FAISS's selection of the best takes longer than the products it saves.
_SELECTED_UP_TO: Final = 2048


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
        alive: bool (N,), false for the rows that were removed: they lie in `rows` and `vectors`, and are never found.
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
        removed: Collection[str] | pa.Array = (),
    ) -> None:
        self.rows = rows
        self.factory = factory
        self.vlm_dim = vlm_dim
        self.efforts = np.asarray(efforts, dtype=np.int64)
        self._index = index
        self._vectors = vectors_ND
        self._is_flat = isinstance(index, faiss.IndexFlat)
        self.alive = _not_in(removed, rows)
        self._count = int(np.count_nonzero(self.alive))
        self._selector = None
        if self._count < len(vectors_ND) and has_selector(index):
            bitmap: Any = np.packbits(self.alive, bitorder="little")
            self._selector = faiss.IDSelectorBitmap(bitmap)  # type: ignore[call-arg]

    def __len__(self) -> int:
        """Rows that can be found; `rows` and `vectors` have the removed ones as well."""
        return self._count

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
        for start in range(0, len(vectors), _BLOCK):
            block = slice(start, start + _BLOCK)
            check_unit_halves(vectors[block], vlm_dim, table["id"][block])
        factory = fitted_factory(factory, len(vectors), vectors.shape[1])
        index = train(training_sample(vectors, factory, seed), factory, seed=seed)
        fill(index, vectors)
        shard = cls(index, vectors, table, vlm_dim=vlm_dim, factory=factory)
        shard.measure_efforts(seed)
        return shard

    def save(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Write the shard's four files into `folder`; shard.json, the last, records the other three.

        Returns {file name: {"bytes": int, "sha256": hex}} of all four, for the manifest of an index. Removed rows are
        saved like the others: which they are is for `load` to be told.
        ValueError for a mapped shard: FAISS would write a file that points to the one it is mapped from.
        """
        if isinstance(self._vectors, np.memmap):
            raise ValueError("this shard is mapped from files already; copy those, or load it with mmap=False")
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / VECTORS, self._vectors, allow_pickle=False)
        return self.save_beside_vectors(folder)

    def save_beside_vectors(self, folder: Path, *, duplicates: int = 0) -> dict[str, dict[str, Any]]:
        """What `save` does, where vectors.npy lies in `folder` already; `duplicates` is kept in shard.json."""
        faiss.write_index(self._index, str(folder / INDEX))
        pq.write_table(self.rows, folder / ROWS)
        return write_record(
            folder,
            {
                "rows": len(self._vectors),
                "dim": self.dim,
                "vlm_dim": self.vlm_dim,
                "factory": self.factory,
                "efforts": self.efforts.tolist(),
                "duplicates": duplicates,
            },
        )

    @classmethod
    def load(cls, folder: Path, *, mmap: bool = True, removed: Collection[str] | pa.Array = ()) -> Shard:
        """A saved shard, its index and vectors mapped into memory rather than read unless `mmap` is off.

        Rows whose ids are among `removed` are never found; ids of other shards among them do not matter.
        Sizes and headers are checked against shard.json before anything is allocated; contents are checked by
        `verify`. ValueError names the file that is missing, cut short or of another shard.
        """
        record = read_record(folder)
        for name, expected in record["files"].items():
            check_bytes(folder / name, expected["bytes"])
        rows, dim = record["rows"], record["dim"]
        check_index_header(folder / INDEX, rows, dim, record["factory"])
        index = read_index(folder / INDEX, record["factory"], map_flags(record["factory"]) if mmap else 0)
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
            removed=removed,
        )

    def search(
        self, query_QD: ArrayLike, k: int, *, params: SearchParams | None = None, rescore: int | None = None
    ) -> Hits:
        """The min(k, len(self)) best rows of each query [(1 - λ)t ; λv], with exact scores.

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
                settled = self._settle(query[q], found, approximate, k, bounded=self._is_flat)
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
        k = min(checked_k(k), len(self))
        depth = 2 * k
        if not 0 < depth <= min(_SELECTED_UP_TO, len(self) - 1):
            return self._hits(query, self._scan(query, k))
        # In float32 first, which takes a tenth of the time; `_settle` says where that could not tell rows apart.
        scores = np.full((len(query), depth), -np.inf, dtype=np.float32)
        rows = np.full((len(query), depth), -1, dtype=np.int64)
        for numbers in self._alive_blocks(_FLOAT32_BLOCK):
            block = self._vectors[numbers].astype(np.float32)
            near, places = faiss.knn(query, block, min(depth, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
            near, places = np.concatenate([scores, near], axis=1), np.concatenate([rows, numbers[places]], axis=1)
            keep = np.argsort(-near, axis=1)[:, :depth]
            scores, rows = np.take_along_axis(near, keep, axis=1), np.take_along_axis(places, keep, axis=1)
        best = np.empty((len(query), k), dtype=np.int64)
        rest: list[int] = []
        for q in range(len(query)):
            settled = self._settle(query[q], rows[q], scores[q], k, bounded=True)
            if settled is None:
                rest.append(q)
            else:
                best[q] = settled
        if rest:
            best[rest] = self._scan(query[rest], k)
        return self._hits(query, best)

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
        if not has_effort(self._index):
            if self._count < len(self._vectors) and self._selector is None:
                return self._sifted_candidates(query, depth)
            params_of_kind = search_parameters(self._index, effort=0, depth=depth, selector=self._selector)
            return self._index.search(query, depth, params=params_of_kind)
        efforts = self._efforts_of(query, params)
        scores = np.empty((len(query), depth), dtype=np.float32)
        rows = np.empty((len(query), depth), dtype=np.int64)
        for effort in np.unique(efforts):
            of = efforts == effort
            scores[of], rows[of] = self._index.search(
                query[of],
                depth,
                params=search_parameters(self._index, effort=int(effort), depth=depth, selector=self._selector),
            )
        return scores, rows

    def _sifted_candidates(
        self, query: NDArray[np.float32], depth: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Candidates of a kind that FAISS can not leave rows out of: asked for more, removed ones taken out."""
        total = len(self._vectors)
        asked = math.ceil(1.25 * depth * total / self._count)
        while True:
            asked = min(asked, total)
            scores, rows = self._index.search(query, asked)
            gone = (rows < 0) | ~self.alive[rows]
            if asked == total or (asked - gone.sum(axis=1) >= depth).all():
                break
            asked *= 2
        # A stable sort puts those that stay first, still best first.
        keep = np.argsort(gone, axis=1, kind="stable")[:, :depth]
        rows[gone] = -1
        return np.take_along_axis(scores, keep, axis=1), np.take_along_axis(rows, keep, axis=1)

    def _efforts_of(self, query: NDArray[np.float32], params: SearchParams | None) -> NDArray[np.int64]:
        """(Q,): what was asked for, or the more careful of the two measured efforts around each query's λ."""
        asked = params and (params.nprobe if is_ivf(self._index) else params.ef_search)
        if asked:
            return np.full(len(query), asked)
        text, visual = (np.linalg.norm(half, axis=1) for half in np.split(query, [self.vlm_dim], axis=1))
        # t and v are unit vectors, so the halves have norms 1 - λ and λ. For a zero query any λ will do.
        lam = visual / np.maximum(text + visual, np.finfo(np.float32).tiny)
        place = np.round(lam * (len(LAMBDA_GRID) - 1), 3)
        return np.maximum(self.efforts[np.floor(place).astype(int)], self.efforts[np.ceil(place).astype(int)])

    def _settle(
        self,
        query: NDArray[np.float32],
        candidates: NDArray[np.int64],
        scores: NDArray[np.float32],
        k: int,
        *,
        bounded: bool,
    ) -> NDArray[np.int64] | None:
        """The k best rows among one query's candidates, or None when other rows might belong there.

        `bounded` says that the candidates are the best of all rows by float32 inner products.
        """
        rows = np.sort(candidates[candidates >= 0])
        if len(rows) < k:
            return None
        exact = products(query[None], self._vectors[rows])[0].astype(np.float32)
        best = _best(exact, k)
        if len(rows) == len(candidates):
            # Rows beyond the last of the best by float32 inner products score at most as it did, up to the
            # rounding of such a product, below D·2⁻²⁴·‖q‖·‖x‖ (Higham, "Accuracy and Stability of Numerical
            # Algorithms", §3.1), and of the exact scores (the 2). An approximate index promises nothing, but
            # duplicates share their approximate scores too: widen while the cut runs through a tie.
            rounding = 1.02 * math.sqrt(2) * (self.dim + 2) * 2.0**-24 * float(np.linalg.norm(query))
            reachable = float(scores[-1]) + rounding if bounded else float(exact.min())
            if float(exact[best[-1]]) <= reachable:
                return None
        return rows[best]

    def _scan(self, query: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Rows (Q, k) of the exact k best, in memory O(Q·(k + block))."""
        best_scores = np.empty((len(query), 0), dtype=np.float32)
        best_rows = np.empty((len(query), 0), dtype=np.int64)
        for numbers in self._alive_blocks(_BLOCK):
            block = products(query, self._vectors[numbers]).astype(np.float32)
            scores = np.concatenate([best_scores, block], axis=1)
            rows = np.concatenate([best_rows, np.broadcast_to(numbers, block.shape)], axis=1)
            keep = np.empty((len(query), min(k, scores.shape[1])), dtype=np.int64)
            for q, row in enumerate(scores):
                keep[q] = _best(row, k)
            best_scores = np.take_along_axis(scores, keep, axis=1)
            best_rows = np.take_along_axis(rows, keep, axis=1)
        return best_rows

    def _alive_blocks(self, size: int) -> Iterator[NDArray[np.int64]]:
        """Numbers of the rows that can be found, ascending, as they lie in blocks of so many rows; none empty."""
        for start in range(0, len(self._vectors), size):
            numbers = start + np.flatnonzero(self.alive[start : start + size])
            if numbers.size:
                yield numbers

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

    def measure_efforts(self, seed: int, share: float = 1.0) -> None:
        """Set `efforts`: for each λ the smallest power of two with which sampled queries reach RECALL_TARGET of the
        recall at each depth of RECALL_AT.

        Args:
            share: of the rows that were cut into shards at random with this one, which is about its share of the best
                rows as well: it is looked into as deep as that, and to the least of RECALL_AT.
        """
        if not len(self) or not has_effort(self._index):
            return
        lowest, highest = (8, inner(self._index).nlist) if is_ivf(self._index) else (32, 4096)
        rng = np.random.default_rng(seed)
        queries = self.sample_queries(rng.choice(np.flatnonzero(self.alive), _TUNING_QUERIES), rng)
        depths = {max(min(RECALL_AT), math.ceil(depth * share)) for depth in RECALL_AT}
        truths = np.split(self.exact(np.concatenate(queries), max(depths)).ids, len(LAMBDA_GRID))

        def recall(query: NDArray[np.float32], truth: NDArray[np.object_], effort: int) -> float:
            params = SearchParams(nprobe=effort, ef_search=effort)
            found = {depth: self.search(query, depth, params=params).ids for depth in depths}
            return min(neighbour_recall(ids, truth[:, :depth]) for depth, ids in found.items())

        efforts = []
        for query, truth in zip(queries, truths, strict=True):
            effort = lowest
            while effort < highest and recall(query, truth, effort) < RECALL_TARGET:
                effort *= 2
            efforts.append(min(effort, highest))
        self.efforts = np.asarray(efforts, dtype=np.int64)

    def sample_queries(self, rows: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.float32]]:
        """Queries to measure recall with, one from each of these rows: for each λ of LAMBDA_GRID float32 (Q, D).

        A query asks for a category and lies off the gallery: each half is the mean of those of the row's ten nearest
        (itself among them), with noise of the same norm. How such queries compare with real ones is in
        docs/index-kinds.md.
        """
        near = self.exact(self._vectors[rows].astype(np.float32), _NEIGHBOURS).rows
        means = self._vectors[near].astype(np.float32).mean(axis=1)
        text, visual = (
            unit(unit(half) + unit(rng.standard_normal(half.shape))) for half in np.split(means, [self.vlm_dim], axis=1)
        )
        return [fused_query(text, visual, weight) for weight in LAMBDA_GRID]


def training_sample(vectors_ND: NDArray[np.float16], factory: str, seed: int) -> NDArray[np.float16]:
    """The rows of one shard that its own index is trained on."""
    sample = np.random.default_rng(seed).permutation(len(vectors_ND))[: training_rows(factory)]
    return vectors_ND[np.sort(sample)]


def fill(
    index: faiss.Index, vectors_ND: NDArray[np.float16], added: Callable[[int], object] = lambda count: None
) -> None:
    """Add all rows to a trained index, in blocks, of whose rows `added` is told."""
    for start in range(0, len(vectors_ND), _FLOAT32_BLOCK):
        block = vectors_ND[start : start + _FLOAT32_BLOCK].astype(np.float32)
        index.add(block)
        added(len(block))


def check_unit_halves(joint_ND: NDArray[np.float16], vlm_dim: int, ids: pa.Array | pa.ChunkedArray) -> None:
    """ValueError names the first row whose vlm or vision half has not the norm 1."""
    wide = joint_ND.astype(np.float32)
    for half, name in ((wide[:, :vlm_dim], "vlm"), (wide[:, vlm_dim:], "vision")):
        norms = np.linalg.norm(half, axis=1)
        bad = np.flatnonzero(~(np.abs(norms - 1) < 0.01))  # also where the norm is NaN
        if bad.size:
            raise ValueError(
                f"the {name} vector of row {ids[int(bad[0])].as_py()!r} has norm {norms[bad[0]]:.4g}, "
                "both halves of a joint row must have norm 1"
            )


def id_order(ids: pa.Array) -> NDArray[np.int64]:
    """The order that brings ids into ascending order (by code point); equal ones keep theirs."""
    # Arrow sorts by UTF-8 bytes, which is the same order, and stably.
    return pc.sort_indices(ids).to_numpy().astype(np.int64)


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
    order = id_order(names)
    values = names.take(pa.array(order))
    twice = np.flatnonzero(repeated(values))
    if twice.size:
        again = values[int(twice[0])].as_py()
        raise ValueError(f"ids must differ, {again!r} comes more than once ({twice.size} repetitions)")
    columns = {"id": names}
    if rows is not None:
        columns |= {name: rows[name] for name in rows.column_names if name != "id"}
    return pa.table(columns).take(pa.array(order)), order


def repeated(values: pa.Array) -> NDArray[np.bool_]:
    """bool (N,): whether each of these sorted ids is that of the row before."""
    if len(values) < 2:
        return np.zeros(len(values), dtype=np.bool_)
    same = pc.equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    return np.concatenate([[False], same])


def _not_in(removed: Collection[str] | pa.Array, rows: pa.Table) -> NDArray[np.bool_]:
    """bool (N,): whether each row's id is not among the removed."""
    names = removed if isinstance(removed, pa.Array | pa.ChunkedArray) else pa.array(list(removed), pa.string())
    if not len(names):
        return np.ones(rows.num_rows, dtype=np.bool_)
    return ~pc.is_in(rows["id"], value_set=names).to_numpy()
