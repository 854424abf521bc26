"""A folder on a filesystem: names, whole writes, listings, and the errors of a place that cannot be reached."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from errors import refused
from far_folder import FarFolder
from pyarrow import fs

from retrieval.artifacts.columns import fixed_size_list, matrix
from retrieval.artifacts.manifests import PartRecord
from retrieval.folder import Folder


def test_a_file_is_read_as_it_was_written_and_its_folders_are_made(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "not/there/yet")
    assert not folder.exists()
    folder.write_bytes("a/b.bin", b"\x00\xff")
    assert folder.exists()
    assert folder.exists("a/b.bin")
    assert folder.read_bytes("a/b.bin") == (tmp_path / "not/there/yet/a/b.bin").read_bytes() == b"\x00\xff"


def test_json_and_tables_come_back(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write_json("x.json", {"λ": [1, None, "✓"]})
    assert folder.read_json("x.json") == {"λ": [1, None, "✓"]}
    assert "λ" in (tmp_path / "x.json").read_text(encoding="utf-8")
    table = pa.table({"a": [1, 2], "b": ["x", None]})
    folder.write_table("t/x.parquet", table)
    assert folder.read_table("t/x.parquet").equals(table)
    assert folder.read_table("t/x.parquet", ["b"]).column_names == ["b"]
    folder.write_bytes("t/x.parquet", folder.read_bytes("t/x.parquet")[:-20])
    for read in (folder.read_table, lambda name: list(folder.tables(name))):
        with refused("damaged", "t/x.parquet"):
            read("t/x.parquet")


def test_damage_within_parquet_is_named_and_a_store_that_fails_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path)
    folder.write_table("x.parquet", pa.table({"a": [f"{i:08}" for i in range(1000)]}))
    sound = folder.read_bytes("x.parquet")
    folder.write_bytes("x.parquet", sound[:100] + bytes(1000) + sound[1100:])
    for read in (folder.read_table, lambda name: list(folder.tables(name))):
        with refused("damaged", "x.parquet") as error:
            read("x.parquet")
        assert f"{tmp_path}/x.parquet is damaged" in str(error.value)
    folder.write_bytes("x.parquet", sound)

    def away(*_: Any, **__: Any) -> None:
        raise OSError("the store is away")

    monkeypatch.setattr(pq.ParquetFile, "read", away)
    with pytest.raises(OSError, match="the store is away"):
        folder.read_table("x.parquet")


def test_rows_are_counted_by_footers(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for rows in (0, 3, 5):
        folder.write_table(f"{rows}.parquet", pa.table({"a": range(rows)}))
    assert folder.count_rows(["5.parquet", "0.parquet", "3.parquet"]) == [5, 0, 3]
    folder.write_bytes("3.parquet", b"PAR1")
    with refused("damaged", "3.parquet"):
        folder.count_rows(["3.parquet"])


@pytest.mark.parametrize("content", [b"", b'{"part": "a", "rows', b'{"part": 1}', b"\xff"])
def test_a_record_that_is_damaged_is_named_with_what_to_do(content: bytes, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write_json("record.json", {"name": "a", "rows": 3})
    assert folder.read_record("record.json", PartRecord, "delete it") == PartRecord(name="a", rows=3)
    folder.write_bytes("record.json", content)
    with refused("damaged", f"{tmp_path}/record.json") as error:
        folder.read_record("record.json", PartRecord, "delete it")
    assert str(error.value).endswith("; delete it")


@pytest.mark.parametrize("rows", [[0], [255], [256], [999], [0, 255, 256, 257, 700], [*range(1000)], [3, 999]])
def test_some_rows_of_a_table_with_vectors_are_read_without_the_others(tmp_path: Path, rows: list[int]) -> None:
    far, vectors = FarFolder(tmp_path), np.random.default_rng(0).random((1000, 512)).astype(np.float16)
    numbers = pa.array(range(1000))
    far.write_table("x.parquet", pa.table({"number": numbers, "vector": fixed_size_list(vectors)}))
    taken = far.take("x.parquet", rows, ["vector", "number"])
    assert taken["number"].to_pylist() == rows
    np.testing.assert_array_equal(matrix(taken["vector"]), vectors[rows])
    groups = len({row // 256 for row in rows})
    assert far.traffic.bytes < (groups * 256 / 1000 + 0.1) * vectors.nbytes + 70_000
    for some in (far.read_table("x.parquet"), *far.tables("x.parquet", rows=1000)):
        assert some["number"].to_pylist() == numbers.to_pylist()


@pytest.mark.parametrize("there", [0, 300])
def test_a_row_beyond_those_that_there_are_is_damage(tmp_path: Path, there: int) -> None:
    folder = Folder(tmp_path)
    folder.write_table("x.parquet", pa.table({"number": np.arange(there)}))
    with refused("damaged", "x.parquet") as error:
        folder.take("x.parquet", [0, 300], ["number"])
    assert f"x.parquet is damaged: it has {there} rows" in str(error.value)


def test_what_is_overwritten_is_replaced(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write_bytes("x", b"a longer first content")
    folder.write_bytes("x", b"second")
    assert folder.read_bytes("x") == b"second"
    assert folder.files() == ["x"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    contents = [bytes([i]) * 2_000_000 for i in range(2)]
    folder.write_bytes("x", contents[0])
    over = threading.Event()

    def write() -> None:
        for i in range(30):
            folder.write_bytes("x", contents[i % 2])
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not over.is_set():
        seen.add(folder.read_bytes("x"))
    writer.join()
    assert seen <= set(contents)
    assert folder.files() == ["x"]


class Full:
    """A filesystem that is none of this machine's, as a store would be, and refuses to write."""

    def __init__(self, filesystem: fs.FileSystem) -> None:
        self._filesystem = filesystem

    def __getattr__(self, name: str) -> Any:
        return getattr(self._filesystem, name)

    @contextmanager
    def open_output_stream(self, path: str) -> Iterator[Any]:
        yield pa.BufferOutputStream()
        raise OSError(f"{path}: no space left")


def test_a_write_that_a_store_refuses_leaves_what_was_there(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write_json("manifest.json", {"rows": 1})
    folder.filesystem = Full(fs.SubTreeFileSystem("/", fs.LocalFileSystem()))  # type: ignore[assignment]
    with pytest.raises(OSError, match="no space left"):
        folder.write_json("manifest.json", {"rows": 2})
    assert folder.read_json("manifest.json") == {"rows": 1}


def test_listings_are_sorted_and_not_recursive(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for name in ("b.parquet", "a.parquet", "c.txt", "sub/d.parquet", "sub/deeper/e.parquet", "other/f"):
        folder.write_bytes(name, b"")
    assert folder.files() == ["a.parquet", "b.parquet", "c.txt"]
    assert folder.files(suffix=".parquet") == ["a.parquet", "b.parquet"]
    assert folder.files("sub") == ["sub/d.parquet"]
    assert folder.folders() == ["other", "sub"]
    assert folder.folders("sub") == ["sub/deeper"]
    assert folder.files("nowhere") == folder.folders("nowhere") == []


def test_a_folder_that_is_made_as_it_is_listed_is_there_or_not(tmp_path: Path) -> None:
    wanted: queue.SimpleQueue[Path | None] = queue.SimpleQueue()

    def make() -> None:
        while place := wanted.get():
            place.mkdir()

    maker = threading.Thread(target=make)
    maker.start()
    try:
        for i in range(200):
            place = tmp_path / str(i)
            wanted.put(place)
            while not place.exists():
                assert Folder(place).files() == []
    finally:
        wanted.put(None)
        maker.join()


def test_a_child_is_a_folder_of_its_own(tmp_path: Path) -> None:
    child = Folder(tmp_path) / "a" / "b"
    assert child.uri == f"{tmp_path.as_posix()}/a/b"
    assert child.name == "b"
    assert child.local_path == tmp_path / "a" / "b"
    child.write_bytes("x", b"1")
    assert Folder(child.uri).read_bytes("x") == b"1"


def test_deleting_takes_all_of_a_sub_folder_and_forgives_its_absence(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write_bytes("keep/x", b"")
    folder.write_bytes("drop/deep/x", b"")
    folder.delete("drop")
    folder.delete("drop")
    assert folder.folders() == ["keep"]


@pytest.mark.parametrize("name", ["with space", "100%25", "a#b", "question?", "ünïcode", "a:b", "plus+", "[x]", "~"])
def test_local_paths_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    folder = Folder(tmp_path / name)
    folder.write_bytes("x", b"1")
    assert (tmp_path / name / "x").read_bytes() == b"1"
    assert Folder(folder.uri).read_bytes("x") == b"1"
    assert (Folder(tmp_path) / name).read_bytes("x") == b"1"


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Folder("some/where/").uri == f"{tmp_path.as_posix()}/some/where"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Folder("~/x").local_path == tmp_path / "x"


def test_a_file_uri_is_a_local_folder(tmp_path: Path) -> None:
    folder = Folder(f"file://{tmp_path.as_posix()}/")
    assert folder.local_path == tmp_path
    assert folder.uri == f"file://{tmp_path.as_posix()}"


def test_what_follows_a_question_mark_stays_at_the_end_of_a_uri() -> None:
    # No request is made: a custom endpoint spares pyarrow the look-up of the bucket's region.
    uri = "s3://bucket/gallery/?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
    child = Folder(uri) / "parts"
    assert child.path == "bucket/gallery/parts"
    assert child.uri == "s3://bucket/gallery/parts?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
    assert Folder(child.uri).path == child.path
    assert child.local_path is None
    assert not isinstance(child.filesystem, fs.LocalFileSystem)


@pytest.mark.parametrize("uri", ["ftp://host/x", "s3://", "s3:///x", "gs3://b/x", "http://h/x"])
def test_an_unknown_scheme_is_refused_by_name(uri: str) -> None:
    with refused("bad-uri", "uri") as error:
        Folder(uri)
    assert uri in str(error.value)


@pytest.mark.parametrize("uri", ["s3://key:word@bucket/x", "s3://bucket/x?access_key=key&secret_key=word"])
def test_a_password_in_a_uri_is_refused_and_not_repeated(uri: str) -> None:
    with refused("secret-in-uri", "uri") as error:
        Folder(uri)
    assert "word@" not in str(error.value)
    assert "key=" not in str(error.value)
    assert "AWS_SECRET_ACCESS_KEY" in str(error.value)
