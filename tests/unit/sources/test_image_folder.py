"""Image folders: each file once, whatever its name; bad files cost their rows; no path leads out of the folder."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image
from source_files import GOOD, Outcome, compressed_zeros, listed, listed_table, outcomes, picture, png, read

from retrieval.images import MAX_BYTES, decode
from retrieval.sources.lookup import ImageLookup
from retrieval.sources.reader import InputReader

# Listing


def test_folder_gives_every_file_once_with_its_class(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    names = {
        "top.jpg": None,
        "dog/a.jpg": "dog",
        "dog/small/deep/b.png": "dog",
        "two words/ c .jpg": "two words",
        "line\nbreak/new\nline.jpg": "line\nbreak",
        "ünï/😀.jpg": "ünï",
        "cat.jpg/not-a-file.txt": "cat.jpg",
    }
    hidden = (".DS_Store", "dog/.hidden.jpg", ".git/config", "dog/.thumbs/a.jpg")
    for name in (*names, *hidden, "../elsewhere/d.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "linked").symlink_to(elsewhere)
    (folder / "linked.jpg").symlink_to(elsewhere / "d.jpg")
    (folder / "dangling.jpg").symlink_to("nothing")
    (folder / "loop").symlink_to(".")
    (folder / "dog/up").symlink_to("..")
    (folder / "itself").symlink_to("itself")
    os.mkfifo(folder / "pipe.jpg")
    listing, rows = listed(folder, tmp_path / "list")
    broken = {"dangling.jpg": None, "itself": None}
    assert {row["path"]: row["label"] for row in rows} == names | {
        "linked/d.jpg": "linked",
        "linked.jpg": None,
    } | broken
    assert listing.root.path == str(folder)
    assert listing.metadata == ()
    status = (folder / "top.jpg").stat()
    top = next(row for row in rows if row["path"] == "top.jpg")
    assert (top["file"], top["size"], top["mtime_ns"]) == ("top.jpg", 7, status.st_mtime_ns)
    contents = read(folder, rows)
    assert {name: contents[name] for name in names} == {name: name.encode() for name in names}
    assert contents["dangling.jpg"] == "FileNotFoundError"
    assert contents["itself"] == "OSError"


def test_a_folder_is_listed_in_the_same_order_every_time(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/1.jpg", "a/9.jpg", "z.jpg", "c.jpg", "b/inner/0.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"any")
    first, rows = listed(tmp_path / "photos", tmp_path / "first")
    assert [row["path"] for row in rows] == ["c.jpg", "z.jpg", "a/9.jpg", "b/1.jpg", "b/2.jpg", "b/inner/0.jpg"]
    assert listed(tmp_path / "photos", tmp_path / "second")[0].digest == first.digest
    (tmp_path / "photos/c.jpg").write_bytes(b"more")
    assert listed(tmp_path / "photos", tmp_path / "third")[0].digest != first.digest


# Bad files


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(format="JPEG", exif=exif)


def animated(format: str) -> bytes:
    frames = [Image.new("P", (8, 6), i).convert("RGB") for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


LARGE = picture(size=(1000, 1000), format="JPEG", quality=100)
# Number of the fault in the catalogue of faults that these tests go through, bytes, and what is to become of them.
FILES: dict[str, tuple[bytes, Outcome]] = {
    "00 good.jpg": (GOOD, (40, 20)),
    "01 empty.jpg": (b"", "empty"),
    "02 truncated.jpg": (LARGE[: len(LARGE) // 2], "truncated"),
    "03 text.jpg": (b"not a picture at all", "not-an-image"),
    # 312 MB of zeros, in 300 KB.
    "04 one colour.png": (png(50_000, 50_000, pixels=compressed_zeros(6_251 * 50_000)), "too-large"),
    "05 huge.png": (png(2**31 - 1, 2**31 - 1), "too-large"),
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


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_one_bad_file_costs_one_row(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, (data, _) in FILES.items():
        (folder / name).write_bytes(data)
    assert outcomes(folder, tmp_path / "list") == {name: expected for name, (_, expected) in FILES.items()}


def test_a_pair_that_exif_rotates_is_alike() -> None:
    turned = decode(rotated(6)).transpose(Image.Transpose.ROTATE_90)
    assert turned.tobytes() == decode(rotated(1)).tobytes()


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


def test_files_that_vanish_between_list_and_read(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "photos" / name).write_bytes(GOOD)
    rows = listed_table(tmp_path / "photos", tmp_path / "list")
    (tmp_path / "photos/a.jpg").unlink()
    gone, there = InputReader(str(tmp_path / "photos")).read(rows)
    assert isinstance(gone, FileNotFoundError)
    assert there == GOOD


# One image again


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
    images = ImageLookup(str(folder))
    for name in ("top.jpg", "two words/ünï 😀.jpg", "two words/new\nline.jpg", "%2e%2e", "back\\slash.jpg"):
        assert images.bytes_of(name) == name.encode()
    assert images.bytes_of("inside.jpg") == b"top.jpg"
    assert images.read(["top.jpg", "gone.jpg", "top.jpg"]) == {"top.jpg": b"top.jpg"}
    assert images.read([]) == {}


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
    assert ImageLookup(str(folder)).bytes_of(path.replace("{tmp}", str(tmp_path))) is None


def test_links_out_are_followed_for_those_who_may_read_them_anyway(folder: Path) -> None:
    images = ImageLookup(str(folder), links_out=True)
    assert images.bytes_of("out.jpg") == b"secret"
    assert images.bytes_of("../secret.txt") is None
    assert images.bytes_of("loop.jpg") is None


def test_a_source_that_is_a_link_itself_is_one(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(folder)
    images = ImageLookup(str(tmp_path / "linked"))
    assert images.bytes_of("top.jpg") == b"top.jpg"
    assert images.bytes_of("out.jpg") is None


def test_a_file_larger_than_any_gallery_takes_is_not_read(folder: Path) -> None:
    with (folder / "large.jpg").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert ImageLookup(str(folder)).bytes_of("large.jpg") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_cannot_be_read_is_an_error(folder: Path) -> None:
    (folder / "top.jpg").chmod(0)
    with pytest.raises(OSError, match=r"top\.jpg"):
        ImageLookup(str(folder)).bytes_of("top.jpg")


def test_a_source_that_is_gone_has_no_images(tmp_path: Path) -> None:
    assert ImageLookup(str(tmp_path / "gone")).bytes_of("a.jpg") is None


def test_a_source_that_cannot_be_opened_is_no_mistake_of_the_caller() -> None:
    with pytest.raises(OSError, match="ftp://host/photos"):
        ImageLookup("ftp://host/photos").bytes_of("a.jpg")
