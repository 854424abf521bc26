"""A shard that is built from a stream of tables, against one that is built in memory."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
from errors import refused
from plain_shard import D1, D2, build, queries, save

import retrieval.index.build
import retrieval.index.exact
from retrieval.artifacts.columns import fixed_size_list, matrix
from retrieval.fusion import unit
from retrieval.index.build import build_shard
from retrieval.index.files import text_vector, verify
from retrieval.index.shard import Shard
from retrieval.index.train import save_trained, train

FILES = ["index.faiss", "vectors.npy", "rows.parquet"]


def halves(rows: int, seed: int = 0, *, d1: int = D1, d2: int = D2) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [unit(rng.standard_normal((rows, dim))).astype(np.float16) for dim in (d1, d2)]


def gallery_rows(rows: int, seed: int = 0, *, first: int = 0, d1: int = D1, d2: int = D2) -> pa.Table:
    vlm, vision = halves(rows, seed, d1=d1, d2=d2)
    ids = [f"{'ä' if n % 3 else 'x'}/{first + n}" for n in np.random.default_rng(seed).permutation(rows)]
    return pa.table(
        {
            "id": ids,
            "path": [f"/{name}" for name in ids],
            "label": pa.array([name[0] if n % 5 else None for n, name in enumerate(ids)], pa.string()),
            "vlm": fixed_size_list(vlm),
            "vision": fixed_size_list(vision),
        }
    )


def in_pieces(table: pa.Table, size: int = 137) -> Callable[[], Iterator[pa.Table]]:
    return lambda: (table.slice(start, size) for start in range(0, table.num_rows, size))


def built(folder: Path, tables: Callable[[], Iterable[pa.Table]], *, vlm_dim: int = D1, **how: Any) -> dict[str, Any]:
    return build_shard(folder, tables(), tables(), vlm_dim=vlm_dim, **how)


def joint_of(table: pa.Table) -> np.ndarray:
    return np.concatenate([matrix(table["vlm"]), matrix(table["vision"])], axis=1)


@pytest.mark.parametrize("factory", ["auto", "Flat", "IVF16,SQ8", "IVF16,RaBitQ", "HNSW16,SQ8", "PQ4x4"])
def test_streamed_shard_has_the_files_of_one_built_in_memory(factory: str, tmp_path: Path) -> None:
    table = gallery_rows(1500)
    records = built(tmp_path / "streamed", in_pieces(table), factory=factory, trained=None)
    rows = table.drop_columns(["vlm", "vision"])
    plain = build(table["id"].to_pylist(), joint_of(table), factory=factory, rows=rows)
    saved = save(plain, tmp_path / "plain")
    assert {name: records[name] for name in FILES} == {name: saved[name] for name in FILES}
    content = json.loads((tmp_path / "streamed/shard.json").read_text())
    mean_D = text_vector(content.pop("mean"))
    np.testing.assert_allclose(mean_D, joint_of(table).mean(axis=0, dtype=np.float64), atol=1e-6)
    assert content == json.loads((tmp_path / "plain/shard.json").read_text())
    verify(tmp_path / "streamed", records)
    found = Shard.open(tmp_path / "streamed").search(queries(8), 10)
    np.testing.assert_array_equal(found.ids, plain.search(queries(8), 10).ids)


def test_neither_order_nor_pieces_change_a_shard(tmp_path: Path) -> None:
    table = gallery_rows(900)
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(900)))
    records = [
        built(tmp_path / str(n), in_pieces(one, size), factory="IVF8,SQ8", trained=None)
        for n, (one, size) in enumerate([(table, 1), (table, 900), (shuffled, 77)])
    ]
    assert records[0] == records[1]
    assert [records[2][name] for name in ("index.faiss", "vectors.npy")] == [
        records[0][name] for name in ("index.faiss", "vectors.npy")
    ]


def test_of_a_repeated_id_the_first_row_stays(tmp_path: Path) -> None:
    table, again = gallery_rows(300, seed=1), gallery_rows(300, seed=2)
    again = again.set_column(0, "id", table["id"].combine_chunks())
    both = pa.concat_tables([table, again.slice(0, 40), table.slice(7, 3)])
    built(tmp_path, in_pieces(both), factory="Flat", trained=None)
    shard = Shard.open(tmp_path)
    plain = build(table["id"].to_pylist(), joint_of(table), rows=table.drop_columns(["vlm", "vision"]))
    assert shard.rows.equals(plain.rows)
    np.testing.assert_array_equal(shard.vectors, plain.vectors)
    assert json.loads((tmp_path / "shard.json").read_text())["duplicates"] == 43


def test_columns_that_only_some_tables_have_are_missing_in_the_others(tmp_path: Path) -> None:
    one, other = gallery_rows(5, 1), gallery_rows(5, 2, first=100)
    other = other.append_column("licence", pa.array(["free"] * 5))
    built(tmp_path, lambda: [one, other], factory="Flat", trained=None)
    assert sorted(Shard.open(tmp_path).rows["licence"].to_pylist(), key=str) == [None] * 5 + ["free"] * 5


MERGED = [
    "IVF16,Flat",
    "IVF16,SQ8",
    "IVF16,SQ4",
    "IVF16,SQfp16",
    "IVF16,PQ4x4",
    "IVF16,RaBitQ",
    "SQ8",
    "RaBitQ",
    "Flat",
]


@pytest.mark.parametrize("factory", MERGED)
def test_shards_of_one_trained_index_are_merged_by_faiss(factory: str, tmp_path: Path) -> None:
    table = gallery_rows(1200)
    save_trained(train(joint_of(table), factory), tmp_path / "trained.faiss")
    parts = [table.slice(0, 500), table.slice(500, 40), table.slice(540)]
    merged = None
    for n, part in enumerate(parts):
        folder = tmp_path / str(n)
        built(folder, in_pieces(part), factory=factory, trained=tmp_path / "trained.faiss")
        index = faiss.read_index(str(folder / "index.faiss"))
        if merged is None:
            merged = index
        else:
            merged.merge_from(index, merged.ntotal if "IVF" in factory else 0)
    ids = np.concatenate([sorted(part["id"].to_pylist()) for part in parts])
    built(tmp_path / "all", in_pieces(table), factory=factory, trained=tmp_path / "trained.faiss")
    whole = Shard.open(tmp_path / "all")
    every_list = faiss.SearchParametersIVF(nprobe=16) if "IVF" in factory else None
    scores, rows = merged.search(queries(8), 20, params=every_list)
    expected, whole_rows = whole.index.search(queries(8), 20, params=every_list)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert np.mean(ids[rows] == whole.rows["id"].to_numpy()[whole_rows]) > 0.95  # all but the order of ties


def test_a_small_shard_keeps_the_lists_it_was_given(tmp_path: Path) -> None:
    table = gallery_rows(2000)
    save_trained(train(joint_of(table), "IVF32,SQ8"), tmp_path / "trained.faiss")
    few = in_pieces(table.slice(0, 10))
    built(tmp_path / "few", few, factory="IVF32,SQ8", trained=tmp_path / "trained.faiss")
    shard = Shard.open(tmp_path / "few")
    assert (shard.factory, len(shard)) == ("IVF32,SQ8", 10)
    assert shard.search(queries(8), 10).ids.tolist() == shard.exact(queries(8), 10).ids.tolist()


def test_the_same_seed_builds_the_same_files(tmp_path: Path) -> None:
    tables = in_pieces(gallery_rows(1000))
    saved = [built(tmp_path / str(n), tables, factory="IVF16,SQ8", trained=None, seed=n // 2) for n in range(3)]
    assert saved[0] == saved[1]
    assert saved[0]["index.faiss"] != saved[2]["index.faiss"]


def test_a_trained_index_of_another_kind_is_refused(tmp_path: Path) -> None:
    table, path = gallery_rows(700), tmp_path / "trained.faiss"
    save_trained(train(joint_of(table), "IVF8,SQ8"), path)
    for factory in ("IVF16,SQ8", "IVF8,SQ4"):
        with refused("damaged", path.name):
            built(tmp_path / "s", in_pieces(table), factory=factory, trained=path)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
@pytest.mark.parametrize("half", ["vlm", "vision"])
def test_a_row_without_unit_halves_is_named(value: float, half: str, tmp_path: Path) -> None:
    table = gallery_rows(300)
    vectors = halves(300)[half == "vision"]
    vectors[211] = value
    table = table.set_column(table.column_names.index(half), half, fixed_size_list(vectors))
    name = table["id"][211].as_py()
    with refused("not-unit", half) as error:
        built(tmp_path, in_pieces(table), factory="Flat", trained=None)
    assert repr(name) in str(error.value)


def test_a_missing_vector_is_named(tmp_path: Path) -> None:
    table = gallery_rows(30)
    missing = pa.array([None if n == 4 else row for n, row in enumerate(table["vlm"].to_pylist())], table["vlm"].type)
    table = table.set_column(table.column_names.index("vlm"), "vlm", missing)
    with refused("not-unit", "vlm") as error:
        built(tmp_path, in_pieces(table, 7), factory="Flat", trained=None)
    assert repr(table["id"][4].as_py()) in str(error.value)


def test_tables_that_do_not_make_a_shard_are_refused(tmp_path: Path) -> None:
    table = gallery_rows(30)
    without = table.set_column(0, "id", pa.array([None, *table["id"].to_pylist()[1:]]))
    with refused("missing", "id"):
        built(tmp_path, in_pieces(without), factory="Flat", trained=None)
    with refused("damaged", "vision"):
        built(tmp_path, in_pieces(table), vlm_dim=9, factory="Flat", trained=None)
    mixed = [table, gallery_rows(3, d2=16)]
    with refused("damaged", "vision"):
        built(tmp_path, lambda: mixed, factory="Flat", trained=None)
    for second in (table.slice(0, 29), pa.concat_tables([table, table]), table.slice(1), gallery_rows(30, 5)):
        passes = iter([[table], [second]])
        with refused("damaged", "id"):
            built(tmp_path, lambda p=passes: next(p), factory="Flat", trained=None)


def test_batches_that_disagree_on_metadata_are_brought_together(tmp_path: Path) -> None:
    tables = [gallery_rows(20, n, first=20 * n) for n in range(4)]
    tables[0] = tables[0].append_column("score", pa.array([3] * 20)).append_column("year", pa.array(["1999"] * 20))
    tables[1] = tables[1].append_column("score", pa.array([3.5] * 20)).append_column("year", pa.array([2001] * 20))
    tables[2] = tables[2].append_column("score", pa.nulls(20))
    built(tmp_path, lambda: tables, factory="Flat", trained=None)
    rows = Shard.open(tmp_path).rows
    assert (rows["score"].type, rows["year"].type) == (pa.string(), pa.string())
    assert sorted(set(rows["score"].to_pylist()), key=str) == ["3", "3.5", None]
    assert sorted(set(rows["year"].to_pylist()), key=str) == ["1999", "2001", None]


def test_memory_does_not_hold_the_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's memory and Arrow's, without FAISS's own: the compressed index."""
    monkeypatch.setattr(retrieval.index.build, "BLOCK_ROWS", 1024)
    monkeypatch.setattr(retrieval.index.exact, "_FLOAT32_BLOCK", 1024)
    rows, dims = 64_000, 64
    pieces = [gallery_rows(2000, n, first=2000 * n, d1=dims, d2=dims) for n in range(rows // 2000)]
    save_trained(train(joint_of(pieces[0]), "IVF32,SQ8"), tmp_path / "trained.faiss")
    gc.collect()
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    built(tmp_path / "s", lambda: pieces, vlm_dim=dims, factory="IVF32,SQ8", trained=tmp_path / "trained.faiss")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.7 * rows * 2 * dims * 2
    assert pa.total_allocated_bytes() < arrow + 2**20
