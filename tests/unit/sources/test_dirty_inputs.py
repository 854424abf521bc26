"""Whatever lies in a source costs its own row, with a reason: files of every bad kind, listed, read and decoded."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.sources import Known, difference, list_inputs
from retrieval.folder import Folder
from retrieval.images import ImageRejected, decode
from retrieval.sources.reader import InputReader

Outcome = tuple[int, int] | str


def outcomes(source: Path, into: Path) -> dict[str, Outcome]:
    """Size of each image that a source gives, or why it gives none: a reason, or the kind of error."""
    list_inputs(str(source), Folder(into))
    tables = [pq.read_table(file) for file in sorted(into.glob("*.parquet"))]
    rows = pa.concat_tables(tables)
    contents = InputReader(str(source)).read(rows)
    return {path: outcome(content) for path, content in zip(rows["path"].to_pylist(), contents, strict=True)}


def outcome(content: bytes | Exception) -> Outcome:
    if isinstance(content, ImageRejected):
        return content.reason
    if isinstance(content, Exception):
        assert isinstance(content, OSError)
        return type(content).__name__
    try:
        return decode(content).size
    except ImageRejected as rejection:
        return rejection.reason


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 20), **options: object) -> bytes:
    format = str(options.pop("format", "PNG"))
    image = Image.linear_gradient("L").resize(size).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(format="JPEG", exif=exif)


GOOD = picture(format="JPEG")
LARGE = picture(size=(1000, 1000), format="JPEG", quality=100)
FRAMES = [Image.new("P", (8, 6), i) for i in range(3)]


def animated(format: str) -> bytes:
    buffer = io.BytesIO()
    FRAMES[0].convert("RGB").save(buffer, format, save_all=True, append_images=[f.convert("RGB") for f in FRAMES[1:]])
    return buffer.getvalue()


# Number of the fault in the catalogue of faults that these tests go through, bytes, and what is to become of them.
FILES: dict[str, tuple[bytes, Outcome]] = {
    "00 good.jpg": (GOOD, (40, 20)),
    "01 empty.jpg": (b"", "empty"),
    "02 truncated.jpg": (LARGE[: len(LARGE) // 2], "truncated"),
    "03 text.jpg": (b"not a picture at all", "not-an-image"),
    # 312 MB of zeros, in 300 KB.
    "04 one colour.png": (png(50_000, 50_000, zlib.compress(bytes(6_251 * 50_000), 9)), "too-large"),
    "05 huge.png": (png(2**31 - 1, 2**31 - 1, b""), "too-large"),
    "06 cmyk.jpg": (picture("CMYK", format="JPEG"), (40, 20)),
    "06 sixteen.png": (picture("I;16"), (40, 20)),
    "06 palette.png": (picture("P"), (40, 20)),
    "06 la.png": (picture("LA"), (40, 20)),
    "06 animated.gif": (animated("GIF"), (8, 6)),
    "06 animated.webp": (animated("WEBP"), (8, 6)),
    "06 tiny.png": (picture(size=(1, 1)), (1, 1)),
    "06 thin.png": (picture(size=(1, 20_000)), (1, 20_000)),
    "07 rotated.jpg": (rotated(6), (20, 40)),
    "08 icc.jpg": (picture(format="JPEG", icc_profile=b"no profile"), (40, 20)),
    "08 exif.jpg": (picture(format="JPEG", exif=b"Exif\0\0II*\0no directory"), (40, 20)),
    "09 vector.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "format-not-allowed"),
    "09 page.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "format-not-allowed"),
    "09 stars.fits": (b"SIMPLE  =                    T", "format-not-allowed"),
    "09 page.pdf": (b"%PDF-1.7\n", "format-not-allowed"),
    "10 phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0", "format-not-allowed"),
    "10 web.avif": (b"\0\0\0\x18ftypavif\0\0\0\0", "format-not-allowed"),
    "11 the same.jpg": (GOOD, (40, 20)),
    "13 new\nline 😀.jpg": (GOOD, (40, 20)),
    "13 ..jpg": (GOOD, (40, 20)),
}


def test_one_bad_file_costs_one_row(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, (data, _) in FILES.items():
        (folder / name).write_bytes(data)
    assert outcomes(folder, tmp_path / "list") == {name: expected for name, (_, expected) in FILES.items()}


def test_a_pair_that_exif_rotates_is_alike() -> None:
    turned = decode(rotated(6)).transpose(Image.Transpose.ROTATE_90)
    assert turned.tobytes() == decode(rotated(1)).tobytes()


def test_a_file_that_changes_after_a_run_is_seen_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(GOOD)
    before, after = Folder(tmp_path / "before"), Folder(tmp_path / "after")
    list_inputs(str(tmp_path / "photos"), before)
    (tmp_path / "photos/a.jpg").write_bytes(picture(format="JPEG", quality=20))
    listing = list_inputs(str(tmp_path / "photos"), after, known=[Known(before)])
    assert listing.changed == ("a.jpg",)
    assert difference(before, after) == "1 input has changed (a.jpg)"


def test_names_that_lead_astray(tmp_path: Path) -> None:
    folder, outside = tmp_path / "photos", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "a.jpg").write_bytes(GOOD)
    (folder / "loop").symlink_to(folder)
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "out").symlink_to(outside)
    (folder / "a.jpg").write_bytes(GOOD)
    expected: dict[str, Outcome] = {"a.jpg": (40, 20), "itself.jpg": "OSError", "out/a.jpg": (40, 20)}
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")).write_bytes(GOOD)
        expected["caf\\xe9.jpg"] = "bad-name"
    except OSError:
        pass  # this filesystem takes UTF-8 names only
    assert outcomes(folder, tmp_path / "list") == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_what_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "photos/closed").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "closed/c.jpg"):
        (tmp_path / "photos" / name).write_bytes(GOOD)
    (tmp_path / "photos/b.jpg").chmod(0)
    (tmp_path / "photos/closed").chmod(0)
    try:
        found = outcomes(tmp_path / "photos", tmp_path / "list")
    finally:
        (tmp_path / "photos/closed").chmod(0o700)
    assert found == {"a.jpg": (40, 20), "b.jpg": "PermissionError", "closed": "unreadable"}


def test_a_source_of_nothing_but_bad_files_is_listed(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(20):
        (tmp_path / f"photos/{i}.jpg").write_bytes(b"text")
    assert set(outcomes(tmp_path / "photos", tmp_path / "list").values()) == {"not-an-image"}


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_source_that_went_is_told_from_its_files(tmp_path: Path, left: str) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    (source / "a.jpg").write_bytes(GOOD)
    reader = InputReader(str(source))
    reader.check_source()
    (source / "a.jpg").unlink()
    if left == "nothing":
        source.rmdir()
    with pytest.raises(FileNotFoundError, match=r"photos is not there any more, .* run the same command again"):
        reader.check_source()


def test_files_that_vanish_between_list_and_read(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "photos" / name).write_bytes(GOOD)
    list_inputs(str(tmp_path / "photos"), Folder(tmp_path / "list"))
    (tmp_path / "photos/a.jpg").unlink()
    rows = pq.read_table(tmp_path / "list/000000.parquet")
    gone, there = InputReader(str(tmp_path / "photos")).read(rows)
    assert isinstance(gone, FileNotFoundError)
    assert there == GOOD


# Tars


def tar_of(*members: tuple[str | tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def link(name: str, to: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, to
    return info


GOOD_TAR = tar_of(("a.jpg", GOOD), ("b.jpg", GOOD), ("c.jpg", GOOD))
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
    "gzip inside": (b"\x1f\x8b\x08" + bytes(100), {"": "broken-file"}),
    "names": (
        tar_of(
            ("../x.jpg", GOOD), ("/etc/y.jpg", GOOD), ("a/../../z.jpg", GOOD), ("./ok.jpg", GOOD), (".no.jpg", GOOD)
        ),
        {
            "/../x.jpg": "bad-name",
            "//etc/y.jpg": "bad-name",
            "/a/../../z.jpg": "bad-name",
            "/ok.jpg": (40, 20),
        },
    ),
    "samples": (
        tar_of(
            *(("no-image.json", b"{}"), ("no-image.cls", b"x"), ("a.jpg", GOOD), ("a.json", b"not json")),
            *(("b.jpg", GOOD), ("b.json", b"[1]"), ("c.jpg", b""), ("d.jpg", GOOD), ("d.json", b"[" * 100_000)),
            *(("e.jpg", GOOD), ("e.cls", b"\xff\xfe"), ("f.tar", GOOD_TAR), ("g.json", bytes(2**20 + 1))),
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
        },
    ),
    "links": (
        tar_of((link("a.jpg", "/etc/passwd"), b""), ("b.jpg", GOOD)),
        {"/a.jpg": "no-image", "/b.jpg": (40, 20)},
    ),
    "twice the same": (tar_of(("a.jpg", GOOD), ("a.jpg", GOOD)), {"/a.jpg": (40, 20), "/a.jpg#1": "same-path"}),
}


@pytest.mark.parametrize("name", TARS)
def test_one_bad_member_of_a_tar_costs_one_row(tmp_path: Path, name: str) -> None:
    data, expected = TARS[name]
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/x.tar").write_bytes(data)
    (tmp_path / "tars/z.tar").write_bytes(tar_of(("good.jpg", GOOD)))
    found = outcomes(tmp_path / "tars", tmp_path / "list")
    expected = {f"x.tar{path}": value for path, value in expected.items()}
    numbered = {path.replace("#1", "#"): value for path, value in found.items()}
    assert numbered == {path.replace("#1", "#"): value for path, value in expected.items()} | {
        "z.tar/good.jpg": (40, 20)
    }


def test_compressed_tars_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(ValueError, match=r"x\.tar\.gz is compressed, .*unpack it to a plain \.tar first"):
        list_inputs(str(tmp_path / "x.tar.gz"), Folder(tmp_path / "list"))


def test_a_tar_that_was_replaced_is_not_read_at_old_places(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(GOOD_TAR)
    list_inputs(str(tmp_path / "x.tar"), Folder(tmp_path / "list"))
    (tmp_path / "x.tar").write_bytes(tar_of(("other.jpg", bytes(5000))))
    contents = InputReader(str(tmp_path / "x.tar")).read(pq.read_table(tmp_path / "list/000000.parquet"))
    assert all(
        isinstance(content, OSError) and "has changed since it was listed" in str(content) for content in contents
    )


# Parquet


def test_one_bad_parquet_file_costs_its_rows(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    images = pa.array([GOOD, None, b"", b"text"], pa.binary())
    pq.write_table(pa.table({"image": images, "path": ["a", "b", "c", "d"]}), folder / "0.parquet")
    pq.write_table(pa.table({"image": [1], "path": ["x"]}), folder / "1.parquet")
    pq.write_table(pa.table({"picture": [GOOD], "label": ["x"]}), folder / "2.parquet")
    (folder / "3.parquet").write_bytes((folder / "0.parquet").read_bytes()[:-20])
    (folder / "4.parquet").write_bytes(b"")
    structs = [{"bytes": GOOD}, {"bytes": None}, None]
    pq.write_table(
        pa.table({"path": pa.array([b"e", b"\xff", None], pa.binary()), "image": structs}), folder / "5.parquet"
    )
    assert outcomes(folder, tmp_path / "list") == {
        "a": (40, 20),
        "b": "empty",
        "c": "empty",
        "d": "not-an-image",
        "1.parquet": "wrong-columns",
        "2.parquet": "wrong-columns",
        "3.parquet": "broken-file",
        "4.parquet": "broken-file",
        "e": (40, 20),
        "\\xff": "empty",
        "5.parquet#0.2": "no-path",
    }


@pytest.mark.parametrize("column", ["image", "path"])
def test_a_damaged_row_group_costs_its_rows_only(tmp_path: Path, column: str) -> None:
    file = tmp_path / "a.parquet"
    table = pa.table({"image": [GOOD] * 6, "path": [f"{i}.jpg" for i in range(6)]})
    pq.write_table(table, file, row_group_size=2, compression="zstd", use_dictionary=False)
    group = pq.read_metadata(file).row_group(1)
    place = group.column(table.column_names.index(column))
    data = bytearray(file.read_bytes())
    for i in range(place.data_page_offset, place.data_page_offset + place.total_compressed_size):
        data[i] ^= 0xFF
    file.write_bytes(data)
    found = outcomes(file, tmp_path / "list")
    good: dict[str, Outcome] = {f"{i}.jpg": (40, 20) for i in (0, 1, 4, 5)}
    bad: dict[str, Outcome] = {"2.jpg": "OSError", "3.jpg": "OSError"}
    assert found == good | (bad if column == "image" else {"a.parquet#row-group-1": "broken-file"})


def test_text_that_is_not_utf8_is_kept_readable(tmp_path: Path) -> None:
    wrong = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": [GOOD], "path": ["a"], "label": wrong, "note": wrong}), tmp_path / "a.parquet")
    list_inputs(str(tmp_path / "a.parquet"), Folder(tmp_path / "list"))
    row = pq.read_table(tmp_path / "list/000000.parquet").to_pylist()[0]
    assert (row["label"], row["note"]) == ("caf\\xe9", "caf\\xe9")


# Lists


def test_bad_lines_of_lists(tmp_path: Path) -> None:
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
    (tmp_path / "x.csv").write_text('uri,note\na.jpg,"never closed\n' + "b.jpg,x\n" * 30_000)
    assert set(outcomes(tmp_path / "x.csv", tmp_path / "list").values()) <= {
        "bad-row",
        "FileNotFoundError",
        "same-path",
    }
