"""Parquet files of an artifact as a dataset of Ray Data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ray
from ray.data import Dataset

from retrieval.folder import Folder


def read_tables(folder: Folder, names: Iterable[str], **options: Any) -> Dataset:
    """Return the rows of these files, in any order.

    Args:
        options: of ``ray.data.read_parquet``.
    """
    files = [f"{folder.path}/{name}" for name in names]
    # By default a folder above that is called label=dog would be a column of every row, in the place of the file's own.
    return ray.data.read_parquet(files, filesystem=folder.filesystem, partitioning=None, **options)
