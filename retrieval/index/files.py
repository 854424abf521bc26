"""The files of a shard: their names, their record, how they are written, and the checks before and after they are read.

index.faiss     the FAISS index that proposes candidates
vectors.npy     the exact joint rows [c ; d], float16 (N, D)
rows.parquet    the row table, column id first and ascending
shard.json      counts, kind and efforts of the shard, the mean of its rows; bytes and SHA-256 of the other three
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.errors import DamagedError
from retrieval.index.effort import LAMBDA_GRID
from retrieval.index.kinds import file_letters, inner, is_ivf, map_flags, table_bytes

INDEX, VECTORS, ROWS, RECORD = "index.faiss", "vectors.npy", "rows.parquet", "shard.json"
# FAISS's limit on what one vector of a file may allocate holds for the whole process.
_READING = threading.Lock()


def read_shard(folder: Path, *, mmap: bool) -> tuple[dict[str, Any], faiss.Index, NDArray[np.float16], pa.Table]:
    """Read the four files of a shard, index and vectors mapped into memory if ``mmap``.

    Returns:
        The content of shard.json, the index, the vectors and the row table.

    Raises:
        DamagedError: a file is missing, cut short or of another shard; the field is its name.
    """
    record = read_record(folder)
    for name, expected in record["files"].items():
        _check_bytes(folder / name, expected["bytes"])
    rows, dim = record["rows"], record["dim"]
    check_index_header(folder / INDEX, rows, dim, record["factory"])
    index = read_index(folder / INDEX, record["factory"], map_flags(record["factory"]) if mmap else 0)
    with _naming(folder / VECTORS):
        vectors = np.load(folder / VECTORS, mmap_mode="r" if mmap else None, allow_pickle=False)
    with _naming(folder / ROWS):
        table = pq.read_table(folder / ROWS)
    if vectors.shape != (rows, dim) or vectors.dtype != np.float16:
        found = f"{vectors.dtype} {vectors.shape}"
        raise DamagedError(f"{folder / VECTORS} holds {found}, not float16 ({rows}, {dim})", field=VECTORS)
    if table.num_rows != rows or "id" not in table.column_names:
        found = f"{table.num_rows} rows {table.column_names}"
        raise DamagedError(f"{folder / ROWS} holds {found}, not {rows} with an id", field=ROWS)
    return record, index, vectors, table


def write_shard(folder: Path, index: faiss.Index, rows: pa.Table, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write index, row table and shard.json beside vectors.npy, which lies in the folder already.

    Args:
        folder: of the shard.
        index: filled.
        rows: the row table.
        content: of shard.json; size and SHA-256 of the other three files are added to it.

    Returns:
        {file name: {"bytes": int, "sha256": hex}} of all four files, for the manifest of an index.
    """
    faiss.write_index(index, str(folder / INDEX))
    pq.write_table(rows, folder / ROWS)
    files = {name: _file_record(folder / name) for name in (INDEX, VECTORS, ROWS)}
    (folder / RECORD).write_text(json.dumps({**content, "files": files}, indent=2) + "\n", encoding="utf-8")
    return {**files, RECORD: _file_record(folder / RECORD)}


def vector_text(vector_D: NDArray[np.float32]) -> str:
    """Return a vector as JSON has it, to the bit and short: base64 of float32, little-endian."""
    return base64.b64encode(vector_D.astype("<f4").tobytes()).decode("ascii")


def text_vector(text: str) -> NDArray[np.float32]:
    """Return the vector (D,) of what ``vector_text`` returned."""
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)


def verify(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the size and SHA-256 of every file of a shard.

    Args:
        folder: of the shard.
        files: what ``write_shard`` returned; an index manifest keeps it.

    Raises:
        DamagedError: one differs; the field is the name of the first that does.
    """
    for name, expected in files.items():
        _check_bytes(folder / name, expected["bytes"])
        found = _file_record(folder / name)["sha256"]
        if found != expected["sha256"]:
            raise DamagedError(
                f"{folder / name} is damaged: its SHA-256 is {found}, recorded was {expected['sha256']}", field=name
            )


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of shard.json.

    Raises:
        DamagedError: it is missing, or not that of a shard.
    """
    with _naming(folder / RECORD):
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        sizes = [record["files"][name]["bytes"] for name in (INDEX, VECTORS, ROWS)]
        numbers = [record["rows"], record["dim"], record["vlm_dim"], *record["efforts"], *sizes]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise TypeError("counts must be whole numbers")
        if len(record["efforts"]) not in (0, len(LAMBDA_GRID)):
            raise TypeError(f"efforts must be none or {len(LAMBDA_GRID)}")
    return record


def check_index_header(path: Path, rows: int, dim: int, factory: str) -> None:
    """Check the first bytes of a FAISS file, which say what FAISS allocates: kind (four letters), int32 D, int64 N.

    Raises:
        DamagedError: they are not those of N rows, D dimensions and this factory string.
    """
    with path.open("rb") as file:
        header = file.read(16)
    letters, found_dim, found_rows = struct.unpack("<4siq", header) if len(header) == 16 else (b"", 0, 0)
    if (found_rows, found_dim) != (rows, dim):
        raise DamagedError(
            f"{path} declares {found_rows} rows of {found_dim} dimensions, recorded were {rows} of {dim}",
            field=path.name,
        )
    with _naming(path):
        expected = file_letters(factory, dim)
    if letters != expected:
        raise DamagedError(
            f"{path} begins with {letters!r}: it is not a {factory} index, which begins with {expected!r}",
            field=path.name,
        )


def read_index(path: Path, factory: str, flags: int = 0) -> faiss.Index:
    """Read a FAISS index whose header was checked; none of its parts may be larger than the file.

    Args:
        path: of the file.
        factory: its FAISS factory string.
        flags: of ``faiss.read_index``.

    Raises:
        DamagedError: FAISS cannot read it.
    """
    size = path.stat().st_size
    with _READING, _naming(path):
        before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(size + table_bytes(factory))
        faiss.set_deserialization_loop_limit(size)
        try:
            index = faiss.read_index(str(path), flags)
        finally:
            faiss.set_deserialization_vector_byte_limit(before[0])
            faiss.set_deserialization_loop_limit(before[1])
    lists = faiss.downcast_InvertedLists(inner(index).invlists) if is_ivf(index) else None
    if isinstance(lists, faiss.OnDiskInvertedLists):
        # Else FAISS starts 32 threads for each search, to read what the kernel mostly has in memory already.
        lists.prefetch_nthread = 0
    return index


def _check_bytes(path: Path, expected: int) -> None:
    if not path.is_file():
        raise DamagedError(f"{path} is missing", field=path.name)
    if path.stat().st_size != expected:
        raise DamagedError(
            f"{path} has {path.stat().st_size:,} bytes, recorded were {expected:,}: "
            "it is cut short or belongs to another shard",
            field=path.name,
        )


def _file_record(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever a parser says of a damaged file, as an error that names the file."""
    try:
        yield
    except Exception as error:
        raise DamagedError(f"{path} is not a readable part of a shard: {error!r}", field=path.name) from error
