"""Kinds of sources: which file is of which, that a folder is of one, and that a new one is a class and an entry."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from errors import refused
from pyarrow import fs
from source_files import listed, read, write_tar

from retrieval.folder import Folder
from retrieval.sources.files import File, suffix
from retrieval.sources.inputs import Row, inputs_table
from retrieval.sources.kinds import KINDS, Kind, kind_of
from retrieval.sources.lookup import ImageLookup
from retrieval.sources.rows import Content, check_unchanged


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("a.jpg", "images"), ("deep/a.TIFF", "images"), ("a.parquet", "parquet"), ("a.PARQUET", "parquet")),
        *(("a.tar", "tar"), ("a.b.tar", "tar"), ("a.tar.gz", "tar"), ("a.tgz", "tar"), ("a.csv", "list")),
        *(("a.txt", "list"), ("a.gz", None), ("a.zip", None), ("tar", None), ("README", None), ("a.jpg.exe", None)),
    ],
)
def test_the_end_of_a_name_says_the_kind(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize("names", [("a.jpg", "deep/b.parquet"), ("deep/a.PNG", "b.tar"), ("x/a.parquet", "y/b.tar")])
def test_kinds_are_not_mixed(tmp_path: Path, names: Sequence[str]) -> None:
    for name in names:
        (tmp_path / "mixed" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mixed" / name).write_bytes(b"any")
    with refused("mixed-kinds", "source") as error:
        listed(tmp_path / "mixed", tmp_path / "list")
    assert " and ".join(names) in str(error.value)


class Zip:
    """All that a new kind takes: the images of a zip, their bytes, and one of them again."""

    title = "zips (.zip)"
    in_folders = alone = True

    def has(self, name: str) -> bool:
        return suffix(name) == "zip"

    def inputs(self, root: Folder, files: Sequence[File]) -> Iterator[pa.Table]:
        for file in files:
            with root.open_input(file.name) as stream, zipfile.ZipFile(stream) as archive:
                members = archive.infolist()
            columns = {
                "offset": [member.header_offset for member in members],
                "length": [member.file_size for member in members],
            }
            yield inputs_table(file, [f"{file.name}/{member.filename}" for member in members], columns)

    def reader(self) -> Zip:
        return self

    def together(self, first: Row, last: Row, following: Row) -> bool:
        return True

    def read(self, filesystem: fs.FileSystem, path: str, rows: Sequence[Row]) -> list[Content]:
        check_unchanged(filesystem, path, rows[0])
        with filesystem.open_input_file(path) as stream, zipfile.ZipFile(stream) as archive:
            members = {member.header_offset: member for member in archive.infolist()}
            return [archive.read(members[row.offset or 0]) for row in rows]

    def lookup(self, root: Folder, name: str | None, *, links_out: bool) -> ZipLookup:
        return ZipLookup(root)


class ZipLookup:
    def __init__(self, root: Folder) -> None:
        self.root = root

    def read(self, paths: set[str]) -> dict[str, bytes]:
        found = {}
        for path in paths:
            name, _, member = path.partition(".zip/")
            with self.root.open_input(f"{name}.zip") as stream, zipfile.ZipFile(stream) as archive:
                found[path] = archive.read(member)
        return found


@pytest.fixture
def with_zip(monkeypatch: pytest.MonkeyPatch) -> None:
    kind: Kind = Zip()
    monkeypatch.setitem(KINDS, "zip", kind)


@pytest.mark.usefixtures("with_zip")
def test_a_new_kind_is_a_class_and_an_entry(tmp_path: Path) -> None:
    folder = tmp_path / "zips"
    (folder / "deep").mkdir(parents=True)
    expected: dict[str, bytes | str] = {}
    for name in ("0.zip", "deep/1.zip"):
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member in ("a.jpg", "b/c.jpg"):
                archive.writestr(member, f"{name} {member}" * 10)
                expected[f"{name}/{member}"] = (f"{name} {member}" * 10).encode()
    (folder / "README").write_text("beside them")
    for source, part in ((folder, expected), (folder / "0.zip", dict(list(expected.items())[:2]))):
        _, rows = listed(source, tmp_path / "list")
        assert read(source, rows) == part
        assert ImageLookup(str(source)).read(part) == part


@pytest.mark.usefixtures("with_zip")
def test_a_new_kind_is_named_and_checked_like_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"any")
    with refused("unknown-kind", "source") as error:
        listed(tmp_path / "a.bin", tmp_path / "list")
    assert "zips (.zip)" in str(error.value)
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed/a.zip").write_bytes(b"any")
    write_tar(tmp_path / "mixed/b.tar", {})
    with refused("mixed-kinds", "source") as error:
        listed(tmp_path / "mixed", tmp_path / "list")
    assert "b.tar and a.zip" in str(error.value)


def test_without_its_entry_it_is_none(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jpg", b"any")
    with refused("unknown-kind", "source"):
        listed(tmp_path / "a.zip", tmp_path / "list")
