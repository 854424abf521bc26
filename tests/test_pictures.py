"""Pictures of a gallery's source: those and no other file, from folders, Parquet and S3."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.folder import Folder
from retrieval.images import MAX_BYTES
from retrieval.pictures import Pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A source, beside a secret that it leads to in every way there is."""
    folder = tmp_path / "photos"
    (folder / "two words").mkdir(parents=True)
    for name in ("top.jpg", "two words/ünï 😀.jpg", "two words/new\nline.jpg", "%2e%2e", "back\\slash.jpg", "....jpg"):
        (folder / name).write_bytes(name.encode())
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "photos-private").mkdir()
    (tmp_path / "photos-private/secret.txt").write_text("secret")
    (folder / ".hidden").write_text("secret")
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("secret")
    (folder / "out.jpg").symlink_to(tmp_path / "secret.txt")
    (folder / "out").symlink_to(tmp_path)
    (folder / "inside.jpg").symlink_to("top.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "nowhere.jpg").symlink_to("nothing")
    os.mkfifo(folder / "pipe.jpg")
    return folder


def test_a_folder_gives_its_files(folder: Path) -> None:
    pictures = Pictures(str(folder))
    for name in ("top.jpg", "two words/ünï 😀.jpg", "two words/new\nline.jpg", "%2e%2e", "back\\slash.jpg"):
        assert pictures.bytes_of(name) == name.encode()
    assert pictures.bytes_of("inside.jpg") == b"top.jpg"
    assert pictures.read(["top.jpg", "gone.jpg", "top.jpg"]) == {"top.jpg": b"top.jpg"}
    assert pictures.read([]) == {}


@pytest.mark.parametrize(
    "path",
    [
        *("../secret.txt", "..", ".", "", "/", "./top.jpg", "two words/../top.jpg", "two words/../../secret.txt"),
        *("{tmp}/secret.txt", "/etc/passwd", "//etc/passwd", "file:///etc/passwd", "../photos-private/secret.txt"),
        *("%2e%2e/secret.txt", "..%2fsecret.txt", "%2e%2e%2fsecret.txt", "..\\secret.txt", "\u2024\u2024/secret.txt"),
        *("top.jpg\0", "\0", "top.jpg/", "two words", "two words//ünï 😀.jpg", "top.jpg/../../secret.txt", "....jpg"),
        *(".hidden", ".git/config", "out.jpg", "out/secret.txt", "out/photos/top.jpg/../../secret.txt"),
        *("loop.jpg", "nowhere.jpg", "pipe.jpg", "gone.jpg", "x" * 5000, "x/" * 3000 + "x", "\ud83d.jpg"),
    ],
)
def test_no_path_leads_out_of_a_folder(folder: Path, tmp_path: Path, path: str) -> None:
    assert Pictures(str(folder)).bytes_of(path.replace("{tmp}", str(tmp_path))) is None


def test_links_out_are_followed_for_those_who_may_read_them_anyway(folder: Path) -> None:
    pictures = Pictures(str(folder), links_out=True)
    assert pictures.bytes_of("out.jpg") == b"secret"
    assert pictures.bytes_of("../secret.txt") is None
    assert pictures.bytes_of("loop.jpg") is None


def test_a_source_that_is_a_link_itself_is_one(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(folder)
    pictures = Pictures(str(tmp_path / "linked"))
    assert pictures.bytes_of("top.jpg") == b"top.jpg"
    assert pictures.bytes_of("out.jpg") is None


def test_a_file_larger_than_any_gallery_takes_is_not_read(folder: Path) -> None:
    with (folder / "large.jpg").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert Pictures(str(folder)).bytes_of("large.jpg") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_can_not_be_read_is_an_error(folder: Path) -> None:
    (folder / "top.jpg").chmod(0)
    with pytest.raises(OSError, match=r"top\.jpg"):
        Pictures(str(folder)).bytes_of("top.jpg")


def test_a_source_that_is_gone_has_no_pictures(tmp_path: Path) -> None:
    assert Pictures(str(tmp_path / "gone")).bytes_of("a.jpg") is None


# Parquet


def images(*names: str) -> list[bytes]:
    return [f"image of {name}".encode() for name in names]


def test_parquet_gives_the_rows_with_these_paths(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(1000)]
    table = pa.table({"path": names, "image": images(*names)})
    pq.write_table(table, tmp_path / "all.parquet", row_group_size=150)
    pictures = Pictures(str(tmp_path / "all.parquet"))
    assert pictures.bytes_of("0.jpg") == b"image of 0.jpg"
    assert pictures.bytes_of("999.jpg") == b"image of 999.jpg"
    assert pictures.read(names[::7]) == dict(zip(names[::7], images(*names[::7]), strict=True))
    for path in ("1000.jpg", "../all.parquet", "", "all.parquet", "/etc/passwd", "\ud83d"):
        assert pictures.bytes_of(path) is None


def test_only_the_row_group_of_a_path_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{i}.jpg" for i in range(40)]
    for number in range(2):
        part = names[20 * number :][:20]
        pq.write_table(
            pa.table({"path": part, "image": images(*part)}), tmp_path / f"{number}.parquet", row_group_size=5
        )
    read: list[Any] = []
    real = pq.ParquetFile.iter_batches

    def watched(self: Any, size: int, *, row_groups: list[int], columns: list[str]) -> Any:
        read.append(row_groups)
        return real(self, size, row_groups=row_groups, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    pictures = Pictures(str(tmp_path))
    assert not read
    assert pictures.bytes_of("33.jpg") == b"image of 33.jpg"
    assert read == [[2]]
    assert len(pictures.read(["0.jpg", "4.jpg", "39.jpg", "gone.jpg"])) == 3
    assert read[1:] == [[0], [3]]
    assert pictures.bytes_of("gone.jpg") is None
    assert len(read) == 3


def test_parquet_of_structs_nulls_and_other_files(tmp_path: Path) -> None:
    structs = [{"bytes": b"one", "path": None}, None, {"bytes": None, "path": "x"}, {"bytes": b"no name", "path": None}]
    table = pa.table({"image": structs, "path": ["a", "b", "c", None], "label": ["x"] * 4})
    pq.write_table(table, tmp_path / "structs.parquet")
    pq.write_table(pa.table({"numbers": [1, 2]}), tmp_path / "other.parquet")
    pq.write_table(
        pa.table({"image": pa.array([], pa.binary()), "path": pa.array([], pa.string())}), tmp_path / "e.parquet"
    )
    (tmp_path / "a.txt").write_bytes(b"beside the Parquet files")
    found = Pictures(str(tmp_path)).read(["a", "b", "c", "d", "a.txt", "structs.parquet"])
    assert found == {"a": b"one"}


def test_damaged_parquet_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no, it is not")
    with pytest.raises(OSError, match=r"a\.parquet can not be read as Parquet"):
        Pictures(str(tmp_path)).bytes_of("a")


def test_several_threads_read_at_once(tmp_path: Path, folder: Path) -> None:
    names = [f"{i}.jpg" for i in range(200)]
    pq.write_table(pa.table({"path": names, "image": images(*names)}), tmp_path / "a.parquet", row_group_size=20)
    pictures, found = Pictures(str(tmp_path / "a.parquet")), {}

    def read(name: str) -> None:
        found[name] = pictures.bytes_of(name)

    threads = [threading.Thread(target=read, args=(name,)) for name in names[::10]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict(zip(names[::10], images(*names[::10]), strict=True))


# S3


def test_pictures_on_s3(bucket: str) -> None:
    source = Folder(f"s3://bucket/photos?{bucket}")
    for name in ("top.jpg", "two words/ünï 😀.jpg", "%2e%2e"):
        source.write_bytes(name, name.encode())
    Folder(f"s3://bucket?{bucket}").write_bytes("secret.txt", b"secret")
    pictures = Pictures(source.uri)
    for name in ("top.jpg", "two words/ünï 😀.jpg", "%2e%2e"):
        assert pictures.bytes_of(name) == name.encode()
    for path in (
        "gone.jpg",
        "../secret.txt",
        "/bucket/secret.txt",
        "two words",
        "two words/../../secret.txt",
        "",
        "a\0",
    ):
        assert pictures.bytes_of(path) is None


def test_parquet_on_s3(bucket: str) -> None:
    source = Folder(f"s3://bucket/tables?{bucket}")
    source.write_table("a.parquet", pa.table({"path": ["a", "b"], "image": images("a", "b")}))
    source.write_table("b.parquet", pa.table({"path": ["c"], "image": images("c")}))
    for uri, there in ((source.uri, "abc"), ((source / "b.parquet").uri, "c")):
        assert Pictures(uri).read(["a", "b", "c", "d"]) == dict(zip(there, images(*there), strict=True))
