"""Files of queries made of evidence: what they say, and that each fault is named by its line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from errors import refused
from PIL import Image

from pipelines.evidence_file import is_evidence_file, read_evidence_file
from pipelines.truth import Truth

GOOD: dict[str, Any] = {"evidence": [{"text": "fish"}], "relevant": ["a"]}


def written(folder: Path, *rows: Any) -> Path:
    file = folder / "queries.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return file


def test_lines_say_what_each_query_is_made_of(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "ü.png")
    whole = {
        "id": "first",
        "kind": "like this, but",
        "text": "fish",
        "evidence": [{"picture": "pictures/ü.png", "box": [0, 0, 0.5, 1]}, {"row": "r1", "weight": -0.4}],
        "relevant": ["a", "b", "a"],
        "junk": ["c"],
        "edits": ["red fish"],
    }
    absolute = {"evidence": [{"picture": str(tmp_path / "pictures" / "ü.png")}, {"text": "x"}], "relevant": []}
    first, second, third = read_evidence_file(written(tmp_path, whole, "", absolute, GOOD))
    assert (first.id, first.kind, first.edits) == ("first", "like this, but", ("red fish",))
    assert first.truth == Truth(None, ("a", "b"), ("c",))
    assert [piece.modality for piece in first.pieces] == ["text", "picture", "row"]
    assert [piece.weight for piece in first.pieces] == [1, 1, -0.4]
    assert first.text == "fish; ü.png; -0.4 r1"
    assert first.pieces[1].picture == second.pieces[0].picture == str(tmp_path / "pictures" / "ü.png")
    assert (second.id, second.kind, second.where) == ("3", "picture+text", f"{tmp_path}/queries.jsonl, line 3")
    assert third.kind == "text"


@pytest.mark.parametrize(
    ("row", "code", "field", "said"),
    [
        ("{", "bad-line", "queries", "JSON"),
        ("[1]", "bad-line", "queries", "object"),
        ({**GOOD, "relevnt": ["a"]}, "bad-line", "relevnt", "not permitted"),
        ({"evidence": GOOD["evidence"]}, "bad-line", "relevant", "required"),
        ({**GOOD, "relevant": [1]}, "bad-line", "relevant.0", "string"),
        ({**GOOD, "junk": ["b", "a"]}, "overlap", "junk", "both relevant and junk: a"),
        ({**GOOD, "evidence": [{"text": "a", "row": "b"}]}, "bad-line", "evidence.0", "one of text, row and picture"),
        ({**GOOD, "evidence": [{"weight": 1}]}, "bad-line", "evidence.0", "one of text, row and picture"),
        ({**GOOD, "evidence": [{"text": "a", "box": [0, 0, 1, 1]}]}, "bad-line", "evidence.0", "only a picture"),
        ({**GOOD, "evidence": [{"picture": "p", "box": [0, 0, 2, 1]}]}, "bad-line", "evidence.0.box.2", "less than"),
        ({**GOOD, "evidence": [{"picture": "p", "box": [1, 0, 1, 1]}]}, "bad-line", "evidence.0", "nothing in it"),
        ({**GOOD, "evidence": [{"picture": "no.png"}]}, "missing", "evidence.0.picture", "no picture at"),
        ({**GOOD, "evidence": [{"text": "a", "weight": 1e9}]}, "bad-line", "evidence.0.weight", "less than"),
        ({**GOOD, "evidence": [{"text": "a", "weight": 0}]}, "out-of-range", "evidence.0.weight", "not zero"),
        ('{"evidence": [{"text": "a", "weight": NaN}], "relevant": ["a"]}', "bad-line", "evidence.0.weight", ""),
        ({**GOOD, "evidence": []}, "empty", "evidence", "nothing to search for"),
        ({**GOOD, "evidence": [{"text": "a"}] * 17}, "bad-line", "evidence", "16"),
        ({**GOOD, "text": "x", "evidence": [{"text": "a"}] * 16}, "too-many", "evidence", "not 17"),
        ({**GOOD, "evidence": [{"text": "a", "weight": -1}]}, "nothing-wanted", "evidence", "against"),
        ({**GOOD, "evidence": [{"text": "  "}]}, "blank", "text", "blank"),
        ({**GOOD, "edits": [" "]}, "blank", "text", "blank"),
        ({"evidence": [{"row": "r"}], "relevant": ["a"], "edits": ["b"]}, "bad-line", "edits", "first piece"),
        ({**GOOD, "id": "1"}, "repeated", "id", "line 1 too"),
    ],
)
def test_a_fault_is_named_by_line_and_field(tmp_path: Path, row: Any, code: str, field: str, said: str) -> None:
    file = written(tmp_path, GOOD, row)
    with refused(code, field) as error:
        read_evidence_file(file)
    assert str(error.value).startswith(f"{file}, line 2: ")
    assert said in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with refused("missing", "queries"):
        read_evidence_file(tmp_path / "no.jsonl")
    with refused("empty", "queries"):
        read_evidence_file(written(tmp_path, "", " "))
    (tmp_path / "latin.jsonl").write_bytes("ü".encode("latin-1"))
    with refused("not-utf-8", "queries"):
        read_evidence_file(tmp_path / "latin.jsonl")


def test_a_file_is_told_from_a_query_set_by_its_name() -> None:
    assert is_evidence_file("s3://bucket/queries.jsonl?region=x")
    assert is_evidence_file(Path("queries.jsonl"))
    assert not is_evidence_file("demo-out/queries")
    assert not is_evidence_file(None)
