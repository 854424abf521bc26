"""One shard against a plain full sort: exact scores, ties, kinds of index, files and their damage."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest

from retrieval.fusion import fused_query, score, unit
from retrieval.index.effort import LAMBDA_GRID
from retrieval.index.files import verify
from retrieval.index.hits import merge_topk
from retrieval.index.kinds import fitted_factory
from retrieval.index.shard import SearchParams, Shard
from retrieval.metrics import neighbour_recall

D1, D2 = 8, 12


def joint(rows: int, seed: int = 0, *, d1: int = D1, d2: int = D2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    halves = [unit(rng.standard_normal((rows, dim))) for dim in (d1, d2)] if rows else np.empty((2, 0, d1))
    return np.concatenate(halves, axis=1).astype(np.float16) if rows else np.empty((0, d1 + d2), np.float16)


def with_twins(rows: int, seed: int = 0) -> np.ndarray:
    """Vectors of which two thirds are copies of another row, so that most cuts go through a tie."""
    vectors = joint(rows, seed)
    rng = np.random.default_rng(seed + 1)
    copies = rng.permutation(rows)[: 2 * rows // 3]
    vectors[copies] = vectors[rng.integers(0, max(rows // 20, 1), size=len(copies))]
    return vectors


def names(rows: int, seed: int = 0) -> list[str]:
    """Ids whose order is neither that of insertion nor numeric, some of them beyond ASCII."""
    return [f"{'ä' if n % 3 else 'x'}/{n}.jpg" for n in np.random.default_rng(seed).permutation(rows)]


def queries(count: int = 4, weight: float = 0.4, seed: int = 9) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return fused_query(unit(rng.standard_normal((count, D1))), unit(rng.standard_normal((count, D2))), weight)


def plain_search(ids: list[str], vectors: np.ndarray, query: np.ndarray, k: int) -> list[list[str]]:
    """All float64 scores, rounded to float32, sorted by Python."""
    on_grid = np.rint(query.astype(np.float64) * 2**24) / 2**24
    scores = (on_grid @ vectors.astype(np.float64).T).astype(np.float32)
    return [[ids[n] for n in sorted(range(len(ids)), key=lambda n: (-row[n], ids[n]))[:k]] for row in scores]


@pytest.mark.parametrize("k", [1, 10, 100, 299, 300, 10**9])
def test_flat_shard_equals_a_full_sort_with_ties(k: int) -> None:
    ids, vectors = names(300), with_twins(300)
    shard = Shard.build(ids, vectors, vlm_dim=D1)
    assert shard.factory == "Flat"
    hits = shard.search(queries(), k)
    expected = plain_search(ids, vectors, queries(), k)
    assert hits.ids.tolist() == expected
    assert shard.exact(queries(), k).ids.tolist() == expected


@pytest.mark.parametrize("shards", [1, 2, 7])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_sharded_search_equals_unsharded_to_the_bit(shards: int, weight: float) -> None:
    ids, vectors = names(700), with_twins(700)
    whole = Shard.build(ids, vectors, vlm_dim=D1)
    home = np.random.default_rng(3).integers(shards, size=700)
    parts = [
        Shard.build([ids[n] for n in np.flatnonzero(home == s)], vectors[home == s], vlm_dim=D1) for s in range(shards)
    ]
    for k in (1, 10, 50):
        query = queries(weight=weight)
        merged = merge_topk([part.search(query, k) for part in parts], k)
        alone = whole.search(query, k)
        np.testing.assert_array_equal(merged.ids, alone.ids)
        for part in ("scores", "text_part", "visual_part"):
            np.testing.assert_array_equal(getattr(merged, part), getattr(alone, part))
        for found, shard, row in zip(merged.ids.flat, merged.shards.flat, merged.rows.flat, strict=True):
            assert parts[shard].rows["id"][int(row)].as_py() == found


def test_more_twins_than_candidates_still_come_out_by_id() -> None:
    vectors = joint(2000)
    vectors[100:1900] = vectors[100]
    ids = names(2000)
    query = vectors[100][None].astype(np.float32) / 2
    for factory in ("Flat", "IVF16,SQ8", "IVF16,Flat", "SQ8"):
        shard = Shard.build(ids, vectors, vlm_dim=D1, factory=factory)
        assert shard.search(query, 10).ids.tolist() == [sorted(ids[100:1900])[:10]], factory


def test_scores_and_parts_are_those_of_the_formula() -> None:
    ids, vectors = names(50), joint(50)
    rng = np.random.default_rng(5)
    text, visual = unit(rng.standard_normal((2, D1))), unit(rng.standard_normal((2, D2)))
    hits = Shard.build(ids, vectors, vlm_dim=D1).search(fused_query(text, visual, 0.3), 50)
    scores = score(text, visual, 0.3, vectors[:, :D1], vectors[:, D1:])
    for q in range(2):
        place = [ids.index(name) for name in hits.ids[q]]
        np.testing.assert_array_equal(hits.scores[q], scores[q, place])
        np.testing.assert_allclose(hits.text_part[q], 0.7 * vectors[place, :D1] @ text[q], atol=1e-3)
        np.testing.assert_allclose(hits.visual_part[q], 0.3 * vectors[place, D1:] @ visual[q], atol=1e-3)
    np.testing.assert_allclose(hits.text_part + hits.visual_part, hits.scores, atol=1e-6)
    assert (np.diff(hits.scores, axis=1) <= 0).all()
    assert hits.scores.dtype == hits.text_part.dtype == np.float32


@pytest.mark.parametrize("factory", ["Flat", "IVF8,SQ8", "HNSW16"])
def test_results_do_not_depend_on_insertion_order(factory: str) -> None:
    ids, vectors = names(500), with_twins(500)
    shuffled = np.random.default_rng(4).permutation(500)
    one = Shard.build(ids, vectors, vlm_dim=D1, factory=factory)
    other = Shard.build([ids[n] for n in shuffled], vectors[shuffled], vlm_dim=D1, factory=factory)
    a, b = one.search(queries(), 20), other.search(queries(), 20)
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.scores, b.scores)
    assert one.rows.equals(other.rows)
    np.testing.assert_array_equal(one.efforts, other.efforts)


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16,SQ8", "HNSW16", "SQ8", "PCA20,IVF16,SQ8", "OPQ4,IVF16,SQ8"])
def test_approximate_indexes_find_most_and_score_exactly(factory: str, tmp_path: Path) -> None:
    ids, vectors = names(2000), joint(2000)
    shard = Shard.build(ids, vectors, vlm_dim=D1, factory=factory)
    assert shard.factory == factory
    for weight in LAMBDA_GRID:
        query = queries(50, weight)
        found, exact = shard.search(query, 10), shard.exact(query, 10)
        assert neighbour_recall(found.ids, exact.ids) >= 0.95, weight
        for q in range(50):
            known = dict(zip(exact.ids[q], exact.scores[q], strict=True))
            for name, value in zip(found.ids[q], found.scores[q], strict=True):
                assert known.get(name, value) == value
    shard.save(tmp_path)
    loaded = Shard.load(tmp_path)
    np.testing.assert_array_equal(loaded.search(queries(), 10).ids, shard.search(queries(), 10).ids)


def test_product_quantiser_is_rescored() -> None:
    shard = Shard.build(names(10_000), joint(10_000), vlm_dim=D1, factory="PQ4")
    assert shard.factory == "PQ4"
    query = queries(50, 0.5)
    assert neighbour_recall(shard.search(query, 10).ids, shard.exact(query, 10).ids) >= 0.95
    coarse = shard.search(query, 10, rescore=20)
    assert neighbour_recall(coarse.ids, shard.exact(query, 10).ids) < 0.95


def test_k_beyond_what_the_lists_hold_is_filled_up_exactly() -> None:
    shard = Shard.build(names(2000), joint(2000), vlm_dim=D1, factory="IVF32,Flat")
    hits = shard.search(queries(), 1500, params=SearchParams(nprobe=1))
    np.testing.assert_array_equal(hits.ids, shard.exact(queries(), 1500).ids)
    assert (hits.rows >= 0).all()


@pytest.mark.parametrize("factory", ["IVF64,SQ8", "HNSW8"])
def test_concurrent_searches_with_different_effort_do_not_meet(factory: str) -> None:
    shard = Shard.build(names(5000), joint(5000), vlm_dim=D1, factory=factory)
    query = queries(64, 0.5)
    efforts = [SearchParams(nprobe=n, ef_search=n) for n in (1, 64)]
    alone = [shard.search(query, 5, params=p, rescore=10).ids for p in efforts]
    assert (alone[0] != alone[1]).any() or factory == "HNSW8"
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(20):
            if (shard.search(query, 5, params=efforts[n], rescore=10).ids != alone[n]).any():
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n % 2,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_same_seed_builds_the_same_files(tmp_path: Path) -> None:
    saved = [
        Shard.build(names(2000), joint(2000), vlm_dim=D1, factory="IVF16,SQ8", seed=seed).save(tmp_path / str(n))
        for n, seed in enumerate((1, 1, 2))
    ]
    assert saved[0] == saved[1]
    assert saved[0]["index.faiss"] != saved[2]["index.faiss"]


def test_measured_efforts_belong_to_each_weight() -> None:
    """Only the vision half has clusters: text queries must look into many lists, visual ones into few."""
    rng = np.random.default_rng(0)
    text = unit(rng.standard_normal((6000, D1)))
    centres = unit(rng.standard_normal((40, 64)))
    vision = unit(centres[rng.integers(40, size=6000)] + 0.02 * rng.standard_normal((6000, 64)))
    vectors = np.concatenate([text, vision], axis=1)
    shard = Shard.build(names(6000), vectors, vlm_dim=D1, factory="IVF100,SQ8")
    assert shard.efforts.shape == (5,)
    assert shard.efforts[0] >= 4 * shard.efforts[-1]


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


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("PQ7", r"'PQ7' does not suit 20 dimensions.*multiple of the number of subquantizers"),
        ("IVF16,PQ3", "multiple of the number of subquantizers"),
        ("Best", "could not parse index string Best"),
        ("IVF16,SQ8,RFlat", "leave out RFlat"),
        ("IDMap,Flat", "leave out RFlat, Refine and IDMap"),
    ],
)
def test_factories_that_do_not_fit_are_refused(factory: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shard.build(names(30), joint(30), vlm_dim=D1, factory=factory)


@pytest.mark.parametrize("factory", ["auto", "IVF16,SQ8", "HNSW16", "PQ4"])
def test_empty_shard(factory: str, tmp_path: Path) -> None:
    shard = Shard.build([], joint(0), vlm_dim=D1, factory=factory)
    shard.save(tmp_path)
    for one in (shard, Shard.load(tmp_path)):
        hits = one.search(queries(3), 5)
        assert len(one) == 0
        assert hits.ids.shape == hits.scores.shape == (3, 0)
    full = Shard.build(names(30), joint(30), vlm_dim=D1).search(queries(3), 5)
    np.testing.assert_array_equal(merge_topk([hits, full], 5).ids, full.ids)


def test_no_queries_give_no_hits() -> None:
    assert Shard.build(names(30), joint(30), vlm_dim=D1).search(queries()[:0], 5).ids.shape == (0, 5)


def test_row_table_follows_the_ids() -> None:
    table = pa.table({"path": ["/c", "/a", "/b"], "id": ["c", "a", "b"], "label": [None, "x", "y"]})
    shard = Shard.build(["c", "a", "b"], joint(3), vlm_dim=D1, rows=table)
    assert shard.rows.to_pydict() == {
        "id": ["a", "b", "c"],
        "path": ["/a", "/b", "/c"],
        "label": ["x", "y", None],
    }


def test_what_cannot_be_built_is_refused() -> None:
    vectors = joint(3)
    with pytest.raises(ValueError, match="'a' comes more than once"):
        Shard.build(["a", "b", "a"], vectors, vlm_dim=D1)
    with pytest.raises(ValueError, match="ids must be strings"):
        Shard.build([1, 2, 3], vectors, vlm_dim=D1)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="1 of 3 ids are missing"):
        Shard.build(["a", None, "b"], vectors, vlm_dim=D1)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"2 ids takes .* got float16 \(3, 20\)"):
        Shard.build(["a", "b"], vectors, vlm_dim=D1)
    with pytest.raises(ValueError, match="float64"):
        Shard.build(["a", "b", "c"], vectors.astype(np.float64), vlm_dim=D1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="vlm_dim must split the 20 dimensions"):
        Shard.build(["a", "b", "c"], vectors, vlm_dim=20)
    with pytest.raises(ValueError, match="3 ids do not fit a row table of 1 rows"):
        Shard.build(["a", "b", "c"], vectors, vlm_dim=D1, rows=pa.table({"path": ["x"]}))
    with pytest.raises(ValueError, match="other ids"):
        Shard.build(["a", "b", "c"], vectors, vlm_dim=D1, rows=pa.table({"id": ["a", "c", "b"]}))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
@pytest.mark.parametrize(("column", "half"), [(slice(0, D1), "vlm"), (slice(D1, None), "vision")])
def test_a_row_without_unit_halves_is_named(value: float, column: slice, half: str) -> None:
    vectors = joint(3)
    vectors[1, column] = value
    with pytest.raises(ValueError, match=f"the {half} vector of row 'b' has norm"):
        Shard.build(["a", "b", "c"], vectors, vlm_dim=D1)


def test_queries_that_do_not_fit_are_refused() -> None:
    shard = Shard.build(names(30), joint(30), vlm_dim=D1)
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"k must be at least 1, not {k}"):
            shard.search(queries(), k)
        with pytest.raises(ValueError, match="k must be at least 1"):
            merge_topk([shard.search(queries(), 1)], k)
    with pytest.raises(ValueError, match=r"shape \(4, 19\), this shard has 20 dimensions \(8 vlm \+ 12 vision\)"):
        shard.search(queries()[:, :-1], 5)
    with pytest.raises(ValueError, match="finite"):
        shard.search(queries() * np.nan, 5)
    for params in ({"nprobe": 0}, {"ef_search": -3}):
        with pytest.raises(ValueError, match="must be at least 1"):
            SearchParams(**params)
    with pytest.raises(ValueError, match="no shard answered"):
        merge_topk([], 5)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("factory", ["Flat", "IVF8,SQ8", "HNSW8"])
def test_saved_and_loaded_shard_is_the_same(factory: str, mmap: bool, tmp_path: Path) -> None:
    table = pa.table({"path": [f"/{name}" for name in names(400)]})
    shard = Shard.build(names(400), joint(400), vlm_dim=D1, factory=factory, rows=table)
    files = shard.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    verify(tmp_path)
    verify(tmp_path, files)
    loaded = Shard.load(tmp_path, mmap=mmap)
    assert (loaded.factory, loaded.dim, loaded.vlm_dim, len(loaded)) == (shard.factory, 20, D1, 400)
    assert loaded.rows.equals(shard.rows)
    np.testing.assert_array_equal(loaded.efforts, shard.efforts)
    a, b = shard.search(queries(), 10), loaded.search(queries(), 10)
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.scores, b.scores)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    Shard.build(names(400), joint(400), vlm_dim=D1, factory="IVF8,SQ8").save(tmp_path)
    return tmp_path


def test_a_mapped_shard_is_not_saved_again(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mmap=False"):
        Shard.load(saved).save(tmp_path / "copy")
    Shard.load(saved, mmap=False).save(tmp_path / "copy")
    verify(tmp_path / "copy")


FILES = ["index.faiss", "vectors.npy", "rows.parquet", "shard.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_named(saved: Path, name: str) -> None:
    data = (saved / name).read_bytes()
    for length in (0, 10, len(data) // 2, len(data) - 4):
        (saved / name).write_bytes(data[:length])
        with pytest.raises(ValueError, match=name):
            Shard.load(saved)
    (saved / name).unlink()
    with pytest.raises(ValueError, match=name):
        Shard.load(saved)
    with pytest.raises(ValueError, match=name):
        verify(saved)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found_by_verify(name: str, tmp_path: Path) -> None:
    files = Shard.build(names(400), joint(400), vlm_dim=D1, factory="IVF8,SQ8").save(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        verify(tmp_path, files)


@pytest.mark.parametrize(("offset", "value"), [(4, 2**30), (8, 2**60), (4, -1), (8, 399)])
def test_an_absurd_index_header_is_refused_before_anything_is_allocated(saved: Path, offset: int, value: int) -> None:
    data = bytearray((saved / "index.faiss").read_bytes())
    size = 4 if offset == 4 else 8
    data[offset : offset + size] = value.to_bytes(size, "little", signed=True)
    (saved / "index.faiss").write_bytes(data)
    with pytest.raises(ValueError, match=r"index.faiss declares .* recorded were 400 of 20"):
        Shard.load(saved)


def test_an_absurd_vector_header_is_refused(saved: Path) -> None:
    data = (saved / "vectors.npy").read_bytes()
    for shape in (b"(400, 99)", b"(999, 20)"):
        (saved / "vectors.npy").write_bytes(data.replace(b"(400, 20)", shape))
        with pytest.raises(ValueError, match=r"vectors\.npy"):
            Shard.load(saved)


def test_pickled_vectors_are_never_loaded(saved: Path) -> None:
    np.save(saved / "vectors.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    record = json.loads((saved / "shard.json").read_text())
    record["files"]["vectors.npy"]["bytes"] = (saved / "vectors.npy").stat().st_size
    (saved / "shard.json").write_text(json.dumps(record))
    for mmap in (True, False):
        with pytest.raises(ValueError, match=r"vectors\.npy is not a readable part"):
            Shard.load(saved, mmap=mmap)


def test_files_of_another_shard_are_refused(saved: Path, tmp_path: Path) -> None:
    record = json.loads((saved / "shard.json").read_text())
    for key, value in (("rows", 401), ("dim", 21), ("rows", "400"), ("efforts", [1])):
        (saved / "shard.json").write_text(json.dumps({**record, key: value}))
        with pytest.raises(ValueError, match=r"index\.faiss|shard\.json"):
            Shard.load(saved)


def clustered(rows: int, classes: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joint rows of classes known to both halves, and text and visual queries that lie off the gallery."""
    rng = np.random.default_rng(seed)

    def around(centres: np.ndarray, labels: np.ndarray, noise: float) -> np.ndarray:
        return unit(centres[labels] + noise * unit(rng.standard_normal((len(labels), centres.shape[1]))))

    centres = [unit(rng.standard_normal((classes, 160))) for _ in range(2)]
    labels, asked = rng.integers(classes, size=rows), rng.integers(classes, size=100)
    vectors = np.concatenate([around(c, labels, spread) for c in centres], axis=1).astype(np.float16)
    return vectors, around(centres[0], asked, 2.0), around(centres[1], asked, 1.0)


@pytest.mark.slow
def test_auto_index_of_sixty_thousand_rows_keeps_its_recall_at_every_weight() -> None:
    vectors, text, visual = clustered(60_000, classes=300, spread=2.0, seed=0)
    shard = Shard.build([f"{n:06d}" for n in range(60_000)], vectors, vlm_dim=160)
    assert shard.factory == "IVF976,SQ8"
    for weight in (*LAMBDA_GRID, 0.1, 0.4, 0.9):
        query = fused_query(text, visual, weight)
        found, exact = shard.search(query, 10), shard.exact(query, 10)
        assert neighbour_recall(found.ids, exact.ids) >= 0.95, (weight, shard.efforts)


def test_small_share_of_an_index_is_not_searched_as_deep() -> None:
    """Classes of 20 rows: the hundred best of this shard alone are mostly noise, the hundred best of the index not."""
    vectors, *_ = clustered(6000, classes=300, spread=1.0, seed=0)
    shard = Shard.build(names(6000), vectors, vlm_dim=160, factory="IVF150,SQ8")
    whole = shard.efforts
    shard.measure_efforts(0, share=0.1)
    assert (shard.efforts <= whole).all()
    assert shard.efforts.sum() < whole.sum() / 2


def test_mapped_lists_are_not_read_ahead_by_threads(tmp_path: Path) -> None:
    Shard.build(names(800), joint(800), vlm_dim=D1, factory="IVF20,SQ8").save(tmp_path)
    index = Shard.load(tmp_path)._index
    assert faiss.downcast_InvertedLists(index.invlists).prefetch_nthread == 0
