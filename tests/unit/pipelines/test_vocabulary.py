"""Vocabularies, read from text files, CSV and Parquet."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from errors import refused

from pipelines.vocabulary import VocabularyEntry, read_vocabulary
from retrieval.folder import Folder

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


def test_rows_that_are_relevant_and_junk_come_with_their_query(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,relevant,junk\na star,a b  a,c\na ring,"[""d e""]",\na line,[],\na dot,,\n')
    entries = [
        VocabularyEntry("a star", relevant=("a", "b"), junk=("c",)),
        VocabularyEntry("a ring", relevant=("d e",)),
        VocabularyEntry("a line", relevant=()),
        VocabularyEntry("a dot"),
    ]
    assert read_vocabulary(tmp_path / "a.csv") == entries
    rows = [entry._asdict() for entry in entries]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_vocabulary(tmp_path / "a.parquet") == entries
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    assert read_vocabulary(tmp_path / "a.jsonl") == entries
    (tmp_path / "b.jsonl").write_text('{"name": "star\u2028", "description": "points", "relevant": ["a"]}')
    assert [entry.relevant for entry in read_vocabulary(tmp_path / "b.jsonl")] == [("a",)] * 3


@pytest.mark.parametrize(
    ("name", "content", "code", "field", "fact"),
    [
        ("a.csv", "name,relevant,junk\nx,a,\nstar,a b c,b c\n", "overlap", "junk", "row 2: 2 rows are both"),
        ("a.csv", "name,junk\nstar,a\n", "missing", "relevant", "row 1 has junk rows and no relevant ones"),
        ("a.csv", 'name,relevant\nstar,"[1]"\n', "wrong-type", "relevant", "row 1: relevant must be a list of ids"),
        ("a.jsonl", '{"name": "x", "relevant": [null]}', "wrong-type", "relevant", "row 1: relevant must be"),
        ("a.jsonl", '{"name": "x", "junk": 7, "relevant": []}', "wrong-type", "junk", "not 7"),
        ("a.jsonl", '{"name": "x"}\n["x"]\n', "wrong-type", "vocabulary", "a.jsonl, line 2"),
        ("a.jsonl", '{"name": "x"}\n{"name"\n', "damaged", "vocabulary", "a.jsonl, line 2"),
    ],
)
def test_unfit_lists_of_rows_are_refused_by_file_and_row(
    tmp_path: Path, name: str, content: str, code: str, field: str, fact: str
) -> None:
    (tmp_path / name).write_text(content)
    with refused(code, field) as error:
        read_vocabulary(tmp_path / name)
    assert fact in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "code", "fact"),
    [
        ("a.csv", b"name,description\nstar,x\n,\n", "no-text", "a.csv, row 2:"),
        ("a.csv", b"name\nstar\n   \n", "no-text", "a.csv, row 2:"),
        ("a.csv", b"star\nring\n", "no-text", "{'star': 'ring'}"),
        ("a.csv", b"text,kind\na,name\nb,title\n", "unknown", "row 2: kind is 'title'"),
        ("a.csv", b"name,label\n", "empty", "a.csv"),
        ("a.txt", b"\n  \n", "empty", "a.txt"),
        ("a.txt", "café".encode("latin-1"), "not-utf-8", "a.txt"),
        ("a.parquet", b"name\nstar\n", "damaged", "a.parquet"),
        ("a.csv", b"name\nstar\n" + b"x" * 140_000, "damaged", "a.csv is not CSV: line 3"),
        ("a.csv", b"text\na star\na disc, like a coin\n", "damaged", "a.csv is not CSV: line 3 has more cells"),
        ("a.jsonl", b'{"name": "x"}\n' + b"[" * 100_000, "damaged", "line 2 is not JSON: it is nested"),
    ],
)
def test_unfit_vocabulary_is_refused_by_file_and_row(
    tmp_path: Path, name: str, content: bytes, code: str, fact: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(code, "kind" if code == "unknown" else "vocabulary") as error:
        read_vocabulary(tmp_path / name)
    assert fact in str(error.value)


def test_missing_vocabulary_is_named(tmp_path: Path) -> None:
    with refused("missing", "vocabulary") as error:
        read_vocabulary(tmp_path / "missing.txt")
    assert str(tmp_path / "missing.txt") in str(error.value)


def test_uri_of_a_vocabulary_may_have_options(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name\nred star\n")
    for uri in (f"file://{tmp_path}/a.csv", f"file://{tmp_path}/a.csv?"):
        assert read_vocabulary(uri) == [VocabularyEntry("red star", "name", "red star")]


def test_a_vocabulary_in_an_object_store_is_found_behind_its_options(bucket: str) -> None:
    uri = f"s3://bucket/words/{{}}?{bucket}"
    Folder(uri.format("")).write_bytes("names.csv", b"name\nred star\n")
    assert read_vocabulary(uri.format("names.csv")) == [VocabularyEntry("red star", "name", "red star")]
    with refused("missing", "vocabulary"):
        read_vocabulary(uri.format("other.csv"))


def test_ids_are_of_text_kind_and_label() -> None:
    entries = [*THREE_KINDS, VocabularyEntry("red star"), VocabularyEntry("red star", "name", "other")]
    entries += [VocabularyEntry("red star", relevant=ids) for ids in ((), ("a",), ("a", "b"))]
    entries += [VocabularyEntry("red star", relevant=("a",), junk=("b",))]
    entries += [VocabularyEntry("red star", aspect=aspect, value="red") for aspect in ("colour", "mood")]
    assert len({entry.id for entry in entries}) == 11
    assert THREE_KINDS[0].id == VocabularyEntry("red star", "name", "red star").id == "6aff00de893909c3"


def test_words_of_a_dictionary_say_values_of_aspects(tmp_path: Path) -> None:
    (tmp_path / "words.csv").write_text("text,aspect,value\nred,colour,\nlike blood,colour,red\nstar,,\n")
    said = [(entry.text, entry.aspect, entry.value) for entry in read_vocabulary(tmp_path / "words.csv")]
    assert said == [("red", "colour", "red"), ("like blood", "colour", "red"), ("star", None, None)]
    (tmp_path / "words.csv").write_text("text,aspect,value\nred,,red\n")
    with refused("missing", "aspect"):
        read_vocabulary(tmp_path / "words.csv")
