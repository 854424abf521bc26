"""The kinds of FAISS index a shard can have: which to choose, what memory it takes, how it is searched and read.

A kind is named by its FAISS factory string. A rotation or projection (OPQ, PCA, RR) may stand before any of them:

    Flat                                  exact; float32
    SQ8  SQ4  SQfp16  PQ64  RaBitQ        all rows are scanned, by short codes
    IVF1024,… with any of these           only the nearest lists are scanned (nprobe of them)
    HNSW32  HNSW32,SQ8                    a graph is walked (efSearch)

Others that FAISS can make are refused: a shard must be able to leave rows out of a search, and to check a file's kind
before FAISS reads it. D dimensions, N rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Final

import faiss

from retrieval.errors import UserError

FLAT_UP_TO: Final = 50_000
# The types that come with FAISS lack many of its classes, arguments and attributes.
_FAISS: Any = faiss
# FAISS's own minimum; with fewer it warns that centroids are badly placed, and refuses below one.
_ROWS_PER_CENTROID: Final = 39
# FAISS allocates lists and codebooks as soon as an index is made.
_MAX_LISTS: Final = 2**24
_MAX_CODEBOOK: Final = 2**16
# What one list of an inverted file costs beside its centroid: two vectors of the C++ library.
_LIST_BYTES: Final = 48
# Kinds of one code a row that search every row; the others are IndexIVF and IndexHNSW.
_SCANNED: Final = (
    faiss.IndexFlat,
    faiss.IndexScalarQuantizer,
    faiss.IndexPQ,
    faiss.IndexPQFastScan,
    faiss.IndexRaBitQ,
    faiss.IndexRaBitQFastScan,
)
_OF_LISTS: Final = (
    faiss.IndexIVFFlat,
    faiss.IndexIVFScalarQuantizer,
    faiss.IndexIVFPQ,
    faiss.IndexIVFPQFastScan,
    faiss.IndexIVFRaBitQ,
    faiss.IndexIVFRaBitQFastScan,
)
_GRAPHS: Final = (faiss.IndexHNSWFlat, faiss.IndexHNSWSQ)
# FAISS 1.15 refuses a selector of rows for these ("search params not supported").
_WITHOUT_SELECTOR: Final = (faiss.IndexPQ, faiss.IndexPQFastScan, faiss.IndexRaBitQFastScan)


def new_index(factory: str, dim: int) -> faiss.Index:
    """Return an empty, untrained index over D dimensions.

    Raises:
        UserError: FAISS cannot make one, or a shard cannot use it (code ``unsupported``, field ``factory``).
    """
    lists = re.search(r"IVF(\d+)", factory)
    if _codebook(factory) > _MAX_CODEBOOK or (lists and int(lists[1]) > _MAX_LISTS):
        raise _unsupported(
            f"index factory {factory!r}: a product quantiser has codes of up to 16 bits, "
            f"an inverted file up to {_MAX_LISTS:,} lists"
        )
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        # FAISS's messages are "Error in <C++ signature> at <source file>: <what is wrong>".
        reason = re.sub(r"^.* at \S+:\d+: ", "", str(error))
        raise _unsupported(f"index factory {factory!r} does not suit {dim} dimensions: {reason}") from error
    kind = inner(index)
    if isinstance(kind, _FAISS.IndexRefine | faiss.IndexIDMap):
        raise _unsupported(
            f"index factory {factory!r}: leave out RFlat, Refine and IDMap; a shard rescores and keeps ids by itself"
        )
    if type(kind) not in (*_SCANNED, *_OF_LISTS, *_GRAPHS):
        raise _unsupported(
            f"index factory {factory!r} makes a {type(kind).__name__}, which a shard cannot use; give Flat, SQ8, SQ4, "
            "SQfp16, PQ or RaBitQ, any of these behind IVF, or HNSW with Flat or SQ"
        )
    return index


def fitted_factory(factory: str, rows: int, dim: int) -> str:
    """Return the FAISS factory string for this many rows.

    ``auto`` is Flat up to FLAT_UP_TO rows, then IVF with 4·√N lists of 8-bit codes. Any other is kept, except that
    k-means is not given fewer than 39 rows a centroid, FAISS's minimum: IVF gets fewer lists, and what cannot be
    trained at all (PQ, or IVF with under 39 rows) becomes Flat, which is exact and at such sizes quick.

    Raises:
        UserError: as ``new_index``.
    """
    if factory == "auto":
        factory = next(_choices(rows))
    new_index(factory, dim)
    if rows < _ROWS_PER_CENTROID * _codebook(factory):
        return "Flat"
    lists = re.search(r"IVF(\d+)", factory)
    if lists and rows < _ROWS_PER_CENTROID * int(lists[1]):
        fewer = rows // _ROWS_PER_CENTROID
        return factory.replace(lists[0], f"IVF{fewer}") if fewer else "Flat"
    return factory


def choose_factory(factory: str, rows: int, dim: int, memory_bytes: int | None) -> str:
    """Return the factory string of a shard of N rows whose compressed index fits into memory.

    ``auto`` takes the first of these that fits: Flat (up to FLAT_UP_TO rows), then lists of 8-bit, 4-bit, and 1-bit
    codes (RaBitQ); what each finds and costs is in docs/index-kinds.md. Any other is only fitted to the rows.

    Args:
        factory: ``auto`` or a FAISS factory string.
        rows: N.
        dim: D.
        memory_bytes: what the index may take; None for no limit.

    Raises:
        UserError: none fits; the memory that is needed is named (code ``too-large``, field ``memory_per_shard``). Or
            as ``new_index``.
    """
    kinds = [fitted_factory(kind, rows, dim) for kind in (_choices(rows) if factory == "auto" else [factory])]
    if memory_bytes is None:
        return kinds[0]
    for kind in kinds:
        if memory_of(kind, rows, dim) <= memory_bytes:
            return kind
    smallest = min(kinds, key=lambda kind: memory_of(kind, rows, dim))
    what = "the smallest index that there is for" if factory == "auto" else "an index of"
    raise UserError(
        f"{what} {rows:,} rows of {dim} dimensions in one shard, {smallest}, takes "
        f"{_mebibytes(memory_of(smallest, rows, dim))}, and only {_mebibytes(memory_bytes)} are allowed: "
        "allow more memory per shard, or cut the gallery into more shards",
        code="too-large",
        field="memory_per_shard",
    )


def memory_of(factory: str, rows: int, dim: int) -> int:
    """Return the bytes that a compressed index of N rows takes: codes, ids or links, centroids, codebooks, rotations.

    The exact float16 vectors beside it are mapped, and not counted; nor are its growing lists while it is filled,
    which take up to as much again.
    """
    index = new_index(factory, dim)
    kind = inner(index)
    total = 0
    if kind is not index:
        # A rotation has a square matrix, a projection one of fewer rows; OPQ and PCA have none before training.
        total += 4 * dim * (kind.d + 1)
    if isinstance(kind, _FAISS.IndexHNSW):
        storage = faiss.downcast_index(kind.storage)
        links = kind.hnsw.nb_neighbors(0)
        # Level l is reached by one row in (links / 2)^l, which has links / 2 links there.
        per_row = storage.sa_code_size() + 4 * links + 4 * (links / 2) / (links / 2 - 1) + 12
    elif isinstance(kind, _FAISS.IndexIVF):
        per_row = kind.code_size + 8
        total += kind.nlist * (4 * kind.d + _LIST_BYTES)
        if isinstance(kind, _FAISS.IndexIVFRaBitQFastScan | faiss.IndexIVFPQFastScan):
            # Their lists are filled up to whole blocks of rows.
            total += kind.nlist * kind.code_size * kind.bbs // 2
    else:
        per_row = kind.sa_code_size()
    codebook = _codebook(factory)
    return total + 4 * kind.d * codebook + math.ceil(per_row * rows)


def inner(index: faiss.Index) -> Any:
    """Return the index that searches, behind a rotation or projection (OPQ, PCA, RR) if there is one."""
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def is_ivf(index: faiss.Index) -> bool:
    """Whether only the nearest of its lists are searched."""
    return isinstance(inner(index), faiss.IndexIVF)


def has_effort(index: faiss.Index) -> bool:
    """Whether nprobe or efSearch says how far a search looks."""
    return isinstance(inner(index), faiss.IndexIVF | faiss.IndexHNSW)


def has_selector(index: faiss.Index) -> bool:
    """Whether FAISS can leave rows out of a search of this kind."""
    return not isinstance(inner(index), _WITHOUT_SELECTOR)


def search_parameters(
    index: faiss.Index, *, effort: int, depth: int, selector: faiss.IDSelector | None
) -> faiss.SearchParameters | None:
    """Return the parameters of one call; the index itself is shared by concurrent searches and never touched."""
    if not has_effort(index) and selector is None:
        return None
    if is_ivf(index):
        params = _FAISS.SearchParametersIVF(nprobe=effort, sel=selector)
    elif has_effort(index):
        params = _FAISS.SearchParametersHNSW(efSearch=max(effort, depth), sel=selector)
    else:
        params = _FAISS.SearchParameters(sel=selector)
    if isinstance(index, faiss.IndexPreTransform):
        return _FAISS.SearchParametersPreTransform(index_params=params)
    return params


def map_flags(factory: str) -> int:
    """Return the flags with which FAISS maps a file of this kind rather than reads it."""
    # FAISS maps inverted lists in one way and the codes of all other kinds in another; both at once fail.
    return faiss.IO_FLAG_READ_ONLY | (faiss.IO_FLAG_MMAP if "IVF" in factory else faiss.IO_FLAG_MMAP_IFC)


def file_letters(factory: str, dim: int) -> bytes:
    """Return the four letters that FAISS begins a file of this kind with; they say what it allocates and reads next."""
    one_list = re.sub(r"IVF\d+", "IVF1", factory)
    return faiss.serialize_index(new_index(one_list, dim))[:4].tobytes()


def table_bytes(factory: str) -> int:
    """Return the bytes of the table that FAISS would precompute for lists of product codes.

    It is not made for inner products, but counts when a file is read.
    """
    lists, codes = re.search(r"IVF(\d+)", factory), re.search(r"(?<!O)PQ(\d+)", factory)
    return 4 * int(lists[1]) * int(codes[1]) * _codebook(factory) if lists and codes else 0


def _choices(rows: int) -> Iterator[str]:
    """What `auto` may be for N rows, the best first."""
    if rows <= FLAT_UP_TO:
        yield "Flat"
    lists = max(4 * math.isqrt(rows), 1)
    for codes in ("SQ8", "SQ4", "RaBitQ"):
        yield f"IVF{lists},{codes}"


def _codebook(factory: str) -> int:
    """Words in each codebook of a product quantiser, 0 without one."""
    found = re.search(r"(?<!O)PQ\d+(?:x(\d+))?", factory)
    return 2 ** min(int(found[1] or 8), 64) if found else 0


def _unsupported(message: str) -> UserError:
    return UserError(message, code="unsupported", field="factory")


def _mebibytes(count: int) -> str:
    return f"{math.ceil(count / 2**20):,} MiB"
