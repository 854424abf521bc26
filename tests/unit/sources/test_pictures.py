"""Pictures of a gallery's source: those and no other file, from folders, Parquet and S3."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.folder import Folder
from retrieval.images import MAX_BYTES
from retrieval.sources import lookup as pictures_module
from retrieval.sources.lookup import Pictures


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


def test_one_damaged_parquet_file_takes_no_other_pictures_away(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no, it is not")
    (tmp_path / "deep").mkdir()
    pq.write_table(pa.table({"path": ["b"], "image": images("b")}), tmp_path / "deep/b.parquet")
    assert Pictures(str(tmp_path)).read(["a", "b"]) == {"b": b"image of b"}


# Tars


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_tars_give_their_images_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    write_tar(folder / "x.tar", {"./a/1.jpg": b"one", "a/1.json": b"{}", "a/2.jpg": b"two", "../out.jpg": b"out"})
    write_tar(folder / "deep/y.tar", {"1.jpg": b"another"})
    write_tar(tmp_path / "secret.tar", {"1.jpg": b"secret"})
    (folder / "link.tar").symlink_to(tmp_path / "secret.tar")
    (folder / "plain.txt").write_text("not an input")
    pictures = Pictures(str(folder))
    expected = {"x.tar/a/1.jpg": b"one", "x.tar/a/2.jpg": b"two", "deep/y.tar/1.jpg": b"another"}
    assert pictures.read(expected) == expected
    for path in (
        *("x.tar", "x.tar/", "x.tar/a/1.json", "x.tar/../out.jpg", "x.tar/../../secret.tar/1.jpg", "plain.txt", ""),
        *("../secret.tar/1.jpg", f"{tmp_path}/secret.tar/1.jpg", "link.tar/1.jpg", "gone.tar/1.jpg", "x.tar/a/3.jpg"),
    ):
        assert pictures.bytes_of(path) is None
    assert Pictures(str(folder), links_out=True).bytes_of("link.tar/1.jpg") == b"secret"
    single = Pictures(str(folder / "x.tar"))
    assert single.bytes_of("x.tar/a/2.jpg") == b"two"
    assert single.bytes_of("deep/y.tar/1.jpg") is None


def test_a_tar_is_listed_once_and_again_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "tars/x.tar", {"1.jpg": b"one", "2.jpg": b"two"})
    listed: list[str] = []
    real = pictures_module.tar_inputs
    monkeypatch.setattr(
        pictures_module, "tar_inputs", lambda root, file: (listed.append(file.name), real(root, file))[1]
    )
    pictures = Pictures(str(tmp_path / "tars"))
    assert not listed
    assert pictures.bytes_of("x.tar/2.jpg") == b"two"
    assert pictures.bytes_of("x.tar/1.jpg") == b"one"
    assert listed == ["x.tar"]
    write_tar(tmp_path / "tars/x.tar", {"2.jpg": b"changed"})
    os.utime(tmp_path / "tars/x.tar", ns=(1, 1))
    assert pictures.read(["x.tar/1.jpg", "x.tar/2.jpg"]) == {"x.tar/2.jpg": b"changed"}
    assert listed == ["x.tar"] * 2


# Lists


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_only_what_stands_in_a_list_is_read(tmp_path: Path, kind: str) -> None:
    for name in ("lists/a.jpg", "lists/unlisted.jpg", "lists/ü b.jpg", "elsewhere/c.jpg", "secret.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "lists/link.jpg").symlink_to(tmp_path / "secret.jpg")
    uri = f"file://{tmp_path}/elsewhere/c.jpg"
    names = [
        "a.jpg",
        "ü b.jpg",
        f"{tmp_path}/elsewhere/c.jpg",
        uri,
        "gone.jpg",
        "../secret.jpg",
        "link.jpg",
        "http://x/y",
    ]
    source = tmp_path / "lists" / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"uri": names, "note": names}), source, row_group_size=3)
    else:
        source.write_text("\n".join([*(["path"] if kind == "csv" else []), *names]), encoding="utf-8")
    pictures = Pictures(str(source))
    assert pictures.read(names) == {
        "a.jpg": b"lists/a.jpg",
        "ü b.jpg": "lists/ü b.jpg".encode(),
        names[2]: b"elsewhere/c.jpg",
        uri: b"elsewhere/c.jpg",
    }
    for path in ("unlisted.jpg", "./a.jpg", f"file://{tmp_path}/secret.jpg", f"{tmp_path}/secret.jpg", "", source.name):
        assert pictures.bytes_of(path) is None
    assert Pictures(str(source), links_out=True).bytes_of("link.jpg") == b"secret.jpg"


# S3


def test_tars_and_lists_on_s3(bucket: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("1.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"one"))
    tars, lists = Folder(f"s3://bucket/tars?{bucket}"), Folder(f"s3://bucket/lists?{bucket}")
    tars.write_bytes("x.tar", buffer.getvalue())
    assert Pictures(tars.uri).read(["x.tar/1.jpg", "y.tar/1.jpg"]) == {"x.tar/1.jpg": b"one"}
    lists.write_bytes("x.txt", b"s3://bucket/lists/a.jpg\nb.jpg\n")
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        lists.write_bytes(name, name.encode())
    pictures = Pictures((lists / "x.txt").uri)
    assert pictures.read(["s3://bucket/lists/a.jpg", "b.jpg"]) == {
        "s3://bucket/lists/a.jpg": b"a.jpg",
        "b.jpg": b"b.jpg",
    }
    assert pictures.read(["s3://bucket/lists/c.jpg", "c.jpg", "a.jpg"]) == {}


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
