"""The files of a saved shard: their names, their record, and the checks before and after they are read."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

INDEX, VECTORS, ROWS, RECORD = "index.faiss", "vectors.npy", "rows.parquet", "shard.json"
LAMBDA_GRID: Final = (0.0, 0.25, 0.5, 0.75, 1.0)


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


def check_index_header(path: Path, rows: int, dim: int) -> None:
    """FAISS files begin: four letters of the kind, int32 d, int64 ntotal. FAISS allocates what they say."""
    with path.open("rb") as file:
        header = file.read(16)
    found_dim, found_rows = struct.unpack("<4xiq", header) if len(header) == 16 else (0, 0)
    if (found_rows, found_dim) != (rows, dim):
        raise ValueError(f"{path} declares {found_rows} rows of {found_dim} dimensions, recorded were {rows} of {dim}")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever a parser says of a damaged file, as a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is not a readable part of a shard: {error!r}") from error
