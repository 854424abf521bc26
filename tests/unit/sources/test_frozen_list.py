"""The frozen list: what its files hold, how types and paths are settled between them, and when there is nothing."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from errors import refused
from source_files import listed, write_parquet

from retrieval.sources import frozen_list
from retrieval.sources.inputs import INPUTS

DATA = [b"one", b"two"]


def test_the_columns_are_those_that_unfinished_batches_have() -> None:
    text, whole, short = pa.string(), pa.int64(), pa.int32()
    names = [
        "input",
        "path",
        "label",
        "file",
        "offset",
        "length",
        "row_group",
        "row",
        "size",
        "mtime_ns",
        "reason",
        "detail",
    ]
    types = [whole, text, text, text, whole, whole, short, short, whole, whole, text, text]
    assert list(zip(INPUTS.names, INPUTS.types, strict=True)) == list(zip(names, types, strict=True))


def test_the_digest_is_over_path_size_and_time_of_change(tmp_path: Path) -> None:
    # A job that another version started resumes only if it finds the same.
    expected = hashlib.sha256()
    for i, name in enumerate(("a.jpg", "b/ü.jpg")):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * (i + 1))
        os.utime(file, ns=(i, 10**18 + i))
        expected.update(f"{name}\0{i + 1}\0{10**18 + i}\0".encode())
    assert listed(tmp_path / "photos", tmp_path / "list")[0].digest == expected.hexdigest()


def test_a_long_list_is_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_list, "ROWS_PER_FILE", 4)
    (tmp_path / "photos").mkdir()
    for i in range(10):
        (tmp_path / f"photos/{i}.jpg").write_bytes(b"any")
    listed(tmp_path / "photos", tmp_path / "list")
    files = sorted((tmp_path / "list").iterdir())
    assert [file.name for file in files] == ["000000.parquet", "000001.parquet", "000002.parquet"]
    assert [pq.read_metadata(file).num_rows for file in files] == [4, 4, 2]


def test_metadata_keeps_its_types_or_becomes_text(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "all/1.parquet",
        image=DATA,
        path=["a", "b"],
        whole=pa.array([1, None], pa.int32()),
        differs=[1, 2],
        only_here=["é", None],
        of_null=pa.nulls(2),
        tags=[["x", "y"], None],
        day=pa.array([0, 1], pa.date32()),
        kind=pa.array(["p", "q"]).dictionary_encode(),
        raw=[b"bytes", b"are left out"],
        width=[100, 100],
        batch=["mine", "mine"],
    )
    write_parquet(
        tmp_path / "all/2.parquet",
        image=DATA[:1],
        path=["c"],
        whole=pa.array([2**40], pa.int64()),
        differs=["two"],
        of_null=[1.5],
    )
    listing, rows = listed(tmp_path / "all", tmp_path / "list")
    assert set(listing.metadata) == {"whole", "differs", "only_here", "of_null", "tags", "day", "kind"}
    assert [row["whole"] for row in rows] == [1, None, 2**40]
    assert [row["differs"] for row in rows] == ["1", "2", "two"]
    assert [row["only_here"] for row in rows] == ["é", None, None]
    assert [row["of_null"] for row in rows] == [None, None, 1.5]
    assert [row["tags"] for row in rows] == ['["x", "y"]', None, None]
    assert [row["kind"] for row in rows] == ["p", "q", None]
    assert pq.read_schema(tmp_path / "list/000000.parquet").field("day").type == pa.date32()


def test_types_that_only_a_later_file_shows_reach_the_files_of_the_list_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_list, "ROWS_PER_FILE", 2)
    for i in range(4):
        value: Any = "late" if i == 3 else i
        extra = {"new": [True]} if i == 3 else {}
        write_parquet(tmp_path / f"all/{i}.parquet", image=DATA[:1], path=[f"p{i}"], value=[value], **extra)
    listing, rows = listed(tmp_path / "all", tmp_path / "list")  # checks that all files have one schema
    assert listing.metadata == ("value", "new")
    assert [(row["value"], row["new"]) for row in rows] == [("0", None), ("1", None), ("2", None), ("late", True)]


def test_more_metadata_than_anything_can_have_been_meant_to_have(tmp_path: Path) -> None:
    columns = {f"c{i}": [i] for i in range(257)}
    write_parquet(tmp_path / "a.parquet", image=DATA[:1], path=["a"], **columns)
    with refused("too-much-metadata", "source") as error:
        listed(tmp_path / "a.parquet", tmp_path / "list")
    assert "257" in str(error.value)


def test_paths_that_repeat_in_another_file_cost_all_but_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_list, "ROWS_PER_FILE", 2)
    for i in range(3):
        write_parquet(tmp_path / f"all/{i}.parquet", image=DATA, path=["everywhere", f"p{i}"])
    _, rows = listed(tmp_path / "all", tmp_path / "list")
    assert [(row["path"], row["reason"]) for row in rows] == [
        ("everywhere", None),
        ("p0", None),
        ("everywhere#2", "same-path"),
        ("p1", None),
        ("everywhere#4", "same-path"),
        ("p2", None),
    ]


def test_there_is_nothing_to_list(tmp_path: Path) -> None:
    into = tmp_path / "list"
    with refused("missing", "source") as error:
        listed(tmp_path / "missing", into)
    assert f"{tmp_path}/missing" in str(error.value)
    (tmp_path / "empty/classes").mkdir(parents=True)
    (tmp_path / "empty/.hidden").write_bytes(b"any")
    with refused("no-inputs", "source"):
        listed(tmp_path / "empty", into)
    (tmp_path / "photo.jpg").write_bytes(b"any")
    with refused("unknown-kind", "source"):
        listed(tmp_path / "photo.jpg", into)
