"""Sources for tests: files of every kind, how they are listed and read, and what comes of each of their inputs."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from retrieval.folder import Folder
from retrieval.images import ImageRejected, decode
from retrieval.sources.frozen_list import Listing, freeze
from retrieval.sources.inputs import INPUTS
from retrieval.sources.known import Known
from retrieval.sources.reader import InputReader

Outcome = tuple[int, int] | str
"""Size of an image, or why there is none: the reason of its rejection, or the kind of error."""


# Files


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 20), format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


GOOD = picture(format="JPEG")


def png(width: int, height: int, *, pixels: bytes = b"", kind: int = 0, depth: int = 1) -> bytes:
    """A PNG by hand, so that no one has to hold the pixels it declares; ``pixels`` are compressed rows."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def compressed_zeros(count: int) -> bytes:
    """What ``zlib.compress`` could make of so many zeros, without the time it takes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, zlib.DEFLATED, -15)
    checksum = (count % 65521 << 16) + 1
    tail = end.compress(bytes(count % 2**20)) + end.flush() + checksum.to_bytes(4, "big")
    return b"\x78\xda" + block * (count // 2**20) + tail


def write_parquet(file: Path, *, row_group_size: int | None = None, **columns: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, row_group_size=row_group_size)
    return file


def tar_bytes(members: Iterable[tuple[str | tarfile.TarInfo, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(tar_bytes(members.items()))
    return file


# What is listed, and what comes of it


def listed(source: Path | str, into: Path, known: Sequence[Path] = ()) -> tuple[Listing, list[dict[str, Any]]]:
    """List a source into a folder; return what is said of the list and its rows, after what every list must have."""
    listing = freeze(str(source), Folder(into), known=[Known(Folder(folder)) for folder in known])
    rows = listed_rows(into)
    assert [row["input"] for row in rows] == list(range(listing.count))
    assert len({row["path"] for row in rows}) == len(rows)
    assert all((row["reason"] is None) == (row["detail"] is None) for row in rows)
    return listing, rows


def listed_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a list that was written."""
    files = sorted(folder.glob("*.parquet"))
    schemas = [pq.read_schema(file) for file in files]
    assert all(schema.equals(schemas[0]) for schema in schemas)
    assert all(schema.names[: len(INPUTS)] == INPUTS.names for schema in schemas)
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def listed_table(source: Path | str, into: Path) -> pa.Table:
    """List a source into a folder; return the list as a table."""
    freeze(str(source), Folder(into))
    return pa.concat_tables([pq.read_table(file) for file in sorted(into.glob("*.parquet"))])


def read(source: Path | str, rows: Sequence[dict[str, Any]]) -> dict[str, bytes | str]:
    """Read rows of a list: what each path has, or the reason or kind of error for which it has none."""
    table = pa.Table.from_pylist(list(rows), schema=INPUTS)
    contents = InputReader(str(source)).read(table)
    return {
        row["path"]: content if isinstance(content, bytes) else getattr(content, "reason", type(content).__name__)
        for row, content in zip(rows, contents, strict=True)
    }


def outcomes(source: Path, into: Path) -> dict[str, Outcome]:
    """List, read and decode a source; return what comes of each of its paths."""
    rows = listed_table(source, into)
    contents = InputReader(str(source)).read(rows)
    return {path: _outcome(content) for path, content in zip(rows["path"].to_pylist(), contents, strict=True)}


def _outcome(content: bytes | Exception) -> Outcome:
    if isinstance(content, ImageRejected):
        return content.reason
    if isinstance(content, Exception):
        assert isinstance(content, OSError)
        return type(content).__name__
    try:
        return decode(content).size
    except ImageRejected as rejection:
        return rejection.reason
