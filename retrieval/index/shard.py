"""One immutable FAISS shard over joint rows [c ; d]: opened from its files, searched by inner product, scored exactly.

FAISS proposes candidates; their scores are then computed from the float16 vectors without rounding error (``exact``),
so every score, from any kind of index and any shard, is the exact one, and a row's score does not depend on the shard
it lies in. A flat shard gives the exact answer, ties included: the candidates are widened until no unseen row can reach
the k-th score. Shapes: Q queries, N rows, D = D1 + D2 dimensions (VLM, vision encoder).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from retrieval.errors import UserError
from retrieval.fusion import on_grid, products
from retrieval.index.effort import effort_of_each
from retrieval.index.exact import nearest, scan, settle
from retrieval.index.files import read_shard
from retrieval.index.hits import Hits, checked_k
from retrieval.index.kinds import has_effort, has_selector, search_parameters


class Shard:
    """An open shard. Nothing changes it, so any number of threads may search it.

    Attributes:
        rows: the table of its N rows, column ``id`` first and ascending.
        vectors: the joint rows [c ; d], float16 (N, D), in the order of ``rows``; mapped from the file, do not write.
        index: the FAISS index that proposes candidates.
        factory: the FAISS factory string it was really built with, after ``fitted_factory``.
        vlm_dim: D1, where c ends and d begins.
        efforts: int64 (5,), the measured nprobe or efSearch by LAMBDA_GRID; empty when the index has neither.
        alive: bool (N,), false for the rows that were removed: they lie in ``rows`` and ``vectors``, and are never
            found.
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
        removed: Collection[str] | pa.Array | pa.ChunkedArray = (),
    ) -> None:
        self.rows = rows
        self.vectors = vectors_ND
        self.index = index
        self.factory = factory
        self.vlm_dim = vlm_dim
        self.efforts = np.asarray(efforts, dtype=np.int64)
        self.alive = _not_in(removed, rows)
        ids = pa.concat_arrays(rows["id"].chunks) if rows["id"].num_chunks != 1 else rows["id"].chunk(0)
        _, ends, utf8 = ids.buffers()
        self._id_ends = memoryview(ends or b"").cast("i" if ids.type == pa.string() else "q")[ids.offset :]
        self._id_bytes = memoryview(utf8 or b"")
        self._is_flat = isinstance(index, faiss.IndexFlat)
        self._count = int(np.count_nonzero(self.alive))
        self._selector = None
        if self._count < len(vectors_ND) and has_selector(index):
            bitmap: Any = np.packbits(self.alive, bitorder="little")
            self._selector = faiss.IDSelectorBitmap(bitmap)  # type: ignore[call-arg]

    @classmethod
    def open(
        cls, folder: Path, *, mmap: bool = True, removed: Collection[str] | pa.Array | pa.ChunkedArray = ()
    ) -> Self:
        """Open the shard that ``build_shard`` wrote into a folder.

        Args:
            folder: of its four files.
            mmap: map index and vectors into memory rather than read them.
            removed: ids of rows that are never found; ids of other shards among them do not matter.

        Raises:
            DamagedError: a file is missing, cut short or of another shard; it is named. Sizes and headers are checked
                before anything is allocated, contents by ``files.verify`` alone.
        """
        record, index, vectors, rows = read_shard(folder, mmap=mmap)
        return cls(
            index,
            vectors,
            rows,
            vlm_dim=record["vlm_dim"],
            factory=record["factory"],
            efforts=record["efforts"],
            removed=removed,
        )

    def __len__(self) -> int:
        """Rows that can be found; ``rows`` and ``vectors`` have the removed ones as well."""
        return self._count

    @property
    def dim(self) -> int:
        """D."""
        return self.vectors.shape[1]

    def row_of(self, id: str) -> int | None:
        """Return the row that has an id; None if no row has it, or one that was removed."""
        wanted = id.encode("utf-8", errors="replace")
        row = bisect_left(range(len(self.rows)), wanted, key=self._id)  # they ascend by UTF-8 bytes
        return row if row < len(self.rows) and self._id(row) == wanted and self.alive[row] else None

    def _id(self, row: int) -> bytes:
        """The id of a row as UTF-8. Out of Arrow's buffers, as making a scalar of each would be ten times as slow."""
        return bytes(self._id_bytes[self._id_ends[row] : self._id_ends[row + 1]])

    def search(self, query_QD: ArrayLike, k: int, *, effort: int | None = None) -> Hits:
        """Find the min(k, len(self)) best rows of each query [(1 - λ)t ; λv], with exact scores.

        Args:
            query_QD: (Q, D) or (D,), of norm up to 16; taken as float32.
            k: from 1; as large as one likes.
            effort: nprobe or efSearch in place of the measured one; an index that has neither ignores it.

        Raises:
            UserError: k or effort is below 1, or the query is of other dimensions, not finite or too long.
        """
        query, k = self._checked(query_QD), min(checked_k(k), len(self))
        if effort is not None and effort < 1:
            raise UserError(f"effort must be at least 1, not {effort}", code="out-of-range", field="effort")
        # Never fewer than 2k, so that a tie at the cut is seen; approximate scores need some to spare.
        depth = 2 * k if self._is_flat else max(200, 5 * k)
        return self._hits(query, self._best_rows(query, k, depth, effort))

    def exact(self, query_QD: ArrayLike, k: int) -> Hits:
        """Find what ``search`` should find: the true best rows, by going through all of them in blocks."""
        query = self._checked(query_QD)
        return self._hits(query, nearest(query, self.vectors, self.alive, min(checked_k(k), len(self))))

    def _checked(self, query_QD: ArrayLike) -> NDArray[np.float32]:
        query = np.atleast_2d(np.asarray(query_QD, dtype=np.float32))
        if query.ndim != 2 or query.shape[1] != self.dim:
            raise UserError(
                f"the query has shape {query.shape}, this shard has {self.dim} dimensions "
                f"({self.vlm_dim} vlm + {self.dim - self.vlm_dim} vision)",
                code="wrong-shape",
                field="query",
            )
        if not np.all(np.linalg.norm(query, axis=1) <= 16):  # also false for NaN
            raise UserError(
                "a query must be finite and of norm up to 16; a fused query has norm up to 1",
                code="out-of-range",
                field="query",
            )
        return on_grid(query).astype(np.float32)

    def _best_rows(self, query: NDArray[np.float32], k: int, depth: int, effort: int | None) -> NDArray[np.int64]:
        """Rows (Q, k), from ``depth`` candidates or as many more as a tie at the cut asks for."""
        best = np.empty((len(query), k), dtype=np.int64)
        pending = np.arange(len(query))
        to_scan: list[int] = []
        while pending.size and depth < len(self):
            scores, candidates = self._candidates(query[pending], depth, effort)
            to_widen: list[int] = []
            for q, found, approximate in zip(pending, candidates, scores, strict=True):
                settled = settle(query[q], self.vectors, found, approximate, k, bounded=self._is_flat)
                if settled is not None:
                    best[q] = settled
                else:
                    (to_scan if found[-1] < 0 else to_widen).append(int(q))
            pending = np.asarray(to_widen, dtype=np.int64)
            depth *= 4
        rest = [*to_scan, *pending]
        if rest:
            best[rest] = scan(query[rest], self.vectors, self.alive, k)
        return best

    def _candidates(
        self, query: NDArray[np.float32], depth: int, effort: int | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Approximate scores and rows (Q, depth), best first, -1 where the index found no more."""
        if not has_effort(self.index):
            if self._count < len(self.vectors) and self._selector is None:
                return self._sifted_candidates(query, depth)
            params = search_parameters(self.index, effort=0, depth=depth, selector=self._selector)
            return self.index.search(query, depth, params=params)
        efforts = effort_of_each(query, self.vlm_dim, self.efforts) if effort is None else np.full(len(query), effort)
        scores = np.empty((len(query), depth), dtype=np.float32)
        rows = np.empty((len(query), depth), dtype=np.int64)
        for one in np.unique(efforts):
            of = efforts == one
            params = search_parameters(self.index, effort=int(one), depth=depth, selector=self._selector)
            scores[of], rows[of] = self.index.search(query[of], depth, params=params)
        return scores, rows

    def _sifted_candidates(
        self, query: NDArray[np.float32], depth: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Candidates of a kind that FAISS cannot leave rows out of: asked for more, removed ones taken out."""
        total = len(self.vectors)
        asked = math.ceil(1.25 * depth * total / self._count)
        while True:
            asked = min(asked, total)
            scores, rows = self.index.search(query, asked)
            gone = (rows < 0) | ~self.alive[rows]
            if asked == total or (asked - gone.sum(axis=1) >= depth).all():
                break
            asked *= 2
        # A stable sort puts those that stay first, still best first.
        keep = np.argsort(gone, axis=1, kind="stable")[:, :depth]
        rows[gone] = -1
        return np.take_along_axis(scores, keep, axis=1), np.take_along_axis(rows, keep, axis=1)

    def _hits(self, query: NDArray[np.float32], rows_Qk: NDArray[np.int64]) -> Hits:
        text = np.empty(rows_Qk.shape)
        visual = np.empty(rows_Qk.shape)
        for q, rows in enumerate(rows_Qk):
            vectors = self.vectors[rows]
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


def _not_in(removed: Collection[str] | pa.Array | pa.ChunkedArray, rows: pa.Table) -> NDArray[np.bool_]:
    """bool (N,): whether each row's id is not among the removed."""
    names = removed if isinstance(removed, pa.Array | pa.ChunkedArray) else pa.array(list(removed), pa.string())
    if not len(names):
        return np.ones(rows.num_rows, dtype=np.bool_)
    return ~pc.is_in(rows["id"], value_set=names).to_numpy()
