"""Tars: samples by the conventions of WebDataset; a bad member costs its row; few requests; members read again."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from errors import refused
from source_files import GOOD, Outcome, listed, listed_table, outcomes, read, tar_bytes, write_tar

from retrieval.folder import Folder
from retrieval.sources import tar
from retrieval.sources.frozen_list import freeze
from retrieval.sources.lookup import ImageLookup
from retrieval.sources.reader import InputReader

# Listing


def test_samples_labels_captions_and_metadata(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "all/0.tar",
        {
            "./a/1.jpg": b"first",
            "./a/1.cls": b" cat\n",
            "./a/1.json": json.dumps({"score": 1, "tags": ["x"], "width": 9, "only": "é"}).encode(),
            "a/2.left.png": b"left",
            "a/2.right.png": b"right",
            "a/2.txt": b"two views\n",
            "._a.jpg": b"hidden",
        },
    )
    write_tar(
        tmp_path / "all/deep/1.tar",
        {"3.jpeg": b"third", "3.json": b'{"label": "dog", "score": 2.5, "caption": "a dog"}', "3.npy": b"other"},
    )
    (tmp_path / "all/README").write_text("about")
    listing, rows = listed(tmp_path / "all", tmp_path / "list")
    assert [(row["path"], row["label"]) for row in rows] == [
        ("0.tar/a/1.jpg", "cat"),
        ("0.tar/a/2.left.png", None),
        ("0.tar/a/2.right.png", None),
        ("deep/1.tar/3.jpeg", "dog"),
    ]
    assert set(listing.metadata) == {"score", "tags", "only", "caption"}
    assert [row["score"] for row in rows] == ["1", None, None, "2.5"]
    assert [row["tags"] for row in rows] == ['["x"]', None, None, None]
    assert [row["caption"] for row in rows] == [None, "two views", "two views", "a dog"]
    assert list(read(tmp_path / "all", rows).values()) == [b"first", b"left", b"right", b"third"]
    single = tmp_path / "all/deep/1.tar"
    _, rows = listed(single, tmp_path / "list")
    assert read(single, rows) == {"1.tar/3.jpeg": b"third"}


# Bad members


def link(name: str, to: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, to
    return info


GOOD_TAR = tar_bytes([("a.jpg", GOOD), ("b.jpg", GOOD), ("c.jpg", GOOD)])
END_OF_B = 2 * (512 + -(-len(GOOD) // 512) * 512)


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def bomb(claimed: int) -> bytes:
    """A tar whose first extended header declares ``claimed`` bytes."""
    header = tarfile.TarInfo("bomb")
    header.type, header.size = tarfile.XHDTYPE, claimed
    return header.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


TARS: dict[str, tuple[bytes, dict[str, Outcome]]] = {
    "cut in a member": (GOOD_TAR[: END_OF_B - 600], {"/a.jpg": (40, 20), "/b.jpg": "truncated", "": "broken-file"}),
    "cut in a header": (GOOD_TAR[: END_OF_B + 100], {"/a.jpg": (40, 20), "/b.jpg": (40, 20), "": "broken-file"}),
    "cut between members": (GOOD_TAR[:END_OF_B], {"/a.jpg": (40, 20), "/b.jpg": (40, 20), "": "broken-file"}),
    "a flipped bit in a header": (
        damaged(GOOD_TAR, END_OF_B + 10),
        {"/a.jpg": (40, 20), "/b.jpg": (40, 20), "": "broken-file"},
    ),
    "empty": (b"", {"": "broken-file"}),
    "no tar": (b"text" * 1000, {"": "broken-file"}),
    "a header bomb": (bomb(2**33), {"": "broken-file"}),
    "headers in headers in headers": (bomb(0)[:512] * 5000, {"": "broken-file"}),
    "gzip inside": (b"\x1f\x8b\x08" + bytes(100), {"": "broken-file"}),
    "names": (
        tar_bytes(
            [("../x.jpg", GOOD), ("/etc/y.jpg", GOOD), ("a/../../z.jpg", GOOD), ("./ok.jpg", GOOD), (".no.jpg", GOOD)]
        ),
        {
            "/../x.jpg": "bad-name",
            "//etc/y.jpg": "bad-name",
            "/a/../../z.jpg": "bad-name",
            "/ok.jpg": (40, 20),
        },
    ),
    "samples": (
        tar_bytes(
            [
                *(("no-image.json", b"{}"), ("no-image.cls", b"x"), ("a.jpg", GOOD), ("a.json", b"not json")),
                *(("b.jpg", GOOD), ("b.json", b"[1]"), ("c.jpg", b""), ("d.jpg", GOOD), ("d.json", b"[" * 100_000)),
                *(("e.jpg", GOOD), ("e.cls", b"\xff\xfe"), ("f.tar", GOOD_TAR), ("g.json", bytes(2**20 + 1))),
                *(("h.jpg", GOOD), ("h.json", json.dumps({str(i): i for i in range(300)}).encode())),
            ]
        ),
        {
            "/no-image": "no-image",
            "/a.jpg": "bad-metadata",
            "/b.jpg": "bad-metadata",
            "/c.jpg": "empty",
            "/d.jpg": "bad-metadata",
            "/e.jpg": (40, 20),
            "/f": "no-image",
            "/g.json": "bad-metadata",
            "/h.jpg": "bad-metadata",
        },
    ),
    "links": (
        tar_bytes([(link("a.jpg", "/etc/passwd"), b""), ("b.jpg", GOOD)]),
        {"/a.jpg": "no-image", "/b.jpg": (40, 20)},
    ),
    "twice the same": (tar_bytes([("a.jpg", GOOD), ("a.jpg", GOOD)]), {"/a.jpg": (40, 20), "/a.jpg#1": "same-path"}),
}


@pytest.mark.parametrize("name", TARS)
def test_one_bad_member_costs_one_row(tmp_path: Path, name: str) -> None:
    data, expected = TARS[name]
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/x.tar").write_bytes(data)
    write_tar(tmp_path / "tars/z.tar", {"good.jpg": GOOD})
    found = outcomes(tmp_path / "tars", tmp_path / "list")
    assert found == {f"x.tar{path}": value for path, value in expected.items()} | {"z.tar/good.jpg": (40, 20)}


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.zst"])
def test_compressed_tars_are_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b\x08")
    with refused("no-usable-input", "source") as error:
        freeze(str(tmp_path / name), Folder(tmp_path / "list"))
    assert "unpack" in str(error.value)


# Reading


MEMBERS = {f"{i}.jpg": bytes([i]) * (100 + i) for i in range(20)}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of inputs of each request for ranges of a tar."""
    sizes: list[int] = []
    real = tar._ranges

    def ranges(file: Any, rows: Any) -> Any:
        sizes.append(len(rows))
        return real(file, rows)

    monkeypatch.setattr(tar, "_ranges", ranges)
    return sizes


def test_adjacent_members_are_one_request(tmp_path: Path, requests: list[int]) -> None:
    file = write_tar(tmp_path / "x.tar", MEMBERS)
    rows = listed_table(file, tmp_path / "list")
    assert InputReader(str(file)).read(rows) == list(MEMBERS.values())
    assert requests == [20]


def test_requests_are_bounded_and_so_is_what_lies_between(
    tmp_path: Path, requests: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar, "_REQUEST_BYTES", 6000)
    members = {"a.jpg": b"a", "b.bin": bytes(100_000), "c.jpg": b"c", "d.jpg": bytes(4000), "e.jpg": bytes(4000)}
    file = write_tar(tmp_path / "x.tar", members)
    rows = listed_table(file, tmp_path / "list")
    rows = rows.filter(pa.compute.is_null(rows["reason"]))
    assert InputReader(str(file)).read(rows) == [members[f"{name}.jpg"] for name in "acde"]
    assert requests == [1, 2, 1]


def test_a_tar_that_was_replaced_is_not_read_at_old_places(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(GOOD_TAR)
    rows = listed_table(tmp_path / "x.tar", tmp_path / "list")
    write_tar(tmp_path / "x.tar", {"other.jpg": bytes(5000)})
    contents = InputReader(str(tmp_path / "x.tar")).read(rows)
    assert [type(content) for content in contents] == [OSError] * 3


# One image again


def test_tars_give_their_images_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    write_tar(folder / "x.tar", {"./a/1.jpg": b"one", "a/1.json": b"{}", "a/2.jpg": b"two", "../out.jpg": b"out"})
    write_tar(folder / "deep/y.tar", {"1.jpg": b"another"})
    write_tar(tmp_path / "secret.tar", {"1.jpg": b"secret"})
    (folder / "link.tar").symlink_to(tmp_path / "secret.tar")
    (folder / "plain.txt").write_text("not an input")
    images = ImageLookup(str(folder))
    expected = {"x.tar/a/1.jpg": b"one", "x.tar/a/2.jpg": b"two", "deep/y.tar/1.jpg": b"another"}
    assert images.read(expected) == expected
    for path in (
        *("x.tar", "x.tar/", "x.tar/a/1.json", "x.tar/../out.jpg", "x.tar/../../secret.tar/1.jpg", "plain.txt", ""),
        *("../secret.tar/1.jpg", f"{tmp_path}/secret.tar/1.jpg", "link.tar/1.jpg", "gone.tar/1.jpg", "x.tar/a/3.jpg"),
    ):
        assert images.bytes_of(path) is None
    assert ImageLookup(str(folder), links_out=True).bytes_of("link.tar/1.jpg") == b"secret"
    single = ImageLookup(str(folder / "x.tar"))
    assert single.bytes_of("x.tar/a/2.jpg") == b"two"
    assert single.bytes_of("deep/y.tar/1.jpg") is None


def test_a_tar_is_listed_once_and_again_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "tars/x.tar", {"1.jpg": b"one", "2.jpg": b"two"})
    write_tar(tmp_path / "tars/y.tar", {"1.jpg": b"other"})
    walked: list[str] = []
    real = tar._inputs
    monkeypatch.setattr(tar, "_inputs", lambda root, file: (walked.append(file.name), real(root, file))[1])
    monkeypatch.setattr(tar, "_TARS_IN_CACHE", 1)
    images = ImageLookup(str(tmp_path / "tars"))
    assert not walked
    assert images.bytes_of("x.tar/2.jpg") == b"two"
    assert images.bytes_of("x.tar/1.jpg") == b"one"
    assert walked == ["x.tar"]
    write_tar(tmp_path / "tars/x.tar", {"2.jpg": b"changed"})
    os.utime(tmp_path / "tars/x.tar", ns=(1, 1))
    assert images.read(["x.tar/1.jpg", "x.tar/2.jpg"]) == {"x.tar/2.jpg": b"changed"}
    assert walked == ["x.tar"] * 2
    assert images.bytes_of("y.tar/1.jpg") == b"other"
    assert images.bytes_of("x.tar/2.jpg") == b"changed"
    assert walked == ["x.tar", "x.tar", "y.tar", "x.tar"]  # one is in the cache at a time
