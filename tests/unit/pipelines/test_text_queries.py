"""Texts lie away from images, as CLIP's do: they are searched deep enough, or the version is not published."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from errors import refused
from synthetic import directions, write_gallery, write_queries

import pipelines.shards
from cluster.profile import Profile
from pipelines.growth import remove
from pipelines.index import build_index
from pipelines.publication import worst_recall
from pipelines.selection import Selection
from pipelines.text_queries import TEXTS
from retrieval.artifacts import Gallery, Index, QuerySet
from retrieval.fusion import fused_query, unit
from retrieval.index.effort import LAMBDA_GRID
from retrieval.index.hits import merge_topk
from retrieval.index.tuning import RECALL_TARGET
from retrieval.metrics import neighbour_recall
from retrieval.models.vlm import VLM

pytestmark = pytest.mark.usefixtures("in_process")

DIM, CLASSES, ROWS = 48, 30, 5000
FACTORY = "IVF80,SQ8"
IMAGE_IMAGE, TEXT_IMAGE = 0.44, 0.15
"""Cosines within a class."""


class World(NamedTuple):
    gallery: Gallery
    queries: QuerySet
    unseen_QD1: np.ndarray
    """Texts of the same making that no version knows."""


def around(centres: np.ndarray, labels: np.ndarray, cosine: float, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors of about this cosine to the centre of their class."""
    noise = directions(len(labels), centres.shape[1], rng)
    return unit(cosine * centres[labels] + np.sqrt(1 - cosine**2) * noise)


@pytest.fixture(autouse=True)
def few_queries_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.recall.QUERIES", 50)  # merging their hits is what takes the time here


@pytest.fixture
def without_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are tuned and measured without queries made of evidence, which are searched deeper than texts."""
    for module in ("retrieval.index.tuning", "pipelines.recall"):
        monkeypatch.setattr(f"{module}.evidence_queries", lambda *_: {})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("gap")
    labels, asked = rng.integers(CLASSES, size=ROWS), rng.integers(CLASSES, size=300)
    centres, visual = directions(CLASSES, DIM, rng), directions(CLASSES, DIM, rng)
    vlm = around(centres, labels, np.sqrt(IMAGE_IMAGE), rng)
    text = around(centres, asked, TEXT_IMAGE / np.sqrt(IMAGE_IMAGE), rng)
    gallery = write_gallery(folder / "gallery", vlm, around(visual, labels, 0.8, rng))
    none = [np.zeros((0, DIM), np.float32)] * 200
    records = gallery.manifest.models
    queries = write_queries(folder / "queries", text[:200], none, labels=[None] * 200, records=records)
    return World(gallery, queries, text[200:])


def text_recall(index: Index, text_QD1: np.ndarray) -> float:
    """Recall@100 at λ = 0."""
    joint, shards = fused_query(text_QD1, np.zeros_like(text_QD1), 0.0), index.shards()
    found, exact = (
        merge_topk([getattr(shard, how)(joint, 100) for shard in shards], 100).ids for how in ("search", "exact")
    )
    return neighbour_recall(found, exact)


@pytest.mark.slow
@pytest.mark.usefixtures("without_evidence")
def test_gate_of_gallery_rows_alone_is_optimistic_and_texts_are_searched_deeper(
    world: World, profile: Profile, tmp_path: Path
) -> None:
    logged: list[str] = []
    blind = build_index(world.gallery, str(tmp_path / "blind"), profile, factory=FACTORY, log=logged.append)
    assert blind.manifest.text_recall is None
    assert "is not the one that made the gallery" in logged[0]
    assert blind.manifest.recall["100"]["0.0"] >= profile.index.recall_floor > text_recall(blind, world.unseen_QD1)
    index = build_index(world.gallery, str(tmp_path / "index"), profile, factory=FACTORY, queries=world.queries)
    assert index.manifest.text_recall is not None
    assert set(index.manifest.text_recall["100"]) == {"0.0"}
    assert index.manifest.text_recall["100"]["0.0"] >= profile.index.recall_floor
    assert text_recall(index, world.unseen_QD1) >= profile.index.recall_floor
    assert index.shard(0).efforts[0] > blind.shard(0).efforts[0]
    assert (index.shard(0).efforts[1:] == blind.shard(0).efforts[1:]).all()
    # What shares its shards is measured with the same texts.
    gone = remove(Selection(ids=["row-00000"]), world.gallery, index, profile.index).index
    assert gone.manifest.text_recall is not None
    assert gone.manifest.text_recall["100"]["0.0"] >= RECALL_TARGET - 0.02


@pytest.mark.slow
@pytest.mark.usefixtures("without_evidence")
def test_version_that_finds_too_little_for_texts_is_not_published(
    world: World, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.shards, "tuning_texts", lambda *_: {})
    with refused("low-recall", "index.recall_floor") as error:
        build_index(world.gallery, str(tmp_path), profile, factory=FACTORY, queries=world.queries)
    assert "of texts at λ = 0.0" in str(error.value)


def test_queries_of_evidence_are_searched_deep_enough_or_the_version_is_not_published(
    world: World, profile: Profile, tmp_path: Path
) -> None:
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("retrieval.index.tuning.evidence_queries", lambda *_: {})
    with refused("low-recall", "index.recall_floor") as error:
        build_index(world.gallery, str(tmp_path), profile, factory=FACTORY, shards=1)
    assert "of signed queries at λ = 0.0" in str(error.value)
    monkeypatch.undo()
    index = build_index(world.gallery, str(tmp_path), profile, factory=FACTORY, shards=1)
    measured = index.manifest.evidence_recall
    assert measured is not None
    assert set(measured) == {"row", "signed", "mixed"}
    for recall in measured.values():
        assert {depth: set(by_weight) for depth, by_weight in recall.items()} == {
            depth: {str(weight) for weight in LAMBDA_GRID} for depth in ("10", "100")
        }
    assert worst_recall(index) >= profile.index.recall_floor
    assert worst_recall(index) <= min(measured["signed"]["100"].values())
    # What shares its shards knows what was measured of them.
    gone = remove(Selection(ids=["row-00000"]), world.gallery, index, profile.index).index
    assert gone.manifest.evidence_recall == measured


def test_query_set_with_images_is_measured_at_every_weight_and_belongs_to_the_plan(
    profile: Profile, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    gallery = write_gallery(tmp_path / "gallery", directions(600, DIM, rng), directions(600, DIM, rng))
    images = [directions(i % 3, DIM, rng) for i in range(30)]  # every third has none
    records = gallery.manifest.models
    queries = write_queries(tmp_path / "queries", directions(30, DIM, rng), images, labels=[None] * 30, records=records)
    index = build_index(gallery, str(tmp_path / "index"), profile, factory="IVF4,SQ8", queries=queries)
    assert index.manifest.text_recall is not None
    assert index.manifest.text_recall.keys() == {"10", "100"}
    assert index.manifest.text_recall["10"].keys() == index.manifest.recall["10"].keys()
    assert index.folder.read_table(TEXTS).num_rows == 20
    flat = build_index(gallery, str(tmp_path / "index"), profile, factory="Flat", queries=queries)
    assert (flat.manifest.text_recall, flat.manifest.evidence_recall) == (None, None)
    other = write_queries(tmp_path / "other", directions(3, DIM, rng), images[:3], labels=[None] * 3)
    records["vlm"].fingerprint = "sha256:another"
    with refused("other-model", "vlm"):
        build_index(
            gallery,
            str(tmp_path / "third"),
            profile,
            factory="IVF4,SQ8",
            queries=other,
        )


def test_without_a_query_set_the_vlm_of_the_gallery_embeds_names_of_classes(profile: Profile, tmp_path: Path) -> None:
    vlm, rng = VLM.load(profile.models.vlm, device="cpu"), np.random.default_rng(0)
    gallery = write_gallery(tmp_path / "gallery", directions(600, vlm.dim, rng), directions(600, DIM, rng))
    gallery.manifest.models["vlm"].fingerprint = vlm.fingerprint
    index = build_index(gallery, str(tmp_path / "index"), profile, factory="IVF4,SQ8")
    assert index.manifest.text_recall is not None
    assert set(index.manifest.text_recall["10"]) == {"0.0"}
    assert index.folder.read_table(TEXTS).num_rows == 200


def test_manifest_of_a_version_without_texts_is_read(profile: Profile, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    gallery = write_gallery(tmp_path / "gallery", directions(50, DIM, rng), directions(50, DIM, rng))
    index = build_index(gallery, str(tmp_path / "index"), profile)
    content = index.folder.read_json("manifest.json")
    del content["text_recall"], content["evidence_recall"], content["measured"][0]["evidence_recall"]
    index.folder.write_json("manifest.json", content)
    manifest = Index.open(tmp_path / "index").manifest
    assert (manifest.text_recall, manifest.evidence_recall) == (None, None)
