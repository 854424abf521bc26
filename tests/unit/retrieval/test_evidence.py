"""Queries made of evidence, against a plain version of the sums."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from errors import refused
from PIL import Image
from tiny_artifacts import Collection, write_index

from retrieval.evidence import IMAGINED_AGAINST, MAX_PIECES, Encoded, Evidence, Picture, Row, Text, shares, summed
from retrieval.finder import Answer, Finder
from retrieval.fusion import fused_query
from retrieval.lens import through
from retrieval.models.generator import Generator
from retrieval.query import QueryEncoder, pool

TEXT, OTHER = "a red striped star", "a blue circle"


@pytest.fixture(scope="module")
def finder(query_encoder: QueryEncoder, collection: Collection) -> Finder:
    return Finder(query_encoder, collection.index)


def picture_of(collection: Collection, number: int) -> Image.Image:
    [row] = [row for row in rows_of(collection) if row["id"] == collection.ids[number]]
    return Image.open(collection.folder / "images" / row["path"]).convert("RGB")


def rows_of(collection: Collection) -> list[dict[str, Any]]:
    return [row for shard in collection.index.shards() for row in shard.rows.to_pylist()]


def plain(finder: Finder, collection: Collection, evidence: Sequence[Evidence], weight: float) -> dict[str, float]:
    """The score of every row by its id, in float64 and in loops."""
    sums = [np.zeros(finder.encoder.vlm.dim), np.zeros(finder.encoder.vision.dim)]
    for piece in evidence:
        if isinstance(piece, Text):
            [query] = finder.encoder.encode([piece.text], 3)
            mean = query.vision_KD2.mean(axis=0)
            vectors = [query.vlm_D1, mean / np.linalg.norm(mean)]
        elif isinstance(piece, Row):
            number = collection.ids.index(piece.id)
            vectors = [half[number].astype(float) for half in (collection.vlm_ND1, collection.vision_ND2)]
            vectors = [vector / np.linalg.norm(vector) for vector in vectors]
        else:
            towers = (finder.encoder.vlm, finder.encoder.vision)
            vectors = [tower.encode_images(tower.preprocess.pixels(piece.image)[None])[0] for tower in towers]
        heavier = IMAGINED_AGAINST if isinstance(piece, Text) and piece.weight < 0 else 1
        for total, vector, factor in zip(sums, vectors, (1, heavier), strict=True):
            total += factor * piece.weight * vector
    text, visual = (total / np.linalg.norm(total) for total in sums)
    return {
        name: (1 - weight) * float(text @ c.astype(float)) + weight * float(visual @ d.astype(float))
        for name, c, d in zip(collection.ids, collection.vlm_ND1, collection.vision_ND2, strict=True)
    }


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_query_of_all_kinds_of_evidence_is_the_plain_sum(
    finder: Finder, collection: Collection, weight: float
) -> None:
    evidence = [
        Text(TEXT, 1.5),
        Text(OTHER, -0.4),
        Picture(picture_of(collection, 3), 0.7),
        Row(collection.ids[9], 1.0),
        Row(collection.ids[14], -0.2),
    ]
    answer = finder.find(evidence, 24, weight=weight, images=3)
    expected = plain(finder, collection, evidence, weight)
    assert [found.id for found in answer] == sorted(expected, key=expected.__getitem__, reverse=True)
    np.testing.assert_allclose([found.score for found in answer], [expected[found.id] for found in answer], atol=2e-6)


def test_every_kind_of_query_is_answered_alike_by_any_number_of_shards(
    finder: Finder, collection: Collection, tmp_path: Path
) -> None:
    described = pa.concat_tables(collection.gallery.tables(["id", "path", "label", "width", "height", "batch"]))
    vectors = collection.vlm_ND1, collection.vision_ND2
    kinds: dict[str, list[Evidence]] = {
        "row": [Row(collection.ids[3])],
        "picture": [Picture(picture_of(collection, 5), box=(4, 4, 60, 60))],
        "signed": [Text(TEXT), Text(OTHER, -0.4), Row(collection.ids[2], -0.3)],
        "mixed": [Text(TEXT), Row(collection.ids[9]), Picture(picture_of(collection, 1), 0.5)],
    }
    expected = {kind: finder.find(evidence, 24, images=2) for kind, evidence in kinds.items()}
    for shards in (1, 5):
        index = write_index(tmp_path / str(shards), collection.gallery, described, *vectors, shards=shards)
        other = Finder(finder.encoder, index)
        for kind, evidence in kinds.items():
            answer = other.find(evidence, 24, images=2)
            assert (answer.results, answer.shares) == (expected[kind].results, expected[kind].shares), kind


@pytest.mark.parametrize("mode", ["text", "visual", "fused"])
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_one_text_is_to_the_bit_what_a_text_is_without_evidence(finder: Finder, mode: Any, weight: float) -> None:
    lam = {"text": 0.0, "visual": 1.0, "fused": 0.3}[mode]
    [query] = finder.encoder.encode([TEXT], 3)
    visual = pool(query.vision_KD2[None], np.ones((1, len(query.vision_KD2)), bool))
    expected = finder.rank(fused_query(query.vlm_D1, visual, lam), 24)
    assert finder.find([Text(TEXT, weight)], 24, mode=mode, weight=0.3, images=3).results == expected


def test_the_shares_of_the_evidence_are_the_score(finder: Finder, collection: Collection) -> None:
    answer = finder.find([Text(TEXT), Row(collection.ids[2], 0.5), Text(OTHER, -0.4)], 24, images=2)
    assert {len(brought) for brought in answer.shares} == {3}
    np.testing.assert_allclose(np.sum(answer.shares, axis=1), [found.score for found in answer], atol=2e-6)
    [alone] = finder.find([Text(TEXT)], 1, images=2).shares[0]
    assert alone == pytest.approx(finder.search(TEXT, 1, images=2).results[0].score, abs=2e-6)


def test_what_is_against_lowers_and_never_raises_its_own_share() -> None:
    encoded = Encoded(np.array([1.0, -0.5]), np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32))
    brought = shares(encoded, 0.5, np.array([[1, 0], [0, 1]], np.float16), np.array([[1, 0], [0, 1]], np.float16))
    assert brought[0, 0] > 0 == brought[0, 1]
    assert brought[1, 1] < 0 == brought[1, 0]


def test_what_was_imagined_against_weighs_more_and_nothing_else_does() -> None:
    """Nor do real images in the place of imagined ones, or what is wanted."""
    eye, weights_E = np.eye(4, dtype=np.float32), np.array([1.0, -0.4, -0.4, -0.4])
    encoded = Encoded(weights_E, eye, eye)
    texts_E, nearest_E = np.array([True, True, True, False]), np.array([False, False, True, False])
    counted = through(encoded, texts_E, nearest_E, None, None, None)
    np.testing.assert_array_equal(counted.vlm_ED1, eye)
    np.testing.assert_array_equal(counted.vision_ED2, np.diag([1, IMAGINED_AGAINST, 1, 1]))
    wanted = encoded._replace(weights_E=np.abs(weights_E))
    assert through(wanted, texts_E, nearest_E, None, None, None) is wanted


def test_a_row_and_its_picture_find_themselves_first(finder: Finder, collection: Collection) -> None:
    for number in (0, 7, 23):
        name = collection.ids[number]
        assert finder.find([Row(name)], 1).results[0].id == name
        by_picture = finder.find([Picture(picture_of(collection, number))], 1).results[0]
        assert by_picture.id == name
        assert by_picture.score == pytest.approx(1, abs=1e-3)


def test_a_box_is_that_part_of_the_picture(finder: Finder, collection: Collection) -> None:
    picture = picture_of(collection, 5)
    boxed = finder.find([Picture(picture, box=(8, 4, 40, 60))], 24)
    assert boxed.results == finder.find([Picture(picture.crop((8, 4, 40, 60)))], 24).results
    assert boxed.results != finder.find([Picture(picture)], 24).results


def test_pictures_and_rows_need_no_generator(
    finder: Finder, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Generator, "imagine", lambda *_, **__: pytest.fail("images were made"))
    answer = finder.find([Row(collection.ids[0]), Picture(picture_of(collection, 1))], 3)
    assert (answer.imagined, answer.degraded) == ([], None)
    assert answer.weight == finder.weight


def test_a_visual_half_that_is_not_asked_for_may_cancel_out(finder: Finder, collection: Collection) -> None:
    row = collection.ids[4]
    evidence = [Text(TEXT), Row(row), Row(row, -1.0)]
    answer = finder.find(evidence, 24, mode="text")
    assert [found.id for found in answer] == [found.id for found in finder.search(TEXT, 24, mode="text")]


def test_a_single_vector_is_kept_to_the_bit() -> None:
    vector = np.array([[0.6, 0.8000001]], np.float32)
    assert summed(np.array([2.0]), vector).tolist() == vector[0].tolist()
    np.testing.assert_allclose(summed(np.array([-2.0]), vector), -vector[0], atol=1e-6)
    assert not summed(np.array([1.0]), np.zeros((1, 2), np.float32)).any()


@pytest.mark.parametrize(
    ("evidence", "code", "field"),
    [
        ([], "empty", "evidence"),
        ([Text(TEXT)] * (MAX_PIECES + 1), "too-many", "evidence"),
        ([Text(TEXT, -1.0)], "nothing-wanted", "evidence"),
        ([Text(TEXT), Text(OTHER, 0.0)], "out-of-range", "evidence.1.weight"),
        ([Text(TEXT, float("nan"))], "out-of-range", "evidence.0.weight"),
        ([Text(TEXT, float("inf"))], "out-of-range", "evidence.0.weight"),
        ([Text(TEXT), Row("id-999")], "missing", "evidence.1.id"),
        ([Row("id-003"), Row("id-003", -1.0)], "no-direction", "evidence"),
        ([Picture(Image.new("RGB", (64, 64)), box=(0, 0, 65, 64))], "out-of-range", "evidence.0.box"),
        ([Picture(Image.new("RGB", (64, 64)), box=(9, 0, 9, 64))], "out-of-range", "evidence.0.box"),
        ([Text("  ")], "blank", None),
    ],
)
def test_bad_evidence_is_refused_before_any_image_is_made(
    finder: Finder, monkeypatch: pytest.MonkeyPatch, evidence: list[Evidence], code: str, field: str | None
) -> None:
    monkeypatch.setattr(Generator, "imagine", lambda *_, **__: pytest.fail("images were made"))
    with refused(code, field):
        finder.find(evidence, 3)


def test_an_answer_knows_its_evidence_by_place(finder: Finder, collection: Collection) -> None:
    """Pieces of one kind between those of another keep their places."""
    evidence = [Row(collection.ids[0], 0.5), Text(TEXT), Row(collection.ids[8], 2.0), Text(OTHER)]
    answer: Answer = finder.find(evidence, 24, images=2)
    turned = finder.find(evidence[::-1], 24, images=2)
    # Images are imagined in another batch, which may differ in the last digits.
    by_id = {found.id: brought for found, brought in zip(turned, turned.shares, strict=True)}
    for found, brought in zip(answer, answer.shares, strict=True):
        np.testing.assert_allclose(brought, by_id[found.id][::-1], atol=1e-3)
