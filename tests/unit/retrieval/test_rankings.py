"""Several images of a text as one ranking, and real images in their place: against plain versions, ties included."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from errors import refused
from tiny_artifacts import Collection, write_index

from retrieval.evidence import IMAGINED_AGAINST, Evidence, Row, Text
from retrieval.finder import Finder
from retrieval.fusion import score, unit
from retrieval.models.imagined import Imagined
from retrieval.nearest import NEAREST, visual_half
from retrieval.query import QueryEncoder
from retrieval.rankings import RANK_OFFSET, Scored, one_ranking

TEXT, OTHER = "a red striped star", "a blue circle"
NOTHING = Imagined(np.zeros((0, 64, 64, 3), np.uint8), np.zeros(0, np.int64), ["safety"])


@pytest.fixture(scope="module")
def finders(
    query_encoder: QueryEncoder, collection: Collection, tmp_path_factory: pytest.TempPathFactory
) -> list[Finder]:
    """Of one gallery in two shards, in one, and in five; with each image twice, so that scores are equal."""
    gallery, halves = collection.gallery, (collection.vlm_ND1, collection.vision_ND2)
    described = pa.concat_tables(gallery.tables(["id", "path", "label", "width", "height", "batch"]))
    twins = described.set_column(0, "id", pa.array([f"{name}-twin" for name in collection.ids]))
    both = pa.concat_tables([described, twins]).sort_by("id")
    twice = [half.repeat(2, axis=0) for half in halves]
    assert both["path"].to_pylist() == [path for path in described["path"].to_pylist() for _ in range(2)]
    folder = tmp_path_factory.mktemp("sharded")
    indexes = (write_index(folder / str(n), gallery, both, *twice, shards=n) for n in (2, 1, 5))
    return [Finder(query_encoder, index) for index in indexes]


def rows_of(finder: Finder) -> tuple[list[str], np.ndarray]:
    """Ids and joint rows of a whole index."""
    ids = [name for shard in finder.shards for name in shard.rows["id"].to_pylist()]
    return ids, np.concatenate([np.asarray(shard.vectors) for shard in finder.shards])


def ranked(ids: list[str], scores: list[Any]) -> list[str]:
    return [name for name, _ in sorted(zip(ids, scores, strict=True), key=lambda one: (-one[1], one[0]))]


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("k", [3, 48])
def test_max_is_the_best_score_of_any_image(finders: list[Finder], weight: float, k: int) -> None:
    [query] = finders[0].encoder.encode([TEXT], 4)
    split = len(query.vlm_D1)
    for finder in finders:
        ids, joint = rows_of(finder)
        each = [score(query.vlm_D1, g, weight, joint[:, :split], joint[:, split:])[0] for g in query.vision_KD2]
        best = np.max(each, axis=0)
        answer = finder.search(TEXT, k, weight=weight, images=4, fuse="max")
        assert [found.id for found in answer] == ranked(ids, list(best))[:k]
        assert [found.score for found in answer] == [float(best[ids.index(found.id)]) for found in answer]
        np.testing.assert_allclose(np.sum(answer.shares, axis=1), [found.score for found in answer], atol=2e-6)


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("depth", [5, 400])
def test_rrf_is_the_sum_of_reciprocal_ranks(finders: list[Finder], weight: float, depth: int) -> None:
    [query] = finders[0].encoder.encode([TEXT], 3)
    split, k = len(query.vlm_D1), 4
    for finder in finders:
        ids, joint = rows_of(finder)
        vlm, vision = joint[:, :split], joint[:, split:]
        lists = [score(query.vlm_D1, query.vision_KD2[0], 0.0, vlm, vision)[0]]
        lists += [score(query.vlm_D1, g, 1.0, vlm, vision)[0] for g in query.vision_KD2]
        totals = dict.fromkeys(ids, Fraction(0))
        for factor, scores in zip([1 - weight] + [weight / 3] * 3, lists, strict=True):
            for rank, name in enumerate(ranked(ids, list(scores))[: max(k, depth)], 1):
                totals[name] += Fraction(factor / (RANK_OFFSET + rank))
        answer = finder.search(TEXT, k, weight=weight, images=3, fuse="rrf", depth=depth)
        assert [found.id for found in answer] == ranked(list(totals), list(totals.values()))[:k]
        assert [found.score for found in answer] == [float(totals[found.id]) for found in answer]
        for found in answer:
            assert found.text_part + found.visual_part == pytest.approx(found.score)
        assert answer.shares == [[]] * k


def test_lists_that_lack_a_row_give_it_nothing() -> None:
    """A shard that did not answer one of the queries leaves its list shorter."""
    by_text, by_image = [Scored("a", 0.9, 0.9, 0.0)], [Scored("b", 0.8, 0.0, 0.8), Scored("a", 0.7, 0.0, 0.7)]
    [first, second] = one_ranking([by_text, by_image], "rrf", 0.5, 9)
    assert (first.id, first.text_part) == ("a", 0.5 / 61)
    assert (second.id, second.text_part, second.visual_part) == ("b", 0.0, 0.5 / 61)


@pytest.mark.parametrize("fuse", ["mean", "max", "rrf"])
def test_one_image_or_none_or_no_weight_needs_no_fusing(finders: list[Finder], fuse: Any) -> None:
    finder = finders[0]
    for how in ({"mode": "text"}, {"images": 1, "mode": "visual"}):
        ours = finder.search(TEXT, 9, fuse=fuse, **how)
        expected = finder.search(TEXT, 9, **how)
        if fuse != "max" and how.get("images"):
            assert [found.id for found in ours] == [found.id for found in expected]
        np.testing.assert_allclose([f.score for f in ours], [f.score for f in expected], atol=1e-6)
    row = Row(finder.search(TEXT, 1, mode="text").results[0].id)
    assert finder.find([row], 9, fuse=fuse) == finder.find([row], 9)


def test_what_is_against_stays_pooled_and_what_else_is_wanted_takes_part(finders: list[Finder]) -> None:
    finder = finders[0]
    ids, joint = rows_of(finder)
    split = finder.encoder.vlm.dim
    wanted, against = finder.encoder.encode([TEXT, OTHER], 3)
    row = Row(ids[5], 0.5)
    c, d = unit(joint[5, :split].astype(float)), unit(joint[5, split:].astype(float))
    text = unit(wanted.vlm_D1.astype(float) + 0.5 * c - 0.4 * against.vlm_D1)
    pooled = unit(against.vision_KD2.mean(axis=0))
    best = np.max(
        [
            score(text, unit(g + 0.5 * d - 0.4 * IMAGINED_AGAINST * pooled), 0.5, joint[:, :split], joint[:, split:])[0]
            for g in wanted.vision_KD2
        ],
        axis=0,
    )
    answer = finder.find([Text(TEXT), row, Text(OTHER, -0.4)], 48, weight=0.5, images=3, fuse="max")
    expected = dict(zip(ids, best.tolist(), strict=True))
    np.testing.assert_allclose([found.score for found in answer], [expected[found.id] for found in answer], atol=2e-6)
    assert [found.score for found in answer] == sorted((found.score for found in answer), reverse=True)


def test_an_unknown_way_is_refused(finders: list[Finder]) -> None:
    with refused("unknown", "fuse"):
        finders[0].search(TEXT, fuse="median")  # type: ignore[arg-type]


def without_generator(finder: Finder) -> Finder:
    models = finder.encoder
    encoder = QueryEncoder(models.vlm, models.vision, None, templates=models.templates, batch=1)
    return Finder(encoder, finder.index)


def plain_nearest(finder: Finder, text: str) -> np.ndarray:
    ids, joint = rows_of(finder)
    split = finder.encoder.vlm.dim
    [t] = finder.encoder.text_vectors([text])
    zero = np.zeros(joint.shape[1] - split)
    by_text = score(t, zero, 0.0, joint[:, :split], joint[:, split:])[0]
    best = [ids.index(name) for name in ranked(ids, list(by_text))[:NEAREST]]
    mean = np.mean([joint[i, split:].astype(float) for i in best], axis=0)
    return (mean / np.linalg.norm(mean)).astype(np.float32)


@pytest.mark.parametrize(("mode", "lam"), [("fused", 0.5), ("visual", 1.0)])
def test_without_a_generator_the_nearest_real_images_are_the_visual_half(
    finders: list[Finder], mode: Any, lam: float
) -> None:
    for finder in finders:
        _, joint = rows_of(finder)
        split = finder.encoder.vlm.dim
        [t] = finder.encoder.text_vectors([TEXT])
        expected = score(t, plain_nearest(finder, TEXT), lam, joint[:, :split], joint[:, split:])[0]
        answer = without_generator(finder).search(TEXT, 48, mode=mode)
        np.testing.assert_allclose([found.score for found in answer], np.sort(expected)[::-1][: len(answer)], atol=1e-6)
        assert (answer.visual, answer.weight, answer.imagined) == ("nearest", lam, [])
        assert answer.degraded == "no image could be imagined (there is no generator)"
        assert [(found.id, found.score) for found in answer] == [
            (found.id, found.score) for found in without_generator(finders[0]).search(TEXT, 48, mode=mode)
        ]


def test_without_a_generator_a_text_alone_and_a_row_are_whole_answers(finders: list[Finder]) -> None:
    bare, whole = without_generator(finders[0]), finders[0]
    name = rows_of(whole)[0][0]
    for evidence, how in (([Text(TEXT)], {"mode": "text"}), ([Row(name)], {})):
        assert bare.find(evidence, 9, **how) == whole.find(evidence, 9, **how)
        assert bare.find(evidence, 9, **how).degraded is None
    assert bare.find([Row(name)], 1).visual == "given"
    assert bare.search(TEXT, 1, mode="text").visual is None
    with refused("missing", "generator"):
        bare.encoder.encode([TEXT], 2)


def test_each_text_without_images_has_its_own_nearest(finders: list[Finder], monkeypatch: pytest.MonkeyPatch) -> None:
    finder = finders[0]
    ids, joint = rows_of(finder)
    split = finder.encoder.vlm.dim
    imagined = finder.encoder.generator.imagine([TEXT], 2)
    t, other = finder.encoder.text_vectors([TEXT, OTHER]).astype(float)
    evidence: list[Evidence] = [Text(TEXT), Text(OTHER, 0.7)]
    monkeypatch.setattr(type(finder.encoder.generator), "imagine", lambda *_, **__: [*imagined, NOTHING])
    answer = finder.find(evidence, 48, weight=0.5)
    [features] = finder.encoder.image_vectors(imagined)
    visual = unit(unit(features.mean(axis=0).astype(float)) + 0.7 * plain_nearest(finder, OTHER).astype(float))
    expected = score(unit(t + 0.7 * other), visual, 0.5, joint[:, :split], joint[:, split:])[0]
    np.testing.assert_allclose([found.score for found in answer], np.sort(expected)[::-1], atol=2e-6)
    assert (answer.visual, answer.degraded) == ("nearest", "no image could be imagined (safety)")
    assert set(ids) == {found.id for found in answer}


def test_the_visual_half_of_rows_is_exact_in_any_order_and_nothing_of_nothing() -> None:
    rows = unit(np.random.default_rng(0).normal(size=(20, 8))).astype(np.float16)
    assert visual_half(rows).tolist() == visual_half(rows[::-1]).tolist()
    np.testing.assert_allclose(visual_half(rows), unit(rows.astype(float).mean(axis=0)), atol=1e-7)
    assert not visual_half(rows[:0]).any()
    assert not visual_half(np.concatenate([rows[:1], -rows[:1]])).any()


def test_an_index_that_has_lost_every_row_answers_nothing(finders: list[Finder], tmp_path: Path) -> None:
    bare = without_generator(finders[1])
    bare.shards = [type(bare.shards[0]).open(place, removed=rows_of(bare)[0]) for place in _folders(bare)]
    answer = bare.search(TEXT, 5, rerank="neighbours")
    assert (len(answer), answer.weight, answer.visual) == (0, 0.0, None)


def _folders(finder: Finder) -> list[Path]:
    folder = finder.index.folder.local_path
    assert folder is not None
    return sorted(folder.glob("shard-*"))
