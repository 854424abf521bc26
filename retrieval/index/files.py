"""The files of a saved shard: their names, their record, and the checks before and after they are read."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import faiss

from retrieval.index.kinds import file_letters, inner, is_ivf, table_bytes

INDEX, VECTORS, ROWS, RECORD = "index.faiss", "vectors.npy", "rows.parquet", "shard.json"
LAMBDA_GRID: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
# FAISS's limit on what one vector of a file may allocate holds for the whole process.
_READING = threading.Lock()


def verify(folder: Path, files: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Check the size and SHA-256 of every file of a saved shard; ValueError names the first that differs.

    `files` is what `save` returned (an index manifest keeps it, shard.json included); by default what
    shard.json says.
    """
    for name, expected in (files if files is not None else read_record(folder)["files"]).items():
        check_bytes(folder / name, expected["bytes"])
        found = file_record(folder / name)["sha256"]
        if found != expected["sha256"]:
            raise ValueError(f"{folder / name} is damaged: its SHA-256 is {found}, recorded was {expected['sha256']}")


def file_record(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def read_record(folder: Path) -> dict[str, Any]:
    with naming(folder / RECORD):
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        sizes = [record["files"][name]["bytes"] for name in (INDEX, VECTORS, ROWS)]
        numbers = [record["rows"], record["dim"], record["vlm_dim"], *record["efforts"], *sizes]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("counts must be whole numbers")
        if len(record["efforts"]) not in (0, len(LAMBDA_GRID)):
            raise ValueError(f"efforts must be none or {len(LAMBDA_GRID)}")
    return record


def check_bytes(path: Path, expected: int) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    if path.stat().st_size != expected:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes, recorded were {expected:,}: "
            "it is cut short or belongs to another shard"
        )


def write_record(folder: Path, content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Write shard.json: this content, and the size and SHA-256 of the other three files. Returns those of all four."""
    files = {name: file_record(folder / name) for name in (INDEX, VECTORS, ROWS)}
    (folder / RECORD).write_text(json.dumps({**content, "files": files}, indent=2) + "\n", encoding="utf-8")
    return {**files, RECORD: file_record(folder / RECORD)}


def check_index_header(path: Path, rows: int, dim: int, factory: str) -> None:
    """FAISS files begin: four letters of the kind, int32 d, int64 ntotal. FAISS allocates what they say."""
    with path.open("rb") as file:
        header = file.read(16)
    letters, found_dim, found_rows = struct.unpack("<4siq", header) if len(header) == 16 else (b"", 0, 0)
    if (found_rows, found_dim) != (rows, dim):
        raise ValueError(f"{path} declares {found_rows} rows of {found_dim} dimensions, recorded were {rows} of {dim}")
    with naming(path):
        expected = file_letters(factory, dim)
    if letters != expected:
        raise ValueError(f"{path} begins with {letters!r}: it is not a {factory} index, which begins with {expected!r}")


def read_index(path: Path, factory: str, flags: int = 0) -> faiss.Index:
    """A FAISS index whose header was checked; none of its parts may be larger than the file. ValueError names it."""
    size = path.stat().st_size
    with _READING, naming(path):
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


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever a parser says of a damaged file, as a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is not a readable part of a shard: {error!r}") from error
