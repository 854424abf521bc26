"""Queries that name their relevant and junk rows, against a plain evaluation that sorts everything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from errors import refused
from synthetic import D1, D2, directions, write_gallery, write_queries

from cluster.session import session
from pipelines import ranking
from pipelines.evaluate import evaluate
from pipelines.truth import LeftOut, Targets, Truth, measurable
from retrieval.artifacts import Gallery, QuerySet
from retrieval.artifacts.queryset import OPTIONAL
from retrieval.fusion import score
from retrieval.metrics import average_precision, without_junk

ROWS = 120


@pytest.fixture(autouse=True)
def in_this_process() -> Iterator[None]:
    with session("none"):
        yield


@pytest.mark.parametrize(
    ("ranks", "junk", "expected"),
    [
        ([0, 1, 2], [True, False, False], [0, 1]),  # what stands behind junk moves up
        ([5, 0], [True, False], [0]),  # what stands before it does not
        ([3, 1, 2, 9], [False, True, False, True], [1, 2]),  # 2 and 3 behind the junk at 1
        ([1, 0], [True, True], []),
        ([], [], []),
    ],
)
def test_junk_is_taken_out_of_the_ranking_by_hand(ranks: list[int], junk: list[bool], expected: list[int]) -> None:
    assert without_junk(np.array(ranks, int), np.array(junk, bool)).tolist() == expected


def test_junk_is_neither_right_nor_wrong() -> None:
    # Junk, right, wrong, right: without the junk right, wrong, right.
    hits = without_junk([0, 1, 3], [True, False, False])
    assert average_precision(hits, 2) == pytest.approx(((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2)


def plain_ap(order: list[int], relevant: set[int], junk: set[int], n_positive: int) -> float:
    ap, hits = 0.0, 0
    for place, row in enumerate(row for row in order if row not in junk):
        if row in relevant:
            before, hits = hits / place if place else 1.0, hits + 1
            ap += (before + hits / (place + 1)) / 2
    return ap / n_positive


@pytest.mark.parametrize("at_once", [1, 60, 10**6])
def test_queries_with_ids_equal_a_plain_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Ids, labels, and both, with most scores tied; two queries share their ids, and one row is of many queries."""
    monkeypatch.setattr(ranking, "POSITIVES_AT_ONCE", at_once)
    monkeypatch.setattr(ranking, "BLOCK_ELEMENTS", 1)
    rng = np.random.default_rng(0)
    vlm, vision = (directions(ROWS, dim, rng).astype(np.float16) for dim in (D1, D2))
    twins = rng.integers(0, 6, 90)
    vlm[:90], vision[:90] = vlm[twins], vision[twins]
    ids = [f"row-{i:03d}" for i in rng.permutation(ROWS)]
    of_label = ["even" if i % 2 == 0 else None for i in range(ROWS)]
    gallery = write_gallery(tmp_path / "gallery", vlm, vision, ids=ids, labels=of_label)
    chosen = [rng.choice(ROWS, 12, replace=False) for _ in range(6)]
    chosen[3] = chosen[2]
    relevant = [[ids[i] for i in rows[:7]] for rows in chosen]
    junk: list[list[str] | None] = [[ids[i] for i in rows[7:]] for rows in chosen]
    relevant[1].append("not there")
    relevant[4] = [*relevant[4], relevant[4][0]]
    junk[5] = None
    labels = ["even", None, *[None] * 4, "even"]
    text = directions(7, D1, rng)
    images = [directions(2, D2, rng) for _ in range(7)]
    queries = write_queries(
        tmp_path / "queries", text, images, labels=labels, relevant=[*relevant, None], junk=[*junk, None]
    )
    result = evaluate(gallery, queries)
    assert result.left_out == LeftOut(0, [], [], ["not there"], [])
    held = measurable(gallery, queries)
    assert sorted(held.rows[number] for number in held.of_queries) == [7, 12, 12, 12, 12, 12, 60]
    rows = {(row["query"], row["system"]): row for row in result.table.to_pylist()}
    assert len(rows) == 7 * 3
    for q in range(7):
        scores = score(text[q], np.zeros(D2), 0.0, vlm, vision)[0]
        order = sorted(range(ROWS), key=lambda n: (-scores[n], ids[n]))
        if q == 6:
            right, left_out, count = {n for n in range(ROWS) if of_label[n]}, set(), ROWS // 2
        else:
            right = {ids.index(id) for id in relevant[q] if id in ids}
            left_out, count = {ids.index(id) for id in junk[q] or ()}, len(set(relevant[q]))
        row = rows[f"query-{q:03d}", "text"]
        assert row["positives"] == count
        assert row["ap"] == pytest.approx(plain_ap(order, right, left_out, count), abs=1e-12)


def world(tmp_path: Path, relevant: list[list[str] | None], junk: list[list[str] | None]) -> tuple[Gallery, QuerySet]:
    rng = np.random.default_rng(1)
    gallery = write_gallery(tmp_path / "gallery", directions(9, D1, rng), directions(9, D2, rng))
    count = len(relevant)
    images = [directions(1, D2, rng)] * count
    labels = [None] * count
    text = directions(count, D1, rng)
    return gallery, write_queries(tmp_path / "q", text, images, labels=labels, relevant=relevant, junk=junk)


def test_what_the_gallery_lacks_is_named_and_empty_lists_are_left_out(tmp_path: Path) -> None:
    first = "row-00000"
    unknown = [f"gone {i}" for i in range(7)]
    gallery, queries = world(tmp_path, [[first, *unknown], [], None], [["gone too"], None, None])
    result = evaluate(gallery, queries)
    assert result.table["query"].to_pylist() == ["query-000"] * 3
    assert result.table["positives"].to_pylist() == [8] * 3
    assert max(result.table["ap"].to_pylist()) <= 1 / 8
    assert result.left_out == LeftOut(1, [], ["text 1"], unknown, ["gone too"])
    said = " ".join(result.left_out.sentences())
    assert "7 relevant rows are not in the gallery and count as never found: gone 0, gone 1" in said
    assert "gone 6" not in said
    assert "1 junk rows are not in the gallery: gone too" in said
    assert "1 queries have an empty list of relevant rows and were not measured: text 1" in said


@pytest.mark.parametrize("relevant", [[["gone"], []], [[], []]])
def test_a_gallery_that_has_no_relevant_row_at_all_is_refused(tmp_path: Path, relevant: list[list[str] | None]) -> None:
    gallery, queries = world(tmp_path, relevant, [None, None])
    with refused("nothing-to-measure", "label"):
        evaluate(gallery, queries)


def test_sets_without_the_columns_are_read_as_before(tmp_path: Path) -> None:
    _, queries = world(tmp_path, [["row-00000"]], [None])
    part = queries.folder.files("queries")[0]
    table = queries.folder.read_table(part).drop_columns(OPTIONAL.names)
    queries.folder.write_table(part, table)
    opened = QuerySet.open(queries.uri)
    assert opened.table().column_names == [*table.column_names, *OPTIONAL.names]
    assert opened.table(["id", "junk"]).to_pylist() == [{"id": "query-000", "junk": None}]


def test_rows_of_targets_are_found_as_pairs() -> None:
    truths = [Truth(None, ("a", "b"), ("c",)), Truth("x"), Truth(None, ("c",), ())]
    rows = pa.table({"id": ["c", "z", "a"], "label": pa.array([None, "x", "x"], pa.string())})
    numbers, places, junk = Targets.of(truths).among(rows)
    found = list(zip(numbers.tolist(), places.tolist(), junk.tolist(), strict=True))
    assert sorted(found) == [(0, 0, True), (0, 2, False), (1, 1, False), (1, 2, False), (2, 0, False)]
    assert [number for number, _, _ in found] == [0, 0, 1, 1, 2]


def test_rows_are_judged_for_the_contact_sheet() -> None:
    named = Truth("cat", ("a",), ("b",))
    assert [named.judge(id, "cat") for id in "abc"] == [True, None, False]
    assert [Truth("cat").judge("a", label) for label in ("cat", "dog", None)] == [True, False, False]
    assert Truth().judge("a", "cat") is None
