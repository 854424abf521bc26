"""Where a row's picture is, by its id, in the shards of one deployment: against going through all the ids."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from retrieval.index.shard import Shard
from serving.deployments.shards import Opened

NAMES = ["", "Z", "a", "a/b", "ab", "b", "é", "ｆ", "😀", "😀a"]
"""Ascending by code point, and so by UTF-8 bytes; by UTF-16 units the emoji would come before the wide letter."""


class Rows(NamedTuple):
    """What looking up an id needs of a shard."""

    rows: pa.Table
    alive: np.ndarray

    def row_of(self, id: str) -> int | None:
        return Shard.row_of(self, id)  # type: ignore[arg-type]


class Counted:
    """A column that counts which of its values are read."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column
        self.read = 0

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, row: int) -> pa.Scalar:
        self.read += 1
        return self.column[row]


def rows(names: list[str], chunks: int = 1) -> pa.Table:
    bounds = np.linspace(0, len(names), chunks + 1).astype(int)
    ids = pa.chunked_array([names[a:b] for a, b in pairwise(bounds)], pa.string())
    return pa.table({"id": ids, "path": [f"{name}.png" for name in names], "batch": ["one"] * len(names)})


def path(shards: list[Any], id: str) -> tuple[str, str] | None:
    return Opened(dict(enumerate(shards)), rows=0, total=1).path(id)


@pytest.mark.parametrize("chunks", [1, 3, 10])
def test_every_id_is_found_and_no_other(chunks: int) -> None:
    assert sorted(NAMES) == NAMES
    alive = np.array([name != "ab" for name in NAMES])
    shards: list[Any] = [
        Rows(rows([]), np.ones(0, bool)),
        Rows(rows(NAMES[::2], min(chunks, 5)), alive[::2]),
        Rows(rows(NAMES[1::2], min(chunks, 5)), alive[1::2]),
    ]
    for name, lives in zip(NAMES, alive, strict=True):
        assert path(shards, name) == ((f"{name}.png", "one") if lives else None)
    for name in ("A", "a/", "aa", "zz", "😀b", "\ud83d", "\x00"):
        assert path(shards, name) is None
    assert path([], "a") is None


def test_an_id_is_looked_up_without_going_through_all_the_rows() -> None:
    names = [f"{i:06d}" for i in range(100_000)]
    ids = Counted(pa.chunked_array([names]))
    shard: Any = Rows({"id": ids, "path": pa.array(names), "batch": pa.array(names)}, np.ones(len(names), bool))  # type: ignore[arg-type]
    assert path([shard], "077777") == ("077777", "077777")
    assert path([shard], "nothing") is None
    assert ids.read < 40
