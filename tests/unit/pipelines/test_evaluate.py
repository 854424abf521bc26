"""The evaluation, block by block, against a plain one that holds all scores at once."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from errors import refused
from synthetic import D1, D2, directions, models, write_gallery, write_queries

from cluster.session import session
from pipelines import ranking
from pipelines.evaluate import Evaluation, evaluate
from pipelines.truth import LeftOut
from retrieval.aggregator import Aggregator
from retrieval.artifacts import Gallery, QuerySet, TrainedAggregator
from retrieval.fusion import score, unit

ROWS = 300
CLASSES = ["bee", "cat", "dog", "ünï 😀"]
LABELS = [*CLASSES, "bee", "cat", "dog", None, "no such label", None]
KINDS = ["name"] * 4 + ["description"] * 3 + ["name"] * 3
WEIGHT = 0.3


class World(NamedTuple):
    gallery: Gallery
    queries: QuerySet
    ids: list[str]
    labels: list[str | None]
    vlm_ND1: np.ndarray
    vision_ND2: np.ndarray
    text_QD1: np.ndarray
    images: list[np.ndarray]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """300 rows, most of them twins of another; ten queries, one of them without an image, three not to be measured."""
    folder = tmp_path_factory.mktemp("world") / "label=dog" / "vlm=x"  # not to be taken for columns
    rng = np.random.default_rng(0)
    vlm, vision = (directions(ROWS, dim, rng).astype(np.float16) for dim in (D1, D2))
    copies, originals = rng.permutation(ROWS)[:200], rng.integers(0, 15, 200)
    vlm[copies], vision[copies] = vlm[originals], vision[originals]
    ids = [f"{rng.integers(2**32):08x}-{i}" for i in range(ROWS)]
    labels = [CLASSES[i % 5] if i % 5 < len(CLASSES) else None for i in range(ROWS)]
    text = directions(len(LABELS), D1, rng)
    text[0] = unit(vlm[3].astype(np.float32))  # scores equal to the bit at the very top
    images = [directions(3 + q % 2, D2, rng) for q in range(len(LABELS))]
    images[2] = images[2][:0]
    gallery = write_gallery(folder / "gallery", vlm, vision, ids=ids, labels=labels)
    queries = write_queries(folder / "queries", text, images, labels=LABELS, kinds=KINDS)
    return World(gallery, queries, ids, labels, vlm, vision, text, images)


def plain_ap(world: World, q: int, visual_D2: np.ndarray, weight: float) -> tuple[float, float, float]:
    """Trapezoid AP, step AP and precision at 10 of query q, from all scores at once and a full sort."""
    scores = score(world.text_QD1[q], visual_D2, weight, world.vlm_ND1, world.vision_ND2)[0]
    order = sorted(range(ROWS), key=lambda n: (-scores[n], world.ids[n]))
    hit = np.array([world.labels[n] == LABELS[q] for n in order])
    precision = np.cumsum(hit) / np.arange(1, ROWS + 1)
    before = np.concatenate([[1.0], precision[:-1]])
    return ((precision + before) / 2)[hit].mean(), precision[hit].mean(), hit[:10].mean()


def check(evaluation: Evaluation, world: World, visual_QD2: np.ndarray, systems: dict[str, float]) -> None:
    rows = {(row["query"], row["system"]): row for row in evaluation.table.to_pylist() if row["system"] in systems}
    assert set(rows) == {(f"query-{q:03d}", system) for q in range(7) for system in systems}
    for (query, system), row in rows.items():
        q = int(query[-3:])
        expected = plain_ap(world, q, visual_QD2[q], systems[system])
        assert (row["ap"], row["ap_step"], row["precision_at_10"]) == pytest.approx(expected, abs=1e-12)
        assert row["positives"] == world.labels.count(LABELS[q])
        assert (row["label"], row["kind"], row["text"]) == (LABELS[q], KINDS[q], f"text {q}")


@pytest.fixture(autouse=True)
def in_this_process() -> Iterator[None]:
    with session("none"):
        yield


@pytest.fixture(scope="module")
def evaluation(world: World) -> Evaluation:
    with pytest.MonkeyPatch.context() as patch, session("none"):
        patch.setattr(ranking, "BLOCK_ELEMENTS", 1)  # so that the gallery is ranked in several blocks
        patch.setattr(ranking, "POSITIVES_AT_ONCE", 500)  # and in groups of rankings
        return evaluate(world.gallery, world.queries, weight=WEIGHT, extra={"half": 0.5})


def test_evaluation_equals_a_plain_one_ties_included(evaluation: Evaluation, world: World) -> None:
    means = [vectors.mean(axis=0) if len(vectors) else np.zeros(D2) for vectors in world.images]
    visual = np.array([mean / max(np.linalg.norm(mean), 1e-9) for mean in means], np.float32)
    check(evaluation, world, visual, {"text": 0.0, "visual": 1.0, "fused": WEIGHT, "half": 0.5})


def test_groups_of_rankings_change_nothing(evaluation: Evaluation, world: World) -> None:
    assert evaluate(world.gallery, world.queries, weight=WEIGHT, extra={"half": 0.5}).table.equals(evaluation.table)


def test_positives_of_all_rankings_are_never_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 rankings of 1,000 positives each, whose ids, scores and ranks would take some 30 MB."""
    monkeypatch.setattr(ranking, "BLOCK_ELEMENTS", 30_000)
    monkeypatch.setattr(ranking, "POSITIVES_AT_ONCE", 60_000)
    rng = np.random.default_rng(0)
    labels = ["bee", "cat"] * 1000
    vlm, vision = directions(2000, D1, rng), directions(2000, D2, rng)
    gallery = write_gallery(tmp_path / "gallery", vlm, vision, labels=labels, parts=20)
    images = [directions(1, D2, rng) for _ in range(100)]
    queries = write_queries(tmp_path / "queries", directions(100, D1, rng), images, labels=labels[:100])
    tracemalloc.start()
    try:
        assert evaluate(gallery, queries).table["positives"].to_pylist() == [1000] * 300
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_what_cannot_be_measured_is_counted_and_named(evaluation: Evaluation) -> None:
    assert evaluation.left_out == LeftOut(2, ["no such label"], [], [], [])
    assert evaluation.gallery_rows == ROWS
    assert evaluation.weights == {"text": 0, "visual": 1, "fused": WEIGHT, "half": 0.5}


def test_figures_by_kind_and_system(evaluation: Evaluation) -> None:
    assert evaluation.kinds == ["name", "description"]
    assert evaluation.systems == ["text", "visual", "fused", "half"]
    rows = evaluation.table.to_pylist()
    for kind in evaluation.kinds:
        of = {system: [row["ap"] for row in rows if (row["system"], row["kind"]) == (system, kind)] for system in
              ("text", "fused")}  # fmt: skip
        assert evaluation.values("fused", kind).tolist() == of["fused"]
        assert evaluation.mean("fused", kind).mean == pytest.approx(np.mean(of["fused"]))
        gain = evaluation.gain("fused", kind)
        assert gain.mean == pytest.approx(np.mean(of["fused"]) - np.mean(of["text"]))
        assert gain.low <= gain.mean <= gain.high
    assert evaluation.gain("text", "name").high == 0


def test_aggregator_pools_the_images_and_brings_its_weight(world: World, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Aggregator(D2, heads=2).eval()
    trained = TrainedAggregator.save(tmp_path, network, {"vision": models()["vision"]}, {})
    result = evaluate(world.gallery, world.queries, weight=0.7, aggregators={"trained": trained})
    with torch.inference_mode():
        visual = [
            network(torch.from_numpy(vectors)[None])[0].numpy() if len(vectors) else np.zeros(D2, np.float32)
            for vectors in world.images
        ]
    assert result.systems == ["text", "visual", "fused", "trained"]
    check(result, world, np.array(visual), {"text": 0.0, "trained": network.fusion_weight})


def test_fewer_images_of_each_query_can_be_used(world: World) -> None:
    result = evaluate(world.gallery, world.queries, weight=WEIGHT, images=2)
    two = [vectors[:2] for vectors in world.images]
    visual = [unit(vectors.mean(axis=0)) if len(vectors) else np.zeros(D2, np.float32) for vectors in two]
    check(result, world, np.array(visual), {"visual": 1.0, "fused": WEIGHT})


def test_labels_that_the_aggregator_learned_from_are_refused_by_name(world: World, tmp_path: Path) -> None:
    record = {"labels": ["dog", "owl"], "validation_labels": ["bee"]}
    trained = TrainedAggregator.save(tmp_path, Aggregator(D2), {"vision": models()["vision"]}, record)
    with refused("overlap", "label") as error:
        evaluate(world.gallery, world.queries, aggregators={"trained": trained})
    assert "2 labels" in str(error.value)
    assert "bee, dog" in str(error.value)


def test_weight_out_of_range_is_refused(world: World) -> None:
    for weight in (-0.1, 1.5, float("nan")):
        with refused("out-of-range", "weight"):
            evaluate(world.gallery, world.queries, weight=weight)


def test_images_out_of_range_are_refused(world: World) -> None:
    for images in (0, -1):
        with refused("out-of-range", "images"):
            evaluate(world.gallery, world.queries, images=images)


def test_artifacts_of_other_models_are_refused(world: World, tmp_path: Path) -> None:
    for role in ("vlm", "vision"):
        records = models(**{role: "sha256:other"})
        other = write_queries(tmp_path / role, world.text_QD1, world.images, labels=LABELS, records=records)
        with refused("other-model", role):
            evaluate(world.gallery, other)
    other_vision = models(vision="sha256:other")["vision"]
    trained = TrainedAggregator.save(tmp_path / "aggregator", Aggregator(D2), {"vision": other_vision}, {})
    with refused("other-model", "vision"):
        evaluate(world.gallery, world.queries, aggregators={"trained": trained})


def test_nothing_to_measure_is_an_error_that_says_why(world: World, tmp_path: Path) -> None:
    labels = [None, None, *(f"other {i}" for i in range(8))]
    other = write_queries(tmp_path, world.text_QD1, world.images, labels=labels)
    with refused("nothing-to-measure", "label") as error:
        evaluate(world.gallery, other)
    for fact in ("2 queries have no label", "8 labels have no image", "other 0, other 1"):
        assert fact in str(error.value)
