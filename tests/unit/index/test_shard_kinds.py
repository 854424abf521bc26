"""Kinds of index: what is chosen for rows, dimensions and memory, and what a damaged file of each does."""

from __future__ import annotations

import itertools
import json
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import pytest
from errors import refused
from plain_shard import D1, D2, build, joint, save

from retrieval.errors import DamagedError
from retrieval.index.files import INDEX, RECORD, read_index
from retrieval.index.kinds import choose_factory, fitted_factory, memory_of, new_index
from retrieval.index.shard import Shard
from retrieval.index.train import train

MIB = 2**20


@pytest.mark.parametrize(
    ("rows", "mebibytes", "expected"),
    [
        (50_000, None, "Flat"),
        (50_000, 123, "Flat"),
        (50_000, 122, "IVF892,SQ8"),
        (1_000_000, None, "IVF4000,SQ8"),
        (1_000_000, 700, "IVF4000,SQ8"),
        (1_000_000, 400, "IVF4000,SQ4"),
        (1_000_000, 120, "IVF4000,RaBitQ"),
        (10, 1, "Flat"),
    ],
)
def test_auto_is_the_best_that_fits(rows: int, mebibytes: int | None, expected: str) -> None:
    assert choose_factory("auto", rows, 640, mebibytes and mebibytes * MIB) == expected


def test_what_does_not_fit_says_what_it_needs() -> None:
    with refused("too-large", "memory_per_shard") as error:
        choose_factory("auto", 1_000_000, 640, 50 * MIB)
    for fact in ("1,000,000 rows of 640 dimensions", "IVF4000,RaBitQ, takes 10", "only 50 MiB"):
        assert fact in str(error.value)
    with refused("too-large", "memory_per_shard") as error:
        choose_factory("HNSW32", 1_000_000, 640, 600 * MIB)
    for fact in ("HNSW32, takes 2,", "only 600 MiB"):
        assert fact in str(error.value)
    assert choose_factory("HNSW32", 1_000_000, 640, None) == "HNSW32"
    assert choose_factory("IVF4000,SQ4", 100, 640, MIB) == "IVF2,SQ4"


@pytest.mark.parametrize(
    ("factory", "rows", "expected"),
    [
        ("auto", 0, "Flat"),
        ("auto", 50_000, "Flat"),
        ("auto", 60_000, "IVF976,SQ8"),
        ("auto", 1_000_000, "IVF4000,SQ8"),
        ("IVF64,Flat", 64 * 39, "IVF64,Flat"),
        ("IVF64,Flat", 64 * 39 - 1, "IVF63,Flat"),
        ("IVF64,Flat", 38, "Flat"),
        ("IVF64,PQ4", 9983, "Flat"),
        ("IVF64,PQ4", 9984, "IVF64,PQ4"),
        ("PQ4x4", 700, "PQ4x4"),
        ("HNSW32", 3, "HNSW32"),
    ],
)
def test_factory_is_fitted_to_the_rows(factory: str, rows: int, expected: str) -> None:
    assert fitted_factory(factory, rows, 320) == expected


@pytest.mark.parametrize("factory", ["PQ7", "IVF16,PQ3", "Best", "IVF16,SQ8,RFlat", "IDMap,Flat"])
def test_factories_that_do_not_fit_are_refused(factory: str) -> None:
    with refused("unsupported", "factory") as error:
        fitted_factory(factory, 30, 20)
    assert repr(factory) in str(error.value)


@pytest.mark.parametrize(
    ("factory", "fact"),
    [
        ("NSG16", "IndexNSGFlat"),
        ("HNSW16,PQ4", "IndexHNSWPQ"),
        ("RQ4x8", "IndexResidualQuantizer"),
        ("IVF99999999,Flat", "up to 16,777,216 lists"),
        ("PQ4x24", "codes of up to 16 bits"),
        ("LSH", "does not suit 20 dimensions"),
    ],
)
def test_kinds_that_a_shard_cannot_use_are_refused(factory: str, fact: str) -> None:
    for make in (new_index, lambda f, d: choose_factory(f, 10, d, None)):
        with refused("unsupported", "factory") as error:
            make(factory, 20)
        assert fact in str(error.value)


KINDS = [
    "Flat", "SQ8", "SQ4", "SQfp16", "PQ5x4", "PQ5x4fs", "RaBitQ", "RaBitQfs", "HNSW16", "HNSW16,SQ8",
    "IVF20,Flat", "IVF20,SQ8", "IVF20,SQ4", "IVF20,SQfp16", "IVF20,PQ5x4", "IVF20,PQ5x4fs", "IVF20,RaBitQ",
    "IVF20,RaBitQfs", "RR20,IVF20,RaBitQ", "PCA10,IVF20,SQ8", "OPQ5,IVF20,PQ5x4",
]  # fmt: skip


@pytest.mark.parametrize("factory", KINDS)
def test_memory_is_that_of_the_index_that_faiss_writes(factory: str) -> None:
    rows = joint(20_000)
    index = train(rows[:800], factory)
    index.add(rows.astype(np.float32))
    written = len(faiss.serialize_index(index))
    assert 0.9 * written < memory_of(factory, 20_000, D1 + D2) < 1.1 * written + 4000


@pytest.fixture(scope="module", params=KINDS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param.replace(",", "-"))
    names = [f"{n:04d}" for n in range(800)]
    save(build(names, joint(800), factory=request.param), folder)
    return folder


@pytest.mark.parametrize(
    ("offset", "value"), [(4, 2**30), (8, 2**60), (4, -1), (8, -1), (8, 799), (0, 0x46495849), (0, 0x66534E49)]
)
def test_an_absurd_header_is_refused_before_faiss_reads(saved: Path, offset: int, value: int) -> None:
    data = bytearray((saved / INDEX).read_bytes())
    struct.pack_into("<q" if offset == 8 else "<i", data, offset, value)
    if data == (saved / INDEX).read_bytes():
        pytest.skip("these are the letters of this kind")
    with changed(saved, bytes(data)), refused("damaged", INDEX):
        Shard.open(saved)


def test_a_cut_file_is_refused_by_size_and_by_faiss(saved: Path) -> None:
    data = (saved / INDEX).read_bytes()
    for length in (0, 3, 16, 40, len(data) // 2, len(data) - 1):
        with changed(saved, data[:length]):
            with refused("damaged", INDEX):
                Shard.open(saved)
            with refused("damaged", INDEX):
                read_index(saved / INDEX, "Flat")


def test_no_length_in_a_file_makes_faiss_allocate_more_than_the_file(saved: Path) -> None:
    """Each eight bytes that may be a length are made an absurd one: FAISS refuses, or reads them as something else."""
    factory = json.loads((saved / RECORD).read_text())["factory"]
    data = (saved / INDEX).read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    named = 0
    for offset, value in itertools.product(range(21, min(len(data), 300) - 8, 2), (2**31, 2**62)):
        absurd = bytearray(data)
        struct.pack_into("<q", absurd, offset, value)
        with changed(saved, bytes(absurd)):
            try:
                read_index(saved / INDEX, factory)
            except DamagedError as error:
                named += error.field == INDEX
    assert named
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


@contextmanager
def changed(folder: Path, data: bytes) -> Iterator[None]:
    """The index file with other bytes, for a while."""
    true = (folder / INDEX).read_bytes()
    (folder / INDEX).write_bytes(data)
    try:
        yield
    finally:
        (folder / INDEX).write_bytes(true)
