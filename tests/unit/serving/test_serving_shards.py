"""Where a row's picture is, by its id, in the shards of one deployment: against going through all the ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest

from retrieval.index.shard import Shard
from serving.deployments.shards import Opened

NAMES = ["", "Z", "a", "a/b", "ab", "b", "é", "ｆ", "😀", "😀a"]
"""Ascending by code point, and so by UTF-8 bytes; by UTF-16 units the emoji would come before the wide letter."""


def rows(names: list[str], chunks: int = 1) -> pa.Table:
    bounds = np.linspace(0, len(names), chunks + 1).astype(int)
    ids = pa.chunked_array([names[a:b] for a, b in pairwise(bounds)], pa.string())
    return pa.table({"id": ids, "path": [f"{name}.png" for name in names], "batch": ["one"] * len(names)})


def shard(names: list[str], chunks: int = 1, removed: Sequence[str] = ()) -> Shard:
    vectors_ND = np.zeros((len(names), 2), np.float16)
    return Shard(faiss.IndexFlatIP(2), vectors_ND, rows(names, chunks), vlm_dim=1, factory="Flat", removed=removed)


def path(shards: list[Any], id: str) -> tuple[str, str] | None:
    return Opened(dict(enumerate(shards)), rows=0, total=1).path(id)


@pytest.mark.parametrize("chunks", [1, 3, 10])
def test_every_id_is_found_and_no_other(chunks: int) -> None:
    assert sorted(NAMES) == NAMES
    chunks = min(chunks, 5)
    shards = [shard([]), *(shard(NAMES[begin::2], chunks, removed=["ab"]) for begin in (0, 1))]
    for name in NAMES:
        assert path(shards, name) == (None if name == "ab" else (f"{name}.png", "one"))
    for name in ("A", "a/", "aa", "zz", "😀b", "\ud83d", "\x00"):
        assert path(shards, name) is None
    assert path([], "a") is None


def test_an_id_is_looked_up_without_going_through_all_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{i:06d}" for i in range(100_000)]
    read: list[int] = []
    id_of = Shard._id

    def counted(shard: Shard, row: int) -> bytes:
        read.append(row)
        return id_of(shard, row)

    monkeypatch.setattr(Shard, "_id", counted)
    assert path([shard(names)], "077777") == ("077777.png", "one")
    assert path([shard(names)], "nothing") is None
    assert len(read) < 40
