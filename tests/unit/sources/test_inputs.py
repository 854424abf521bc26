"""Reading rows of a list: in order, bounded, few requests, from disks and from object stores that fail."""

from __future__ import annotations

import http.client
import io
import pickle
import tarfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from pipelines.sources import list_inputs
from retrieval.folder import Folder
from retrieval.images import ImageRejected
from retrieval.sources import reader as inputs
from retrieval.sources.reader import InputReader, patiently


def listed(source: str, into: Path) -> pa.Table:
    list_inputs(source, Folder(into))
    return pa.concat_tables([pq.read_table(file) for file in sorted(into.glob("*.parquet"))])


def tar_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


MEMBERS = {f"{i}.jpg": bytes([i]) * (100 + i) for i in range(20)}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of inputs of each request for ranges of a tar."""
    sizes: list[int] = []
    real = inputs._ranges

    def ranges(file: Any, run: Any) -> Any:
        sizes.append(len(run))
        return real(file, run)

    monkeypatch.setattr(inputs, "_ranges", ranges)
    return sizes


def test_rows_come_in_any_order_and_from_a_copy_of_the_reader(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes(MEMBERS))
    rows = listed(str(tmp_path / "x.tar"), tmp_path / "list")
    reader = pickle.loads(pickle.dumps(InputReader(str(tmp_path / "x.tar"))))
    order = [7, 3, 3, 19, 0, 8, 9]
    assert reader.read(rows.take(order)) == [list(MEMBERS.values())[i] for i in order]
    assert reader.read(rows.slice(0, 0)) == []


def test_adjacent_members_are_one_request(tmp_path: Path, watched: list[int]) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes(MEMBERS))
    rows = listed(str(tmp_path / "x.tar"), tmp_path / "list")
    assert InputReader(str(tmp_path / "x.tar")).read(rows) == list(MEMBERS.values())
    assert watched == [20]


def test_requests_are_bounded_and_so_is_what_lies_between(
    tmp_path: Path, watched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_REQUEST", 6000)
    members = {"a.jpg": b"a", "b.bin": bytes(100_000), "c.jpg": b"c", "d.jpg": bytes(4000), "e.jpg": bytes(4000)}
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    rows = listed(str(tmp_path / "x.tar"), tmp_path / "list")
    rows = rows.filter(pa.compute.is_null(rows["reason"]))
    assert InputReader(str(tmp_path / "x.tar")).read(rows) == [members[f"{name}.jpg"] for name in "acde"]
    assert watched == [1, 2, 1]


def test_never_more_than_the_bound_is_read_of_one_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_BYTES", 1000)
    contents = {"a.jpg": bytes(1000), "b.jpg": bytes(1001), "c.jpg": b"c"}
    sources = [tmp_path / "photos", tmp_path / "x.tar", tmp_path / "x.parquet"]
    sources[0].mkdir()
    for name, data in contents.items():
        (sources[0] / name).write_bytes(data)
    sources[1].write_bytes(tar_bytes(contents))
    pq.write_table(pa.table({"image": list(contents.values()), "path": list(contents)}), sources[2])
    for source in sources:
        first, second, third = InputReader(str(source)).read(listed(str(source), tmp_path / "list"))
        assert (first, third) == (contents["a.jpg"], b"c")
        assert isinstance(second, ImageRejected)
        assert second.reason == "too-many-bytes"
        assert "1,001 bytes" in str(second)


@pytest.mark.parametrize("whole", [True, False])
def test_a_row_group_is_read_once_for_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    images = [bytes([i]) * 50 for i in range(40)]
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": images, "path": [str(i) for i in range(40)]}), file, row_group_size=10)
    rows = listed(str(file), tmp_path / "list")
    if not whole:
        monkeypatch.setattr(inputs, "_GROUP", 0)
        monkeypatch.setattr(inputs, "_BATCH", 120)  # two rows or so
    opened: list[int] = []
    real: Callable[..., Iterator[pa.RecordBatch]] = pq.ParquetFile.iter_batches

    def iter_batches(self: Any, size: int, *, row_groups: list[int], columns: list[str]) -> Iterator[pa.RecordBatch]:
        opened.extend(row_groups)
        assert (size == 10) == whole
        return real(self, size, row_groups=row_groups, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    reader = InputReader(str(file))
    parts = [reader.read(rows.slice(start, 4)) for start in range(0, 40, 4)]
    assert [content for part in parts for content in part] == images
    assert opened == [0, 1, 2, 3]
    assert reader.read(rows.take([25, 3, 24])) == [images[25], images[3], images[24]]


def test_several_threads_read_at_once(tmp_path: Path) -> None:
    images = [bytes([i]) * 50 for i in range(60)]
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": images, "path": [str(i) for i in range(60)]}), file, row_group_size=7)
    rows, reader = listed(str(file), tmp_path / "list"), InputReader(str(file))
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda start=start: found.update({start: reader.read(rows.slice(start, 9))}))
        for start in range(0, 54, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {start: images[start : start + 9] for start in range(0, 54, 5)}


def test_what_may_pass_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_PAUSE_S", 0)
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
            return patiently(filesystem, read)
        except OSError:
            return -made

    assert attempts(store, OSError("SLOW_DOWN"), 2) == 3
    assert attempts(store, OSError("SLOW_DOWN"), 9) == -3
    assert attempts(store, OSError("AWS Error ACCESS_DENIED"), 2) == -1
    assert attempts(store, FileNotFoundError("gone"), 2) == -1
    assert attempts(fs.LocalFileSystem(), OSError("disk"), 2) == -1


# S3


def test_every_kind_of_source_on_s3(bucket: str, tmp_path: Path) -> None:
    names = ("top.jpg", "a b/é%20😀.jpg", "deep/er/c.jpg")
    photos, tars, lists = (Folder(f"s3://bucket/{name}?{bucket}") for name in ("photos", "tars", "lists"))
    for name in names:
        photos.write_bytes(name, name.encode())
    rows = listed(photos.uri, tmp_path / "list")
    assert dict(zip(rows["path"].to_pylist(), rows["label"].to_pylist(), strict=True)) == {
        "top.jpg": None,
        "a b/é%20😀.jpg": "a b",
        "deep/er/c.jpg": "deep",
    }
    assert InputReader(photos.uri).read(rows) == [path.encode() for path in rows["path"].to_pylist()]

    tars.write_bytes("x.tar", tar_bytes(MEMBERS))
    rows = listed(tars.uri, tmp_path / "list")
    assert InputReader(tars.uri).read(rows) == list(MEMBERS.values())

    lists.write_bytes("x.txt", b"s3://bucket/photos/top.jpg\n../photos/top.jpg\ny.jpg\n/etc/hostname\n")
    lists.write_bytes("y.jpg", b"y")
    source = (lists / "x.txt").uri
    rows = listed(source, tmp_path / "list")
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
    rows = listed(odd.uri, tmp_path / "list")
    assert [reason for reason in rows["reason"].to_pylist() if reason] == ["bad-name"] * 2
    assert [
        path for path, reason in zip(rows["path"].to_pylist(), rows["reason"].to_pylist(), strict=True) if not reason
    ] == ["a.jpg"]


def test_an_object_that_vanishes_costs_its_row(bucket: str, tmp_path: Path) -> None:
    source = Folder(f"s3://bucket/vanishing?{bucket}")
    for name in ("a.jpg", "b.jpg"):
        source.write_bytes(name, name.encode())
    rows = listed(source.uri, tmp_path / "list")
    source.delete("a.jpg")
    gone, there = InputReader(source.uri).read(rows)
    assert isinstance(gone, FileNotFoundError)
    assert "a.jpg" in str(gone)
    assert there == b"b.jpg"


def test_what_is_not_on_s3_is_said_plainly(bucket: str, tmp_path: Path) -> None:
    for place in ("no-such-bucket/photos", "bucket/no-such-folder"):
        with pytest.raises(ValueError, match=rf"there is nothing at s3://{place}.*bucket's name and region"):
            list_inputs(f"s3://{place}?{bucket}", Folder(tmp_path / "list"))


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
    rows = listed(source.uri, tmp_path / "list")
    reader = InputReader(source.uri)
    assert reader.read(rows) == [b"a"]
    with access_denied(bucket):
        with pytest.raises(PermissionError, match=r"Check the credentials .*AWS_ACCESS_KEY_ID"):
            list_inputs(source.uri, Folder(tmp_path / "again"))
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
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with server:
        yield options.replace(host, f"127.0.0.1:{server.server_port}"), count
        server.shutdown()


def test_a_busy_store_is_asked_again(bucket: str, tmp_path: Path) -> None:
    source = Folder(f"s3://bucket/busy?{bucket}")
    source.write_bytes("a.jpg", b"a")
    rows = listed(source.uri, tmp_path / "list")
    with busy(bucket, fails=2) as (options, count):
        assert InputReader(f"s3://bucket/busy?{options}").read(rows) == [b"a"]
        assert count[0] >= 3
