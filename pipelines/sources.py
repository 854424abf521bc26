"""Where images come from: a folder of files, with class folders or without, or Parquet with the bytes in it.

A source becomes a dataset of ``path`` and ``label`` (empty if there is none), and, from Parquet, ``data`` (bytes).
Files are only listed here: they are read where they are decoded, so that one that can not be read costs one row and
not the job.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import ray
from pyarrow import fs

from retrieval.folder import Folder

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
    if root.path.endswith(".parquet") or root.files(suffix=".parquet"):
        return _open_parquet(root)
    tables = list(_listed(root))
    if not tables:
        raise ValueError(f"{uri} is a folder without files; expected images, in class folders or not")
    return Source(ray.data.from_arrow(tables), sum(table.num_rows for table in tables), root)


def rows_per_block(rows: int) -> int:
    """Return how many inputs make a block: about a thousand blocks, each large enough to be worth sending."""
    return min(max(rows // BLOCKS, ROWS_PER_BLOCK[0]), ROWS_PER_BLOCK[1])


def _listed(root: Folder) -> Iterator[pa.Table]:
    found = root.filesystem.get_file_info(fs.FileSelector(root.path, recursive=True))
    names = sorted(info.path[len(root.path) + 1 :] for info in found if info.type == fs.FileType.File)
    names = [name for name in names if not any(part.startswith(".") for part in PurePosixPath(name).parts)]
    step = rows_per_block(len(names))
    for start in range(0, len(names), step):
        block = names[start : start + step]
        labels = [PurePosixPath(name).parts[0] if "/" in name else "" for name in block]
        yield pa.table({"path": pa.array(block, pa.string()), "label": pa.array(labels, pa.string())})


def _open_parquet(root: Folder) -> Source:
    dataset = ray.data.read_parquet(root.path, filesystem=root.filesystem)
    columns = dataset.schema().names
    if missing := {"image", "path"} - set(columns):
        raise ValueError(
            f"{root.uri} has no column {' and '.join(sorted(missing))}; it has {', '.join(columns)}."
            " A gallery's Parquet needs image (bytes) and path (a name of its own for each image)."
        )
    kept = [name for name in ("image", "path", "label") if name in columns]
    rows = dataset.count()
    # Parquet files are often of one block; smaller blocks let every core decode.
    dataset = dataset.select_columns(kept).repartition(target_num_rows_per_block=rows_per_block(rows))
    return Source(dataset.map_batches(_as_rows, batch_format="pyarrow"), rows, None)


def _as_rows(table: pa.Table) -> pa.Table:
    image = table["image"]
    if pa.types.is_struct(image.type):
        image = pa.chunked_array([chunk.field("bytes") for chunk in image.chunks])
    labelled = "label" in table.column_names
    label = table["label"].cast(pa.string()).fill_null("") if labelled else pa.array([""] * table.num_rows)
    path = table["path"].cast(pa.string()).fill_null("")
    return pa.table({"path": path, "label": label, "data": image.cast(pa.binary()).fill_null(b"")})
