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

import retrieval.index.kinds
import retrieval.index.shard
from retrieval.artifacts.columns import fixed_size_list
from retrieval.fusion import fused_query, unit
from retrieval.index.build import build_shard
from retrieval.index.files import verify
from retrieval.index.shard import Shard
from retrieval.index.train import load_trained, save_trained, train, training_rows

D1, D2 = 8, 12
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


def joint(table: pa.Table) -> np.ndarray:
    return np.concatenate(
        [
            np.array(table[name].combine_chunks().flatten().to_numpy()).reshape(table.num_rows, -1)
            for name in ("vlm", "vision")
        ],
        axis=1,
    )


def queries(count: int = 8, weight: float = 0.4) -> np.ndarray:
    rng = np.random.default_rng(9)
    return fused_query(unit(rng.standard_normal((count, D1))), unit(rng.standard_normal((count, D2))), weight)


@pytest.mark.parametrize("factory", ["auto", "Flat", "IVF16,SQ8", "IVF16,RaBitQ", "HNSW16,SQ8", "PQ4x4"])
def test_streamed_shard_has_the_files_of_one_built_in_memory(factory: str, tmp_path: Path) -> None:
    table = gallery_rows(1500)
    records = built(tmp_path / "streamed", in_pieces(table), vlm_dim=D1, factory=factory, trained=None)
    rows = table.drop_columns(["vlm", "vision"])
    plain = Shard.build(table["id"].to_pylist(), joint(table), vlm_dim=D1, factory=factory, rows=rows)
    saved = plain.save(tmp_path / "plain")
    assert {name: records[name] for name in FILES} == {name: saved[name] for name in FILES}
    assert (tmp_path / "streamed/shard.json").read_text() == (tmp_path / "plain/shard.json").read_text()
    verify(tmp_path / "streamed", records)
    found = Shard.load(tmp_path / "streamed").search(queries(), 10)
    np.testing.assert_array_equal(found.ids, plain.search(queries(), 10).ids)


def test_neither_order_nor_pieces_change_a_shard(tmp_path: Path) -> None:
    table = gallery_rows(900)
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(900)))
    records = [
        built(tmp_path / str(n), in_pieces(one, size), vlm_dim=D1, factory="IVF8,SQ8", trained=None)
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
    built(tmp_path, in_pieces(both), vlm_dim=D1, factory="Flat", trained=None)
    shard = Shard.load(tmp_path)
    plain = Shard.build(table["id"].to_pylist(), joint(table), vlm_dim=D1, rows=table.drop_columns(["vlm", "vision"]))
    assert shard.rows.equals(plain.rows)
    np.testing.assert_array_equal(shard.vectors, plain.vectors)
    assert json.loads((tmp_path / "shard.json").read_text())["duplicates"] == 43


def test_columns_that_only_some_tables_have_are_missing_in_the_others(tmp_path: Path) -> None:
    one, other = gallery_rows(5, 1), gallery_rows(5, 2, first=100)
    other = other.append_column("licence", pa.array(["free"] * 5))
    built(tmp_path, lambda: [one, other], vlm_dim=D1, factory="Flat", trained=None)
    assert sorted(Shard.load(tmp_path).rows["licence"].to_pylist(), key=str) == [None] * 5 + ["free"] * 5


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
    save_trained(train(joint(table), factory), tmp_path / "trained.faiss")
    parts = [table.slice(0, 500), table.slice(500, 40), table.slice(540)]
    merged = None
    for n, part in enumerate(parts):
        folder = tmp_path / str(n)
        built(folder, in_pieces(part), vlm_dim=D1, factory=factory, trained=tmp_path / "trained.faiss")
        index = faiss.read_index(str(folder / "index.faiss"))
        if merged is None:
            merged = index
        else:
            merged.merge_from(index, merged.ntotal if "IVF" in factory else 0)
    ids = np.concatenate([sorted(part["id"].to_pylist()) for part in parts])
    built(tmp_path / "all", in_pieces(table), vlm_dim=D1, factory=factory, trained=tmp_path / "trained.faiss")
    whole = Shard.load(tmp_path / "all")
    every_list = faiss.SearchParametersIVF(nprobe=16) if "IVF" in factory else None
    scores, rows = merged.search(queries(), 20, params=every_list)
    expected, whole_rows = whole._index.search(queries(), 20, params=every_list)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert np.mean(ids[rows] == whole.rows["id"].to_numpy()[whole_rows]) > 0.95  # all but the order of ties


def test_a_small_shard_keeps_the_lists_it_was_given(tmp_path: Path) -> None:
    table = gallery_rows(2000)
    save_trained(train(joint(table), "IVF32,SQ8"), tmp_path / "trained.faiss")
    few = in_pieces(table.slice(0, 10))
    built(tmp_path / "few", few, vlm_dim=D1, factory="IVF32,SQ8", trained=tmp_path / "trained.faiss")
    shard = Shard.load(tmp_path / "few")
    assert (shard.factory, len(shard)) == ("IVF32,SQ8", 10)
    assert shard.search(queries(), 10).ids.tolist() == shard.exact(queries(), 10).ids.tolist()


def test_a_trained_index_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    table, path = gallery_rows(700), tmp_path / "trained.faiss"
    save_trained(train(joint(table), "IVF8,SQ8"), path)
    assert load_trained(path, "IVF8,SQ8", D1 + D2).is_trained
    for factory in ("IVF16,SQ8", "IVF8,SQ4"):
        with pytest.raises(ValueError, match=r"trained\.faiss holds an index of 8 lists, 21 bytes a code"):
            built(tmp_path / "s", in_pieces(table), vlm_dim=D1, factory=factory, trained=path)
    with pytest.raises(ValueError, match=r"begins with b'IwSq': it is not a IVF8,Flat index"):
        load_trained(path, "IVF8,Flat", D1 + D2)
    with pytest.raises(ValueError, match="declares 0 rows of 20 dimensions, recorded were 0 of 21"):
        load_trained(path, "IVF8,SQ8", D1 + D2 + 1)
    for length in (0, 20, path.stat().st_size // 2):
        cut = tmp_path / "cut.faiss"
        cut.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ValueError, match=r"cut\.faiss"):
            load_trained(cut, "IVF8,SQ8", D1 + D2)
    faiss.write_index(faiss.index_factory(D1 + D2, "IVF8,SQ8", faiss.METRIC_INNER_PRODUCT), str(path))
    with pytest.raises(ValueError, match="is not trained"):
        load_trained(path, "IVF8,SQ8", D1 + D2)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
@pytest.mark.parametrize("half", ["vlm", "vision"])
def test_a_row_without_unit_halves_is_named(value: float, half: str, tmp_path: Path) -> None:
    table = gallery_rows(300)
    vectors = halves(300)[half == "vision"]
    vectors[211] = value
    table = table.set_column(table.column_names.index(half), half, fixed_size_list(vectors))
    name = table["id"][211].as_py()
    with pytest.raises(ValueError, match=f"the {half} vector of row '{name}' has norm"):
        built(tmp_path, in_pieces(table), vlm_dim=D1, factory="Flat", trained=None)


def test_a_missing_vector_is_named(tmp_path: Path) -> None:
    table = gallery_rows(30)
    missing = pa.array([None if n == 4 else row for n, row in enumerate(table["vlm"].to_pylist())], table["vlm"].type)
    table = table.set_column(table.column_names.index("vlm"), "vlm", missing)
    with pytest.raises(ValueError, match=f"the vlm vector of row '{table['id'][4].as_py()}' has norm nan"):
        built(tmp_path, in_pieces(table, 7), vlm_dim=D1, factory="Flat", trained=None)


def test_tables_that_do_not_make_a_shard_are_refused(tmp_path: Path) -> None:
    table = gallery_rows(30)
    without = table.set_column(0, "id", pa.array([None, *table["id"].to_pylist()[1:]]))
    with pytest.raises(ValueError, match="1 of 30 ids are missing"):
        built(tmp_path, in_pieces(without), vlm_dim=D1, factory="Flat", trained=None)
    with pytest.raises(ValueError, match=r"vectors of \(9, 11\) dimensions got rows of \(8, 12\)"):
        built(tmp_path, in_pieces(table), vlm_dim=9, factory="Flat", trained=None)
    mixed = [table, gallery_rows(3, d2=16)]
    with pytest.raises(ValueError, match=r"vectors of \(8, 12\) dimensions got rows of \(8, 16\)"):
        built(tmp_path, lambda: mixed, vlm_dim=D1, factory="Flat", trained=None)
    for second in (table.slice(0, 29), pa.concat_tables([table, table]), table.slice(1), gallery_rows(30, 5)):
        passes = iter([[table], [second]])
        with pytest.raises(ValueError, match=r"got only 29 vectors|not those of its rows, in their order"):
            built(tmp_path, lambda p=passes: next(p), vlm_dim=D1, factory="Flat", trained=None)


def test_batches_that_disagree_on_metadata_are_brought_together(tmp_path: Path) -> None:
    tables = [gallery_rows(20, n, first=20 * n) for n in range(4)]
    tables[0] = tables[0].append_column("score", pa.array([3] * 20)).append_column("year", pa.array(["1999"] * 20))
    tables[1] = tables[1].append_column("score", pa.array([3.5] * 20)).append_column("year", pa.array([2001] * 20))
    tables[2] = tables[2].append_column("score", pa.nulls(20))
    built(tmp_path, lambda: tables, factory="Flat", trained=None)
    rows = Shard.load(tmp_path).rows
    assert (rows["score"].type, rows["year"].type) == (pa.string(), pa.string())
    assert sorted(set(rows["score"].to_pylist()), key=str) == ["3", "3.5", None]
    assert sorted(set(rows["year"].to_pylist()), key=str) == ["1999", "2001", None]


def test_memory_does_not_hold_the_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's memory and Arrow's, without FAISS's own: the compressed index."""
    monkeypatch.setattr(retrieval.index.shard, "_FLOAT32_BLOCK", 1024)
    rows, dims = 96_000, 64
    pieces = [gallery_rows(2000, n, first=2000 * n, d1=dims, d2=dims) for n in range(rows // 2000)]
    save_trained(train(joint(pieces[0]), "IVF32,SQ8"), tmp_path / "trained.faiss")
    gc.collect()
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    built(tmp_path / "s", lambda: pieces, vlm_dim=dims, factory="IVF32,SQ8", trained=tmp_path / "trained.faiss")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.7 * rows * 2 * dims * 2
    assert pa.total_allocated_bytes() < arrow + 2**20


def test_training_uses_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def on_gpus(index: faiss.Index) -> faiss.Index:
        asked.append(index.d)
        return index

    monkeypatch.setattr(retrieval.index.kinds.faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(retrieval.index.kinds.faiss, "index_cpu_to_all_gpus", on_gpus, raising=False)
    table = gallery_rows(700)
    index = train(joint(table), "IVF8,SQ8")
    assert asked == [D1 + D2]
    assert index.is_trained
    assert index.clustering_index is None


@pytest.mark.parametrize(
    ("factory", "rows"),
    [("Flat", 0), ("HNSW32", 0), ("SQfp16", 0), ("SQ8", 50_000), ("IVF4000,SQ8", 256_000), ("IVF16,Flat", 50_000)],
)
def test_training_rows(factory: str, rows: int) -> None:
    assert training_rows(factory) == rows
