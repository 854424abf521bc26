"""What is imagined for a vocabulary in batch, in this process."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import refused
from PIL import Image

from cluster.loading import prompt_templates, record_of
from cluster.profile import Profile
from cluster.session import session
from pipelines.queries import build_queries, imagine
from pipelines.vocabulary import VocabularyEntry
from retrieval.artifacts import QuerySet
from retrieval.artifacts.queryset import text_vectors, vision_vectors
from retrieval.models.devices import device_name
from retrieval.query import pool

VOCABULARY = [
    VocabularyEntry("red star", "name", "red star"),
    VocabularyEntry("five red points", "description", "red star"),
    VocabularyEntry("red star, five red points", "name+description", "red star"),
    VocabularyEntry("red star", "name", "red star"),
    VocabularyEntry("red star", "name", "another label"),
    VocabularyEntry("ünï {} 😀", "description", None, ("row 1", "row 2"), ("row 3",), "shape", "face"),
]
"""Six entries, of which five differ."""


def test_unfit_entries_are_refused_before_anything_is_written(tmp_path: Path, profile: Profile) -> None:
    target = tmp_path / "queries"
    with refused("empty", "vocabulary"):
        build_queries([], target, profile)
    with refused("blank", "text"):
        build_queries([VocabularyEntry("star"), VocabularyEntry("  ")], target, profile)
    with refused("out-of-range", "images"):
        build_queries([VocabularyEntry("star")], target, profile, images=0)
    assert not target.exists()


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory, profile: Profile) -> QuerySet:
    """The vocabulary, imagined where an interrupted run left half a file."""
    target = tmp_path_factory.mktemp("queries")
    (target / "queries").mkdir()
    (target / "queries/left by a killed job.parquet").write_bytes(b"half a file")
    return imagine(VOCABULARY, target, profile, images=3, seed=5, address="none")


def test_every_different_entry_is_one_query(queries: QuerySet) -> None:
    rows = queries.table(["id", *VocabularyEntry._fields]).to_pylist()
    expected = {entry.id: json.loads(json.dumps(entry._asdict())) for entry in VOCABULARY}
    assert len(expected) == 5
    assert {row.pop("id"): row for row in rows} == expected
    assert len(rows) == 5


def test_queries_hold_what_the_encoder_gives(queries: QuerySet, query_encoder: Any) -> None:
    rows = queries.table().to_pylist()
    encoded = query_encoder.encode([row["text"] for row in rows], 3, seed=5)
    for row, one in zip(rows, encoded, strict=True):
        assert row["seeds"] == one.imagined.seeds.tolist()
        assert row["rejected"] == one.imagined.rejected
        assert len(row["seeds"]) + len(row["rejected"]) == 3
        np.testing.assert_allclose(row["vlm"], one.vlm_D1, atol=1e-5)
        # Pixels may differ by a grey level from batch to batch (Generator.imagine).
        np.testing.assert_allclose(np.reshape(row["vision"], one.vision_KD2.shape), one.vision_KD2, atol=1e-2)
        for data, pixels in zip(row["thumbnails"], one.imagined.pixels_KHWC, strict=True):
            assert Image.open(BytesIO(data)).size == pixels.shape[1::-1]
    assert sum(len(row["seeds"]) for row in rows) > 0


def test_the_manifest_has_the_means_of_the_words(queries: QuerySet) -> None:
    """One text has an aspect, so it alone is a word."""
    table = queries.table()
    [word] = np.flatnonzero([aspect is not None for aspect in table["aspect"].to_pylist()])
    mean = queries.mean()
    assert mean is not None
    expected = text_vectors(table)[word], pool(*vision_vectors(table))[word]
    for half, of_word in zip(mean, expected, strict=True):
        np.testing.assert_allclose(half, of_word, atol=1e-7)


def test_query_set_opens_and_records_how_it_was_made(queries: QuerySet, profile: Profile, query_encoder: Any) -> None:
    manifest = QuerySet.open(queries.uri).manifest
    assert (manifest.queries, manifest.images, manifest.seed, manifest.aspects) == (5, 3, 5, ["shape"])
    assert manifest.templates == prompt_templates(profile)
    assert manifest.models == {role: record_of(getattr(query_encoder, role)) for role in ("vlm", "vision", "generator")}
    rejected = [reason for row in queries.table(["id", "rejected"]).to_pylist() for reason in row["rejected"]]
    assert manifest.rejected == {reason: rejected.count(reason) for reason in set(rejected)}
    assert manifest.spent is not None
    assert (manifest.spent.queries, manifest.spent.device) == (5, device_name(query_encoder.vlm.device))
    assert manifest.spent.seconds.keys() == {"text", "imagine", "embed"}
    assert min(manifest.spent.seconds.values()) > 0


def test_published_query_set_is_not_overwritten(queries: QuerySet, profile: Profile) -> None:
    before = queries.table()
    with refused("target-exists", "target"):
        imagine(VOCABULARY[:1], queries.uri, profile, address="none")
    assert queries.table().equals(before)


def test_other_batches_give_the_same_seeds_and_vectors(queries: QuerySet, profile: Profile, tmp_path: Path) -> None:
    generator = profile.models.generator.model_copy(update={"batch": 2})
    one_by_one = profile.model_copy(
        update={
            "models": profile.models.model_copy(update={"generator": generator}),
            "imagine": profile.imagine.model_copy(update={"batch": 1}),
        }
    )
    with session("none"):
        again = build_queries(VOCABULARY[::-1], tmp_path, one_by_one, images=3, seed=5)
    assert len(again.folder.files("queries")) == 5
    one, other = queries.table(), again.table()
    assert one["id"].to_pylist() == other["id"].to_pylist()
    assert one["seeds"].to_pylist() == other["seeds"].to_pylist()
    np.testing.assert_allclose(text_vectors(one), text_vectors(other), atol=1e-5)
    (vectors, mask), (others, other_mask) = vision_vectors(one), vision_vectors(other)
    np.testing.assert_array_equal(mask, other_mask)
    np.testing.assert_allclose(vectors, others, atol=1e-2)
    means = [np.concatenate(each.mean() or ()) for each in (queries, again)]
    np.testing.assert_allclose(*means, atol=1e-2)


def test_vocabulary_and_profile_may_be_files(tmp_path: Path, profile_file: Path) -> None:
    (tmp_path / "names.txt").write_text("red star\n")
    made = imagine(tmp_path / "names.txt", str(tmp_path / "queries"), profile_file, images=1, address="none")
    [row] = made.table(["id", "text", "kind", "label"]).to_pylist()
    assert row == {"id": VOCABULARY[0].id, "text": "red star", "kind": "name", "label": "red star"}
    assert (made.manifest.images, made.manifest.seed) == (1, 0)
