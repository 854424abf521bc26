"""The files of a shard: what opens again, and the errors for files that are cut, changed or another shard's."""

from __future__ import annotations

import json
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
from errors import refused
from plain_shard import D1, build, joint, names, queries, save

from retrieval.index.files import INDEX, RECORD, ROWS, VECTORS, verify
from retrieval.index.shard import Shard


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("factory", ["Flat", "IVF8,SQ8", "HNSW8"])
def test_saved_and_loaded_shard_is_the_same(factory: str, mmap: bool, tmp_path: Path) -> None:
    table = pa.table({"path": [f"/{name}" for name in names(400)]})
    shard = build(names(400), joint(400), factory=factory, rows=table)
    files = save(shard, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    verify(tmp_path, files)
    loaded = Shard.open(tmp_path, mmap=mmap)
    assert (loaded.factory, loaded.dim, loaded.vlm_dim, len(loaded)) == (shard.factory, 20, D1, 400)
    assert loaded.rows.equals(shard.rows)
    np.testing.assert_array_equal(loaded.efforts, shard.efforts)
    a, b = shard.search(queries(), 10), loaded.search(queries(), 10)
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.scores, b.scores)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(build(names(400), joint(400), factory="IVF8,SQ8"), tmp_path)
    return tmp_path


FILES = [INDEX, VECTORS, ROWS, RECORD]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_named(saved: Path, name: str) -> None:
    data = (saved / name).read_bytes()
    files = {name: {"bytes": len(data)}}
    for length in (0, 10, len(data) // 2, len(data) - 4):
        (saved / name).write_bytes(data[:length])
        with refused("damaged", name):
            Shard.open(saved)
    (saved / name).unlink()
    with refused("damaged", name):
        Shard.open(saved)
    with refused("damaged", name):
        verify(saved, files)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found_by_verify(name: str, tmp_path: Path) -> None:
    files = save(build(names(400), joint(400), factory="IVF8,SQ8"), tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with refused("damaged", name):
        verify(tmp_path, files)


@pytest.mark.parametrize(("offset", "value"), [(4, 2**30), (8, 2**60), (4, -1), (8, 399)])
def test_an_absurd_index_header_is_refused_before_anything_is_allocated(saved: Path, offset: int, value: int) -> None:
    data = bytearray((saved / INDEX).read_bytes())
    size = 4 if offset == 4 else 8
    data[offset : offset + size] = value.to_bytes(size, "little", signed=True)
    (saved / INDEX).write_bytes(data)
    with refused("damaged", INDEX) as error:
        Shard.open(saved)
    assert "recorded were 400 of 20" in str(error.value)


def test_an_absurd_vector_header_is_refused(saved: Path) -> None:
    data = (saved / VECTORS).read_bytes()
    for shape in (b"(400, 99)", b"(999, 20)"):
        (saved / VECTORS).write_bytes(data.replace(b"(400, 20)", shape))
        with refused("damaged", VECTORS):
            Shard.open(saved)


def test_pickled_vectors_are_never_loaded(saved: Path) -> None:
    np.save(saved / VECTORS, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    record = json.loads((saved / RECORD).read_text())
    record["files"][VECTORS]["bytes"] = (saved / VECTORS).stat().st_size
    (saved / RECORD).write_text(json.dumps(record))
    for mmap in (True, False):
        with refused("damaged", VECTORS):
            Shard.open(saved, mmap=mmap)


def test_files_of_another_shard_are_refused(saved: Path) -> None:
    record = json.loads((saved / RECORD).read_text())
    for key, value in (("rows", 401), ("dim", 21), ("rows", "400"), ("efforts", [1])):
        (saved / RECORD).write_text(json.dumps({**record, key: value}))
        with refused("damaged") as error:
            Shard.open(saved)
        assert error.value.field in (INDEX, RECORD)


def test_mapped_lists_are_not_read_ahead_by_threads(tmp_path: Path) -> None:
    save(build(names(800), joint(800), factory="IVF20,SQ8"), tmp_path)
    index = Shard.open(tmp_path).index
    assert faiss.downcast_InvertedLists(index.invlists).prefetch_nthread == 0
