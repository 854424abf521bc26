"""Reading rows of a list, of whatever kind: in any order, bounded, with retries, and a source that is away."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs
from source_files import GOOD, listed_table, write_parquet, write_tar

from retrieval.images import ImageRejected
from retrieval.sources import image_folder, retries, rows, tar
from retrieval.sources.inputs import INPUTS
from retrieval.sources.reader import InputReader
from retrieval.sources.retries import with_retries

MEMBERS = {f"{i}.jpg": bytes([i]) * (100 + i) for i in range(20)}


def test_rows_come_in_any_order_and_from_a_copy_of_the_reader(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "x.tar", MEMBERS)
    table = listed_table(file, tmp_path / "list")
    reader = pickle.loads(pickle.dumps(InputReader(str(file))))
    order = [7, 3, 3, 19, 0, 8, 9]
    assert reader.read(table.take(order)) == [list(MEMBERS.values())[i] for i in order]
    assert reader.read(table.slice(0, 0)) == []


def test_rows_of_a_list_that_an_earlier_version_wrote(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"whole")
    archive = write_tar(tmp_path / "b.tar", {"1.jpg": b"member"}).stat()
    parquet = write_parquet(tmp_path / "c.parquet", image=[b"0", b"row"], path=["x", "y"]).stat()
    of_tar = {"file": "b.tar", "size": archive.st_size, "mtime_ns": archive.st_mtime_ns}
    of_parquet = {"file": "c.parquet", "size": parquet.st_size, "mtime_ns": parquet.st_mtime_ns}
    table = pa.Table.from_pylist(
        [
            {"path": "a.jpg", "file": "a.jpg", "size": 5, "mtime_ns": 0},
            {"path": "uri", "file": f"file://{tmp_path}/a.jpg", "size": 5, "mtime_ns": 0},
            {"path": "absolute", "file": f"{tmp_path}/a.jpg", "size": 5, "mtime_ns": 0},
            {"path": "b.tar/1.jpg", "offset": 512, "length": 6} | of_tar,
            {"path": "y", "row_group": 0, "row": 1} | of_parquet,
            {"path": "whole tar", "size": 0, "mtime_ns": 0, "file": "b.tar"},
            {"path": "bad", "file": "bad", "size": 0, "mtime_ns": 0, "reason": "bad-name", "detail": "it is bad"},
        ],
        schema=INPUTS,
    )
    *contents, whole_tar, bad = InputReader(str(tmp_path)).read(table)
    assert contents == [b"whole", b"whole", b"whole", b"member", b"row"]
    assert whole_tar == (tmp_path / "b.tar").read_bytes()
    assert isinstance(bad, ImageRejected)
    assert (bad.reason, str(bad)) == ("bad-name", "it is bad")


def test_never_more_than_the_bound_is_read_of_one_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rows, image_folder):
        monkeypatch.setattr(module, "MAX_BYTES", 1000)
    monkeypatch.setattr(tar, "_REQUEST_BYTES", 1000)
    contents = {"a.jpg": bytes(1000), "b.jpg": bytes(1001), "c.jpg": b"c"}
    sources = [tmp_path / "photos", tmp_path / "x.tar", tmp_path / "x.parquet"]
    sources[0].mkdir()
    for name, data in contents.items():
        (sources[0] / name).write_bytes(data)
    write_tar(sources[1], contents)
    write_parquet(sources[2], image=list(contents.values()), path=list(contents))
    for source in sources:
        first, second, third = InputReader(str(source)).read(listed_table(source, tmp_path / "list"))
        assert (first, third) == (contents["a.jpg"], b"c")
        assert isinstance(second, ImageRejected)
        assert second.reason == "too-many-bytes"
        assert "1,001 bytes" in str(second)


def test_what_is_read_together_is_below_the_bound_of_one_input() -> None:
    assert tar._REQUEST_BYTES <= rows.MAX_BYTES


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_source_that_is_away_is_distinguished_from_its_files(tmp_path: Path, left: str) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    (source / "a.jpg").write_bytes(GOOD)
    reader = InputReader(str(source))
    reader.check_source()
    (source / "a.jpg").unlink()
    if left == "nothing":
        source.rmdir()
    for one in (reader, InputReader(str(source))):
        with pytest.raises(FileNotFoundError, match="photos is not there any more"):
            one.check_source()


def test_a_source_that_is_away_costs_only_the_rows_that_need_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(GOOD)
    table = pa.Table.from_pylist(
        [{"path": file, "file": file, "size": 0, "mtime_ns": 0} for file in ("b.jpg", f"{tmp_path}/a.jpg")],
        schema=INPUTS,
    )
    missing, there = InputReader(str(tmp_path / "away")).read(table)
    assert isinstance(missing, OSError)
    assert there == GOOD


def test_a_fault_of_ours_is_not_taken_for_a_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(GOOD)
    table = listed_table(tmp_path, tmp_path.parent / f"{tmp_path.name}-list")

    def broken(*_: object) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(image_folder, "check_regular", broken)
    with pytest.raises(ValueError, match="a fault of ours"):
        InputReader(str(tmp_path)).read(table)


def test_what_may_pass_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_PAUSE_S", 0)
    store = fs.SubTreeFileSystem("/", fs.LocalFileSystem())

    def attempts(filesystem: fs.FileSystem, error: Exception, fails: int) -> int:
        made = 0

        def read() -> int:
            nonlocal made
            made += 1
            if made <= fails:
                raise error
            return made

        try:
            return with_retries(filesystem, read)
        except OSError:
            return -made

    assert attempts(store, OSError("SLOW_DOWN"), 2) == 3
    assert attempts(store, OSError("SLOW_DOWN"), 9) == -3
    assert attempts(store, OSError("AWS Error ACCESS_DENIED"), 2) == -1
    assert attempts(store, FileNotFoundError("gone"), 2) == -1
    assert attempts(fs.LocalFileSystem(), OSError("disk"), 2) == -1
