"""Lists of URIs: CSV, text and Parquet alike; a bad line costs its row; only what stands in a list is read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from errors import refused
from source_files import GOOD, listed, outcomes, read, write_parquet

from retrieval.sources.lookup import ImageLookup

# Listing


def test_paths_and_uris(tmp_path: Path) -> None:
    for name in ("photos/a b.jpg", "photos/ü.jpg", "elsewhere/c.jpg", "lists/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    absolute, uri = f"{tmp_path}/elsewhere/c.jpg", f"file://{tmp_path}/photos/a%20b.jpg"
    expected = {
        "d.jpg": b"lists/d.jpg",
        absolute: b"elsewhere/c.jpg",
        uri: b"photos/a b.jpg",
        "gone.jpg": "FileNotFoundError",
    }
    text = tmp_path / "lists/a.txt"
    text.write_text("\ufeff" + "\r\n".join(["d.jpg", "", absolute, uri, "gone.jpg"]), encoding="utf-8")
    _, rows = listed(text, tmp_path / "list")
    assert read(text, rows) == expected
    status = (tmp_path / "lists/d.jpg").stat()
    assert (rows[0]["size"], rows[0]["mtime_ns"]) == (status.st_size, status.st_mtime_ns)

    table = tmp_path / "lists/a.csv"
    table.write_text("label,uri,note\n" + "".join(f'{i},{name},"1, {i}"\n' for i, name in enumerate(expected)))
    listing, rows = listed(table, tmp_path / "list")
    assert read(table, rows) == expected
    assert listing.metadata == ("note",)
    assert [(row["label"], row["note"]) for row in rows] == [(str(i), f"1, {i}") for i in range(4)]

    parquet = write_parquet(tmp_path / "lists/a.parquet", path=list(expected), stars=[1, 2, 3, 4])
    listing, rows = listed(parquet, tmp_path / "list")
    assert read(parquet, rows) == expected
    assert [row["stars"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_of_uri_and_path_the_uri_counts(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    file = tmp_path / f"x.{kind}"
    if kind == "csv":
        file.write_text("path,uri\nb.jpg,a.jpg\n")
    else:
        write_parquet(file, path=["b.jpg"], uri=["a.jpg"])
    _, rows = listed(file, tmp_path / "list")
    assert read(file, rows) == {"a.jpg": b"a"}


def test_what_lists_may_not_name_costs_its_line(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").write_bytes(b"b")
    file = tmp_path / "lists/x.csv"
    file.write_text(
        "uri,n\na.jpg,1\nhttps://host/x.jpg,2\n../b.jpg,3\n,4\ntoo,many,fields\ns3://key:word@bucket/x.jpg,5\na.jpg,6\n"
        "file:///a%00b.jpg,7\nfile://host/c.jpg,8\n"
    )
    _, rows = listed(file, tmp_path / "list")
    reasons = {row["path"]: row["reason"] for row in rows}
    assert reasons == {
        "a.jpg": None,
        "https://host/x.jpg": "not-fetched",
        "../b.jpg": "bad-name",
        "x.csv#line 5": "no-path",
        "x.csv#line 6": "bad-row",
        "x.csv#line 7": "bad-name",
        "x.csv#line 9": "bad-name",
        "x.csv#line 10": "bad-name",
        "a.jpg#5": "same-path",
    }
    details = {row["path"]: row["detail"] for row in rows}
    assert "img2dataset" in details["https://host/x.jpg"]
    assert "key:word" not in json.dumps(rows)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("h.txt", "http://host/a.jpg\nhttp://host/b.jpg\n", "line 1 of h.txt: http:// is not read"),
        ("h.csv", "label,url\nx,y\n", "no column uri or path in its first line; it has label, url"),
        ("h.csv", "uri,uri\nx,y\n", "several columns uri"),
        ("h.csv", "", "no column uri or path"),
    ],
)
def test_a_list_of_which_nothing_can_be_used_is_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with refused("no-usable-input", "source") as error:
        listed(tmp_path / name, tmp_path / "list")
    assert said in str(error.value)


# Bad lines


def test_bad_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(GOOD)
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    lines = [b"a.jpg", b"caf\xe9.jpg", b"nul\0.jpg", b"folder.jpg", b"pipe.jpg", b"gone.jpg", b"x" * 5000, b"/dev/zero"]
    (tmp_path / "x.txt").write_bytes(b"\n".join(lines))
    found = outcomes(tmp_path / "x.txt", tmp_path / "list")
    assert found.pop("x" * 5000) == "OSError"
    assert found == {
        "a.jpg": (40, 20),
        "caf\\xe9.jpg": "FileNotFoundError",
        "x.txt#line 3": "bad-name",
        "folder.jpg": "OSError",
        "pipe.jpg": "OSError",
        "gone.jpg": "FileNotFoundError",
        "/dev/zero": "OSError",
    }


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    lines = f"b.jpg,{'x' * 1000}\n" * 200  # more than a field of CSV may have
    (tmp_path / "x.csv").write_text('uri,note\na.jpg,"never closed\n' + lines)
    found = set(outcomes(tmp_path / "x.csv", tmp_path / "list").values())
    assert "bad-row" in found
    assert found <= {"bad-row", "FileNotFoundError", "same-path"}


# One image again


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
        write_parquet(source, uri=names, note=names, row_group_size=3)
    else:
        source.write_text("\n".join([*(["path"] if kind == "csv" else []), *names]), encoding="utf-8")
    images = ImageLookup(str(source))
    assert images.read(names) == {
        "a.jpg": b"lists/a.jpg",
        "ü b.jpg": "lists/ü b.jpg".encode(),
        names[2]: b"elsewhere/c.jpg",
        uri: b"elsewhere/c.jpg",
    }
    for path in ("unlisted.jpg", "./a.jpg", f"file://{tmp_path}/secret.jpg", f"{tmp_path}/secret.jpg", "", source.name):
        assert images.bytes_of(path) is None
    assert ImageLookup(str(source), links_out=True).bytes_of("link.jpg") == b"secret.jpg"
