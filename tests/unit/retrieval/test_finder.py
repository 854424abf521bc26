"""The whole method in one process, against the plain formula over every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from errors import refused
from tiny_artifacts import Collection
from tiny_models import write_vision

from cluster.loading import record_of
from retrieval.aggregator import Aggregator
from retrieval.artifacts import Index, TrainedAggregator
from retrieval.finder import Answer, Finder
from retrieval.fusion import DEFAULT_WEIGHT, fused_query
from retrieval.models.generator import Generator
from retrieval.models.imagined import Imagined
from retrieval.models.vision import VisionEncoder
from retrieval.query import QueryEncoder, pool

TEXT = "a red striped star"


@pytest.fixture(scope="module")
def finder(query_encoder: QueryEncoder, collection: Collection) -> Finder:
    return Finder(query_encoder, collection.index)


@pytest.fixture(scope="module")
def aggregator(tmp_path_factory: pytest.TempPathFactory, query_encoder: QueryEncoder) -> TrainedAggregator:
    torch.manual_seed(1)
    network = Aggregator(query_encoder.vision.dim)
    with torch.no_grad():
        network.lamda.fill_(-1.0)
        for parameter in network.layers.parameters():
            parameter.normal_()
    folder = tmp_path_factory.mktemp("aggregator")
    return TrainedAggregator.save(folder, network.eval(), {"vision": record_of(query_encoder.vision)}, {})


def by_formula(
    encoder: QueryEncoder, collection: Collection, weight: float, *, images: int = 3, seed: int = 0, network: Any = None
) -> dict[str, tuple[float, float, float]]:
    """Return (score, text part, visual part) of every row by id, in float64 and with loops."""
    text = np.mean(
        [encoder.vlm.encode_text([template.replace("{}", TEXT)])[0] for template in encoder.templates], axis=0
    )
    text = text / np.linalg.norm(text)
    [query] = encoder.encode([TEXT], images, seed=seed)
    if network:
        with torch.no_grad():
            visual = network(torch.from_numpy(query.vision_KD2)[None])[0].numpy()
    else:
        visual = query.vision_KD2.sum(axis=0)
        visual = visual / np.linalg.norm(visual)
    scores = {}
    for name, c, d in zip(collection.ids, collection.vlm_ND1, collection.vision_ND2, strict=True):
        parts = (1 - weight) * float(text @ c.astype(float)), weight * float(visual @ d.astype(float))
        scores[name] = (sum(parts), *parts)
    return scores


def check(answer: Answer, expected: dict[str, tuple[float, float, float]], k: int) -> None:
    """The answer holds the k best rows of ``expected``, in order, with their parts."""
    assert len(answer.results) == min(k, len(expected))
    for found in answer.results:
        np.testing.assert_allclose(
            (found.score, found.text_part, found.visual_part), expected[found.row["id"]], atol=2e-6
        )
    ours = [found.score for found in answer.results]
    assert ours == sorted(ours, reverse=True)
    best = sorted((values[0] for values in expected.values()), reverse=True)[:k]
    np.testing.assert_allclose(ours, best, atol=2e-6)
    assert len({found.row["id"] for found in answer.results}) == len(answer.results)


@pytest.mark.parametrize("k", [1, 7, 100])
@pytest.mark.parametrize(
    ("mode", "given", "weight"),
    [
        ("text", None, 0.0),
        ("visual", None, 1.0),
        ("fused", None, DEFAULT_WEIGHT),
        ("fused", 0.3, 0.3),
        ("text", 0.9, 0.0),
    ],
)
def test_the_answer_is_that_of_the_formula(
    finder: Finder, collection: Collection, mode: Any, given: float | None, weight: float, k: int
) -> None:
    answer = finder.search(TEXT, k, mode=mode, weight=given, images=3)
    assert answer.weight == weight
    assert answer.degraded is None
    check(answer, by_formula(finder.encoder, collection, weight), k)


def test_an_answer_is_its_results_and_shows_what_was_imagined(finder: Finder, collection: Collection) -> None:
    answer = finder.search(TEXT, 5, images=3)
    assert list(answer) == answer.results
    assert len(answer) == 5
    best = answer.results[0]
    assert (best.id, best.path, best.label) == (best.row["id"], best.row["path"], best.row["label"])
    [imagined] = answer.imagined
    assert [np.asarray(image).tolist() for image in answer.images] == imagined.pixels_KHWC.tolist()
    assert finder.search(TEXT, 5, mode="text").images == []
    assert len(finder.search(TEXT, mode="text")) == 10


def test_ranking_vectors_is_the_last_step_of_a_search(finder: Finder) -> None:
    [query] = finder.encoder.encode([TEXT], 3)
    visual = pool(query.vision_KD2[None], np.ones((1, len(query.vision_KD2)), bool))
    assert (
        finder.rank(fused_query(query.vlm_D1, visual, 0.3), 7) == finder.search(TEXT, 7, weight=0.3, images=3).results
    )


def test_the_modes_differ(finder: Finder) -> None:
    orders = [tuple(f.row["id"] for f in finder.search(TEXT, 24, mode=mode).results) for mode in ("text", "visual")]
    assert orders[0] != orders[1]


def test_seed_and_number_of_images_are_used(finder: Finder, collection: Collection) -> None:
    answer = finder.search(TEXT, 24, mode="visual", images=1, seed=9)
    assert [len(imagined.pixels_KHWC) for imagined in answer.imagined] == [1]
    check(answer, by_formula(finder.encoder, collection, 1.0, images=1, seed=9), 24)


def test_a_row_brings_the_columns_of_the_index(finder: Finder, collection: Collection) -> None:
    for found in finder.search(TEXT, 24, mode="text").results:
        number = collection.ids.index(found.row["id"])
        assert found.row["path"] == f"{found.row['label']}/{number % 4}.png"
        assert (collection.folder / "images" / found.row["path"]).exists()


def test_the_aggregator_and_its_weight_are_used(
    query_encoder: QueryEncoder, collection: Collection, aggregator: TrainedAggregator
) -> None:
    finder = Finder(query_encoder, collection.index, aggregator)
    answer = finder.search(TEXT, 10, images=3)
    assert answer.weight == aggregator.manifest.weight == pytest.approx(1 / (1 + np.e))
    expected = by_formula(query_encoder, collection, answer.weight, network=aggregator.network())
    check(answer, expected, 10)
    mean = by_formula(query_encoder, collection, answer.weight)
    assert max(abs(mean[name][2] - expected[name][2]) for name in mean) > 1e-3
    check(
        finder.search(TEXT, 10, images=3, weight=0.8),
        by_formula(query_encoder, collection, 0.8, network=aggregator.network()),
        10,
    )


def test_a_text_search_imagines_nothing(finder: Finder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Generator, "imagine", lambda *_, **__: pytest.fail("images were made"))
    assert finder.search(TEXT, 3, mode="text").imagined == []
    assert finder.search(TEXT, 3, weight=0.0).imagined == []


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"weight": 1.5}, "out-of-range"),
        ({"weight": -0.1}, "out-of-range"),
        ({"weight": float("nan")}, "out-of-range"),
        ({"k": 0}, "out-of-range"),
        ({"mode": "both"}, "unknown"),
    ],
)
def test_settings_out_of_range_are_refused_before_any_image_is_made(
    finder: Finder, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], code: str
) -> None:
    monkeypatch.setattr(Generator, "imagine", lambda *_, **__: pytest.fail("images were made"))
    with refused(code, next(iter(wrong))):
        finder.search(TEXT, **{"k": 3} | wrong)


@pytest.mark.parametrize(("mode", "weight"), [("fused", DEFAULT_WEIGHT), ("visual", 1.0)])
def test_without_an_accepted_image_the_answer_is_that_without_a_generator_and_says_why(
    finder: Finder, collection: Collection, monkeypatch: pytest.MonkeyPatch, mode: Any, weight: float
) -> None:
    nothing = Imagined(np.zeros((0, 64, 64, 3), np.uint8), np.zeros(0, np.int64), ["safety", "constant", "safety"])
    monkeypatch.setattr(Generator, "imagine", lambda *_, **__: [nothing])
    answer = finder.search(TEXT, 24, mode=mode, images=3)
    assert answer.degraded == "no image could be imagined (constant, safety)"
    assert (answer.weight, answer.visual) == (weight, "nearest")
    models = finder.encoder
    bare = QueryEncoder(models.vlm, models.vision, None, templates=models.templates, batch=1)
    assert answer.results == Finder(bare, collection.index).search(TEXT, 24, mode=mode).results
    text_parts = {name: (1 - weight) * parts[1] for name, parts in by_formula(models, collection, 0.0).items()}
    for found in answer:
        assert found.text_part == pytest.approx(text_parts[found.id], abs=2e-6)


def test_images_that_were_rejected_are_left_out(finder: Finder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = finder.encoder.generator.imagine([TEXT], 3)[0]
    part = Imagined(whole.pixels_KHWC[:1], whole.seeds[:1], ["nan", "constant"])
    monkeypatch.setattr(Generator, "imagine", lambda *_, **__: [part])
    answer = finder.search(TEXT, 24, mode="visual", images=3)
    monkeypatch.undo()
    assert answer.degraded is None
    expected = finder.search(TEXT, 24, mode="visual", images=1)
    np.testing.assert_allclose([f.score for f in answer.results], [f.score for f in expected.results], atol=1e-4)


def other_vision(tmp_path: Path) -> VisionEncoder:
    return VisionEncoder.load(f"local-dir:{write_vision(tmp_path / 'other', seed=1)}", device="cpu", dtype="float32")


def test_an_index_of_another_model_is_refused_with_both_fingerprints(
    query_encoder: QueryEncoder, collection: Collection, tmp_path: Path
) -> None:
    vision = other_vision(tmp_path)
    encoder = QueryEncoder(query_encoder.vlm, vision, query_encoder.generator, templates=["{}"], batch=1)
    with refused("other-model", "vision") as error:
        Finder(encoder, collection.index)
    for part in (vision.fingerprint, query_encoder.vision.fingerprint, vision.uri, collection.index.uri):
        assert part in str(error.value)


def test_an_index_that_is_silent_about_its_models_is_refused(
    query_encoder: QueryEncoder, collection: Collection
) -> None:
    manifest = collection.index.manifest
    silent = manifest.model_copy(update={"models": {"vlm": manifest.models["vlm"]}})
    with refused("unknown-model", "vision"):
        Finder(query_encoder, Index(collection.index.folder, silent))


def test_an_aggregator_of_another_vision_encoder_is_refused_with_both_fingerprints(
    query_encoder: QueryEncoder, collection: Collection, tmp_path: Path
) -> None:
    vision = other_vision(tmp_path)
    trained = TrainedAggregator.save(tmp_path / "a", Aggregator(vision.dim), {"vision": record_of(vision)}, {})
    with refused("other-model", "vision") as error:
        Finder(query_encoder, collection.index, trained)
    for part in (vision.fingerprint, query_encoder.vision.fingerprint, trained.uri):
        assert part in str(error.value)


def test_an_aggregator_of_another_generator_is_refused_with_its_settings(
    query_encoder: QueryEncoder, collection: Collection, tmp_path: Path
) -> None:
    record = record_of(query_encoder.generator)
    other = record.model_copy(update={"fingerprint": "sha256:other", "settings": {"steps": 4}})
    models = {"vision": record_of(query_encoder.vision), "generator": other}
    trained = TrainedAggregator.save(tmp_path / "a", Aggregator(query_encoder.vision.dim), models, {})
    with refused("other-model", "generator") as error:
        Finder(query_encoder, collection.index, trained)
    assert "sha256:other, {'steps': 4}" in str(error.value)
