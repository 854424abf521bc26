"""Where images come from: a folder of files, with class folders or without, or Parquet with the bytes in it.

A source becomes a dataset of ``path`` and ``label`` (empty if there is none), and, from Parquet, ``data`` (bytes).
Files are only listed here: they are read where they are decoded, so that one that can not be read costs one row and
not the job.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import ray
from pyarrow import fs

from retrieval.folder import Folder
from retrieval.pictures import parquet_files

BLOCKS, ROWS_PER_BLOCK = 1024, (64, 4096)


@dataclass(frozen=True)
class Source:
    """A dataset to embed, the number of its inputs if that is known, and the folder that its paths are relative to."""

    dataset: ray.data.Dataset
    rows: int | None
    root: Folder | None


def open_source(uri: str) -> Source:
    """Open an image folder, or a Parquet file or folder, at any pyarrow URI.

    A folder's first-level folders are its classes: ``dog/a.jpg`` has the label ``dog``, ``a.jpg`` has none. Hidden
    files and folders (``.name``) are passed over. Parquet needs the columns ``image`` (bytes, or a struct with
    ``bytes``) and ``path`` (a name of its own for each image); ``label`` is taken where it exists.

    Raises:
        ValueError: there is nothing at ``uri``, or nothing to embed in it.
    """
    root = Folder(uri)
    if not root.exists():
        raise ValueError(f"there is nothing at {uri}; expected an image folder or Parquet")
    files = parquet_files(root)
    if files:
        return _open_parquet(root, files)
    if root.filesystem.get_file_info(root.path).type == fs.FileType.File:
        raise ValueError(f"{uri} is a file; expected an image folder, or Parquet with a name that ends in .parquet")
    tables = list(_listed(root))
    if not tables:
        raise ValueError(f"{uri} is a folder without files; expected images, in class folders or not")
    return Source(ray.data.from_arrow(tables), sum(table.num_rows for table in tables), root)


def rows_per_block(rows: int) -> int:
    """Return how many inputs make a block: about a thousand blocks, each large enough to be worth sending."""
    return min(max(rows // BLOCKS, ROWS_PER_BLOCK[0]), ROWS_PER_BLOCK[1])


def _listed(root: Folder) -> Iterator[pa.Table]:
    names = sorted(_local_names(root.local_path) if root.local_path else _remote_names(root))
    step = rows_per_block(len(names))
    for start in range(0, len(names), step):
        block = names[start : start + step]
        labels = [PurePosixPath(name).parts[0] if "/" in name else "" for name in block]
        yield pa.table({"path": pa.array(block, pa.string()), "label": pa.array(labels, pa.string())})


def _remote_names(root: Folder) -> Iterator[str]:
    for info in root.filesystem.get_file_info(fs.FileSelector(root.path, recursive=True)):
        name = info.path[len(root.path) + 1 :]
        if info.type == fs.FileType.File and not any(part.startswith(".") for part in PurePosixPath(name).parts):
            yield name


def _local_names(folder: Path, inside: str = "", above: tuple[Path, ...] = ()) -> Iterator[str]:
    # Arrow's own listing follows a link to a folder above it until the path is too long, leaves out links to nothing
    # without a word, and fails as a whole at a name that is not UTF-8.
    above = (*above, folder.resolve())
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        name = inside + os.fsencode(entry.name).decode(errors="replace")
        if entry.is_file() or not entry.exists():
            yield name
        elif entry.is_dir() and entry.resolve() not in above:
            yield from _local_names(entry, f"{name}/", above)


def _open_parquet(root: Folder, files: list[str]) -> Source:
    dataset = ray.data.read_parquet(files, filesystem=root.filesystem)
    schema = dataset.schema()
    columns = schema.names
    if missing := {"image", "path"} - set(columns):
        raise ValueError(
            f"{root.uri} has no column {' and '.join(sorted(missing))}; it has {', '.join(columns)}."
            " A gallery's Parquet needs image (bytes) and path (a name of its own for each image)."
        )
    image = schema.types[columns.index("image")]
    if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0:
        image = image.field("bytes").type
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        raise ValueError(f"{root.uri}: column image must hold bytes, or a struct with a field bytes; it holds {image}")
    kept = [name for name in ("image", "path", "label") if name in columns]
    rows = dataset.count()
    if not rows:
        raise ValueError(f"{root.uri} has no rows")
    # Parquet files are often of one block; smaller blocks let every core decode.
    dataset = dataset.select_columns(kept).repartition(target_num_rows_per_block=rows_per_block(rows))
    return Source(dataset.map_batches(_as_rows, batch_format="pyarrow"), rows, None)


def _as_rows(table: pa.Table) -> pa.Table:
    image = table["image"]
    if pa.types.is_struct(image.type):
        image = pc.struct_field(image, "bytes")
    labelled = "label" in table.column_names
    label = table["label"].cast(pa.string()).fill_null("") if labelled else pa.array([""] * table.num_rows)
    path = table["path"].cast(pa.string()).fill_null("")
    return pa.table({"path": path, "label": label, "data": image.cast(pa.binary()).fill_null(b"")})
