"""Sources in an object store: every kind on a real S3 server of this machine, listed, read, looked up, and failing."""

from __future__ import annotations

import http.client
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest
from errors import refused
from source_files import listed_table, tar_bytes

from retrieval.folder import Folder
from retrieval.sources.frozen_list import freeze
from retrieval.sources.lookup import ImageLookup
from retrieval.sources.reader import InputReader

MEMBERS = {f"{i}.jpg": bytes([i]) * (100 + i) for i in range(20)}


def test_every_kind_of_source_on_s3(bucket: str, tmp_path: Path) -> None:
    names = ("top.jpg", "a b/é%20😀.jpg", "deep/er/c.jpg")
    photos, tars, lists = (Folder(f"s3://bucket/{name}?{bucket}") for name in ("photos", "tars", "lists"))
    for name in names:
        photos.write_bytes(name, name.encode())
    rows = listed_table(photos.uri, tmp_path / "list")
    assert dict(zip(rows["path"].to_pylist(), rows["label"].to_pylist(), strict=True)) == {
        "top.jpg": None,
        "a b/é%20😀.jpg": "a b",
        "deep/er/c.jpg": "deep",
    }
    assert InputReader(photos.uri).read(rows) == [path.encode() for path in rows["path"].to_pylist()]

    tars.write_bytes("x.tar", tar_bytes(MEMBERS.items()))
    rows = listed_table(tars.uri, tmp_path / "list")
    assert InputReader(tars.uri).read(rows) == list(MEMBERS.values())

    lists.write_bytes("x.txt", b"s3://bucket/photos/top.jpg\n../photos/top.jpg\ny.jpg\n/etc/hostname\n")
    lists.write_bytes("y.jpg", b"y")
    source = (lists / "x.txt").uri
    rows = listed_table(source, tmp_path / "list")
    assert rows["reason"].to_pylist() == [None, "bad-name", None, "bad-name"]
    assert InputReader(source).read(rows.take([0, 2])) == [b"top.jpg", b"y"]


def test_keys_with_empty_parts_end_no_listing(bucket: str, tmp_path: Path) -> None:
    boto3 = pytest.importorskip("boto3")
    odd = Folder(f"s3://bucket/odd?{bucket}")
    odd.write_bytes("a.jpg", b"a")
    host = bucket.partition("=")[2].partition("&")[0]
    client = boto3.client("s3", endpoint_url=f"http://{host}", region_name="us-east-1")
    for key in ("odd//b.jpg", "odd/c//d.jpg", "odd/folder/"):
        client.put_object(Bucket="bucket", Key=key, Body=b"x")
    rows = listed_table(odd.uri, tmp_path / "list")
    assert [reason for reason in rows["reason"].to_pylist() if reason] == ["bad-name"] * 2
    assert [
        path for path, reason in zip(rows["path"].to_pylist(), rows["reason"].to_pylist(), strict=True) if not reason
    ] == ["a.jpg"]


def test_an_object_that_vanishes_costs_its_row(bucket: str, tmp_path: Path) -> None:
    source = Folder(f"s3://bucket/vanishing?{bucket}")
    for name in ("a.jpg", "b.jpg"):
        source.write_bytes(name, name.encode())
    rows = listed_table(source.uri, tmp_path / "list")
    source.delete("a.jpg")
    gone, there = InputReader(source.uri).read(rows)
    assert isinstance(gone, FileNotFoundError)
    assert "a.jpg" in str(gone)
    assert there == b"b.jpg"


def test_what_is_not_on_s3_is_said_plainly(bucket: str, tmp_path: Path) -> None:
    for place in ("no-such-bucket/photos", "bucket/no-such-folder"):
        with refused("missing", "source") as error:
            freeze(f"s3://{place}?{bucket}", Folder(tmp_path / "list"))
        assert f"s3://{place}" in str(error.value)


@contextmanager
def access_denied(options: str) -> Iterator[None]:
    """Have the server ask for rights, which nobody has there."""
    host = options.partition("=")[2].partition("&")[0]

    def checked(after: bytes) -> None:
        kind = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"http://{host}/moto-api/reset-auth", after, kind, method="POST"))

    checked(b"0")
    try:
        yield
    finally:
        checked(b"inf")


def test_credentials_that_are_refused_are_said_to_be(bucket: str, tmp_path: Path) -> None:
    source = Folder(f"s3://bucket/private?{bucket}")
    source.write_bytes("a.jpg", b"a")
    rows = listed_table(source.uri, tmp_path / "list")
    reader = InputReader(source.uri)
    assert reader.read(rows) == [b"a"]
    with access_denied(bucket):
        with pytest.raises(PermissionError, match="AWS_ACCESS_KEY_ID"):
            freeze(source.uri, Folder(tmp_path / "again"))
        for one in (reader, InputReader(source.uri)):
            (content,) = one.read(rows)
            assert isinstance(content, OSError)
            assert "ACCESS_DENIED" in str(content)


@contextmanager
def busy(options: str, fails: int) -> Iterator[tuple[str, list[int]]]:
    """A server before that of ``options`` that answers the first requests for objects with 503; and their number."""
    host = options.partition("=")[2].partition("&")[0]
    count = [0]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            count[0] += ".jpg" in self.path
            if ".jpg" in self.path and count[0] <= fails:
                self.send_error(503)
                return
            behind = http.client.HTTPConnection(host)
            behind.request(self.command, self.path, headers=dict(self.headers))
            answer = behind.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    with server:
        yield options.replace(host, f"127.0.0.1:{server.server_port}"), count
        server.shutdown()


def test_a_busy_store_is_asked_again(bucket: str, tmp_path: Path) -> None:
    source = Folder(f"s3://bucket/busy?{bucket}")
    source.write_bytes("a.jpg", b"a")
    rows = listed_table(source.uri, tmp_path / "list")
    with busy(bucket, fails=2) as (options, count):
        assert InputReader(f"s3://bucket/busy?{options}").read(rows) == [b"a"]
        assert count[0] >= 3


# One image again


def test_tars_and_lists_on_s3(bucket: str) -> None:
    tars, lists = Folder(f"s3://bucket/tars?{bucket}"), Folder(f"s3://bucket/lists?{bucket}")
    tars.write_bytes("x.tar", tar_bytes([("1.jpg", b"one")]))
    assert ImageLookup(tars.uri).read(["x.tar/1.jpg", "y.tar/1.jpg"]) == {"x.tar/1.jpg": b"one"}
    lists.write_bytes("x.txt", b"s3://bucket/lists/a.jpg\nb.jpg\n")
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        lists.write_bytes(name, name.encode())
    images = ImageLookup((lists / "x.txt").uri)
    assert images.read(["s3://bucket/lists/a.jpg", "b.jpg"]) == {
        "s3://bucket/lists/a.jpg": b"a.jpg",
        "b.jpg": b"b.jpg",
    }
    assert images.read(["s3://bucket/lists/c.jpg", "c.jpg", "a.jpg"]) == {}


def test_images_of_a_folder_on_s3(bucket: str) -> None:
    source = Folder(f"s3://bucket/photos?{bucket}")
    for name in ("top.jpg", "two words/ünï 😀.jpg", "%2e%2e"):
        source.write_bytes(name, name.encode())
    Folder(f"s3://bucket?{bucket}").write_bytes("secret.txt", b"secret")
    images = ImageLookup(source.uri)
    for name in ("top.jpg", "two words/ünï 😀.jpg", "%2e%2e"):
        assert images.bytes_of(name) == name.encode()
    for path in (
        "gone.jpg",
        "../secret.txt",
        "/bucket/secret.txt",
        "two words",
        "two words/../../secret.txt",
        "",
        "a\0",
    ):
        assert images.bytes_of(path) is None


def test_parquet_on_s3(bucket: str) -> None:
    source = Folder(f"s3://bucket/tables?{bucket}")
    source.write_table("a.parquet", pa.table({"path": ["a", "b"], "image": [b"image a", b"image b"]}))
    source.write_table("b.parquet", pa.table({"path": ["c"], "image": [b"image c"]}))
    for uri, there in ((source.uri, "abc"), ((source / "b.parquet").uri, "c")):
        assert ImageLookup(uri).read(["a", "b", "c", "d"]) == {name: f"image {name}".encode() for name in there}
