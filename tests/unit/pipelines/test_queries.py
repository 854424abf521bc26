"""Vocabularies, and what is imagined for them in batch."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.loading import prompt_templates, record_of
from cluster.profile import Profile
from cluster.session import session
from pipelines.queries import VocabularyEntry, build_queries, query_id, read_vocabulary
from retrieval.artifacts import QuerySet
from retrieval.artifacts.queryset import text_vectors, vision_vectors

THREE_KINDS = [
    VocabularyEntry("red star", "name", "red star"),
    VocabularyEntry("five red points", "description", "red star"),
    VocabularyEntry("red star, five red points", "name+description", "red star"),
]


def test_text_file_has_a_name_a_line(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffred star\r\n\n  ünï 😀 \n\t\nblue {} ring".encode())
    assert read_vocabulary(file) == [
        VocabularyEntry(name, "name", name) for name in ("red star", "ünï 😀", "blue {} ring")
    ]


def test_columns_give_every_kind_that_they_allow(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "name,description,label,notes\n"
        "red star,five red points,,any\n"
        'blue ring,"  ",rings,any\n'
        ',"round, with a ""hole""",rings,any\n'
        ",a line,,any\n"
    )
    assert read_vocabulary(tmp_path / "a.csv") == [
        *THREE_KINDS,
        VocabularyEntry("blue ring", "name", "rings"),
        VocabularyEntry('round, with a "hole"', "description", "rings"),
        VocabularyEntry("a line", "description", None),
    ]
    columns = {"name": ["red star"], "description": ["five red points"], "label": pa.array([None], pa.string())}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read_vocabulary(tmp_path / "a.parquet") == THREE_KINDS


def test_texts_with_kinds_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,kind,label\na star,description,star\na ring,,\n7,name,7\n")
    entries = [
        VocabularyEntry("a star", "description", "star"),
        VocabularyEntry("a ring", "name", None),
        VocabularyEntry("7", "name", "7"),
    ]
    assert read_vocabulary(str(tmp_path / "a.csv")) == entries
    columns = {"text": ["a star", "a ring"], "kind": ["description", None], "label": ["star", None]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read_vocabulary(tmp_path / "a.parquet") == entries[:2]
    pq.write_table(pa.table({"name": [7]}), tmp_path / "numbers.parquet")
    assert read_vocabulary(tmp_path / "numbers.parquet") == [VocabularyEntry("7", "name", "7")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"name,description\nstar,x\n,\n", r"a\.csv, row 2: expected a column name, description or text"),
        ("a.csv", b"name\nstar\n   \n", r"a\.csv, row 2: expected a column"),
        ("a.csv", b"star\nring\n", r"a\.csv, row 1: expected a column .* the row is \{'star': 'ring'\}"),
        ("a.csv", b"text,kind\na,name\nb,title\n", r"row 2: kind is 'title'; it must be one of name, description"),
        ("a.csv", b"name,label\n", r"a\.csv has no queries in it"),
        ("a.txt", b"\n  \n", r"a\.txt has no queries in it"),
        ("a.txt", "café".encode("latin-1"), r"a\.txt is not UTF-8 text .*; save it as UTF-8"),
        ("a.parquet", b"name\nstar\n", r"a\.parquet is not Parquet"),
    ],
)
def test_unfit_vocabulary_is_refused_by_file_and_row(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_vocabulary(tmp_path / name)


def test_missing_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no vocabulary at .*missing\.txt"):
        read_vocabulary(tmp_path / "missing.txt")


def test_unfit_entries_are_refused_before_anything_is_written(tmp_path: Path, profile: Profile) -> None:
    target = str(tmp_path / "queries")
    with pytest.raises(ValueError, match="the vocabulary is empty"):
        build_queries([], target, profile)
    with pytest.raises(ValueError, match="the text is blank"):
        build_queries([VocabularyEntry("star"), VocabularyEntry("  ")], target, profile)
    with pytest.raises(ValueError, match="at least one image must be imagined for each query, not 0"):
        build_queries([VocabularyEntry("star")], target, profile, images=0)
    assert not (tmp_path / "queries").exists()


VOCABULARY = [
    *THREE_KINDS,
    VocabularyEntry("red star", "name", "red star"),
    VocabularyEntry("red star", "name", "another label"),
    VocabularyEntry("ünï {} 😀", "description", None),
]
"""Six entries, of which five differ."""


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory, profile: Profile, ray_session: None) -> QuerySet:
    target = tmp_path_factory.mktemp("queries")
    (target / "queries").mkdir()
    (target / "queries/left by a killed job.parquet").write_bytes(b"half a file")
    return build_queries(VOCABULARY, str(target), profile, images=3, seed=5)


@pytest.mark.ray
def test_every_different_entry_is_one_query(queries: QuerySet) -> None:
    rows = queries.table(["id", "text", "kind", "label"]).to_pylist()
    expected = {query_id(entry): entry._asdict() for entry in VOCABULARY}
    assert len(expected) == 5
    assert {row.pop("id"): row for row in rows} == expected
    assert len(rows) == 5


@pytest.mark.ray
def test_queries_hold_what_the_encoder_gives_in_this_process(queries: QuerySet, query_encoder: Any) -> None:
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


@pytest.mark.ray
def test_query_set_opens_and_says_how_it_was_made(queries: QuerySet, profile: Profile, query_encoder: Any) -> None:
    manifest = QuerySet.open(queries.uri).manifest
    assert (manifest.queries, manifest.images, manifest.seed) == (5, 3, 5)
    assert manifest.templates == prompt_templates(profile)
    assert manifest.models == {role: record_of(getattr(query_encoder, role)) for role in ("vlm", "vision", "generator")}
    refused = [reason for row in queries.table(["id", "rejected"]).to_pylist() for reason in row["rejected"]]
    assert manifest.rejected == {reason: refused.count(reason) for reason in set(refused)}
    with pytest.raises(ValueError, match="already holds a query set; give another target"):
        build_queries(VOCABULARY, queries.uri, profile)


@pytest.mark.ray
def test_other_batches_give_the_same_seeds_and_vectors(queries: QuerySet, profile: Profile, tmp_path: Path) -> None:
    generator = profile.models.generator.model_copy(update={"batch": 2})
    one_by_one = profile.model_copy(
        update={
            "models": profile.models.model_copy(update={"generator": generator}),
            "imagine": profile.imagine.model_copy(update={"batch": 1}),
        }
    )
    again = build_queries(VOCABULARY[::-1], str(tmp_path), one_by_one, images=3, seed=5)
    one, other = queries.table(), again.table()
    assert one["id"].to_pylist() == other["id"].to_pylist()
    assert one["seeds"].to_pylist() == other["seeds"].to_pylist()
    np.testing.assert_allclose(text_vectors(one), text_vectors(other), atol=1e-5)
    (vectors, mask), (others, other_mask) = vision_vectors(one), vision_vectors(other)
    np.testing.assert_array_equal(mask, other_mask)
    np.testing.assert_allclose(vectors, others, atol=1e-2)


@pytest.mark.ray
def test_model_that_cannot_be_loaded_is_one_plain_error(tmp_path: Path, profile: Profile, ray_session: None) -> None:
    models = profile.models.model_copy(update={"vision": f"local-dir:{tmp_path / 'missing'}"})
    with pytest.raises(ValueError, match=r"^cannot load the vision encoder 'local-dir:.*missing'") as caught, session():
        build_queries(THREE_KINDS, str(tmp_path / "q"), profile.model_copy(update={"models": models}))
    assert type(caught.value) is ValueError
    assert "\x1b" not in str(caught.value)
