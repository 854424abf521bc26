"""What is found in sources of every kind, what lists of it say, and what is said where nothing can be embedded."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import input_list
from pipelines.sources import Known, Listing, difference, list_inputs
from retrieval.folder import Folder
from retrieval.sources.reader import INPUTS, InputReader


def listed(source: Path | str, into: Path, known: Sequence[Path] = ()) -> tuple[Listing, list[dict[str, Any]]]:
    """List a source into a folder; return what is said of the list and its rows, after what every list must have."""
    listing = list_inputs(str(source), Folder(into), known=[Known(Folder(folder)) for folder in known])
    rows = rows_of(into)
    assert [row["input"] for row in rows] == list(range(listing.count))
    assert len({row["path"] for row in rows}) == len(rows)
    assert all((row["reason"] is None) == (row["detail"] is None) for row in rows)
    return listing, rows


def rows_of(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*.parquet"))
    schemas = [pq.read_schema(file) for file in files]
    assert all(schema.equals(schemas[0]) for schema in schemas)
    assert all(schema.names[: len(INPUTS)] == INPUTS.names for schema in schemas)
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def read(source: Path | str, rows: Sequence[dict[str, Any]]) -> dict[str, bytes | str]:
    """Read rows of a list: what each path has, or the reason or kind of error for which it has none."""
    table = pa.Table.from_pylist(list(rows), schema=INPUTS)
    contents = InputReader(str(source)).read(table)
    return {
        row["path"]: content if isinstance(content, bytes) else getattr(content, "reason", type(content).__name__)
        for row, content in zip(rows, contents, strict=True)
    }


# Image folders


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


def test_a_long_list_is_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_list, "ROWS_PER_FILE", 4)
    (tmp_path / "photos").mkdir()
    for i in range(10):
        (tmp_path / f"photos/{i}.jpg").write_bytes(b"any")
    listed(tmp_path / "photos", tmp_path / "list")
    sizes = [pq.read_metadata(file).num_rows for file in sorted((tmp_path / "list").glob("*"))]
    assert sizes == [4, 4, 2]
    assert sorted(file.name for file in (tmp_path / "list").iterdir())[0] == "000000.parquet"


def test_nothing_to_embed_is_said_plainly(tmp_path: Path) -> None:
    into = tmp_path / "list"
    with pytest.raises(ValueError, match=r"there is nothing at .*/missing; expected an image folder, Parquet, tars"):
        listed(tmp_path / "missing", into)
    (tmp_path / "empty/classes").mkdir(parents=True)
    (tmp_path / "empty/.hidden").write_bytes(b"any")
    with pytest.raises(ValueError, match=r"empty is a folder without files; expected images"):
        listed(tmp_path / "empty", into)
    (tmp_path / "photo.jpg").write_bytes(b"any")
    with pytest.raises(
        ValueError, match=r"photo\.jpg is a file; expected an image folder, or a file whose name ends in"
    ):
        listed(tmp_path / "photo.jpg", into)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a.jpg", "deep/b.parquet"), r"a\.jpg and deep/b\.parquet"),
        (("deep/a.PNG", "b.tar"), r"deep/a\.PNG and b\.tar"),
        (("x/a.parquet", "y/b.tar"), r"x/a\.parquet and y/b\.tar"),
    ],
)
def test_kinds_are_not_mixed(tmp_path: Path, names: Sequence[str], said: str) -> None:
    for name in names:
        (tmp_path / "mixed" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mixed" / name).write_bytes(b"any")
    with pytest.raises(ValueError, match=rf"mixed mixes kinds of sources \({said}\); give images, Parquet and tars"):
        listed(tmp_path / "mixed", tmp_path / "list")


# Parquet


DATA = [b"one", b"ends in zeros\x00\x00", None]


def write(file: Path, *, row_group_size: int | None = None, **columns: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, row_group_size=row_group_size)
    return file


def test_parquet_bytes_and_structs_labels_and_nulls(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.parquet", image=DATA, path=["a", "b", "c"], label=["x", None, ""], other=[1, 2, 3])
    listing, rows = listed(plain, tmp_path / "list")
    assert [(row["path"], row["label"], row["other"]) for row in rows] == [
        ("a", "x", 1),
        ("b", None, 2),
        ("c", None, 3),
    ]
    assert listing.metadata == ("other",)
    assert read(plain, rows) == {"a": DATA[0], "b": DATA[1], "c": "empty"}
    structs = pa.array([*({"bytes": data, "path": None} for data in DATA), None])
    unlabelled = write(tmp_path / "structs.parquet", image=structs, path=["a", "b", "c", "d"])
    _, rows = listed(unlabelled, tmp_path / "list")
    assert [row["label"] for row in rows] == [None] * 4
    assert read(unlabelled, rows) == {"a": DATA[0], "b": DATA[1], "c": "empty", "d": "empty"}


def test_parquet_folder_is_all_its_parquet_files_at_any_depth_and_no_others(tmp_path: Path) -> None:
    write(tmp_path / "all/1.parquet", image=DATA[:1], path=["a"], label=["x"])
    write(tmp_path / "all/deep/2.parquet", label=["y"], path=["b"], image=DATA[1:2])
    write(tmp_path / "all/.hidden/3.parquet", label=["y"], path=["c"], image=DATA[1:2])
    (tmp_path / "all/README.md").write_text("about this data")
    _, rows = listed(tmp_path / "all", tmp_path / "list")
    assert [(row["file"], row["path"], row["label"]) for row in rows] == [
        ("1.parquet", "a", "x"),
        ("deep/2.parquet", "b", "y"),
    ]
    assert read(tmp_path / "all", rows) == {"a": DATA[0], "b": DATA[1]}


def test_metadata_keeps_its_types_or_becomes_text(tmp_path: Path) -> None:
    write(
        tmp_path / "all/1.parquet",
        image=DATA[:2],
        path=["a", "b"],
        whole=pa.array([1, None], pa.int32()),
        differs=[1, 2],
        only_here=["é", None],
        of_null=pa.nulls(2),
        tags=[["x", "y"], None],
        day=pa.array([0, 1], pa.date32()),
        kind=pa.array(["p", "q"]).dictionary_encode(),
        raw=[b"bytes", b"are left out"],
        width=[100, 100],
        batch=["mine", "mine"],
    )
    write(
        tmp_path / "all/2.parquet",
        image=DATA[:1],
        path=["c"],
        whole=pa.array([2**40], pa.int64()),
        differs=["two"],
        of_null=[1.5],
    )
    listing, rows = listed(tmp_path / "all", tmp_path / "list")
    assert set(listing.metadata) == {"whole", "differs", "only_here", "of_null", "tags", "day", "kind"}
    assert [row["whole"] for row in rows] == [1, None, 2**40]
    assert [row["differs"] for row in rows] == ["1", "2", "two"]
    assert [row["only_here"] for row in rows] == ["é", None, None]
    assert [row["of_null"] for row in rows] == [None, None, 1.5]
    assert [row["tags"] for row in rows] == ['["x", "y"]', None, None]
    assert [row["kind"] for row in rows] == ["p", "q", None]
    assert pq.read_schema(tmp_path / "list/000000.parquet").field("day").type == pa.date32()


def test_types_that_only_a_later_file_shows_reach_the_files_of_the_list_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_list, "ROWS_PER_FILE", 2)
    for i in range(4):
        value: Any = "late" if i == 3 else i
        extra = {"new": [True]} if i == 3 else {}
        write(tmp_path / f"all/{i}.parquet", image=DATA[:1], path=[f"p{i}"], value=[value], **extra)
    listing, rows = listed(tmp_path / "all", tmp_path / "list")  # checks that all files have one schema
    assert listing.metadata == ("value", "new")
    assert [(row["value"], row["new"]) for row in rows] == [("0", None), ("1", None), ("2", None), ("late", True)]


def test_unfit_parquet_is_refused_by_column(tmp_path: Path) -> None:
    for columns, said in (
        ({"img": DATA}, r"a\.parquet has no column image; it has img. .* needs image \(bytes\)"),
        ({"label": ["x"]}, r"has no column image; it has label"),
        ({"image": DATA}, r"has no column path; it has image"),
        ({"image": [1, 2], "path": ["a", "b"]}, r"column image of int64; it must hold bytes"),
    ):
        with pytest.raises(ValueError, match=r"nothing in .*a\.parquet can be embedded: .*" + said):
            listed(write(tmp_path / "a.parquet", **columns), tmp_path / "list")
    empty = write(tmp_path / "d.parquet", image=pa.array([], pa.binary()), path=pa.array([], pa.string()))
    with pytest.raises(ValueError, match=r"d\.parquet has no inputs"):
        listed(empty, tmp_path / "list")


def test_paths_that_repeat_cost_all_but_the_first(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", image=[b"1", b"2", b"3", b"4"], path=["x", "y", "x", None], row_group_size=2)
    _, rows = listed(file, tmp_path / "list")
    assert [(row["path"], row["reason"]) for row in rows] == [
        ("x", None),
        ("y", None),
        ("x#2", "same-path"),
        ("a.parquet#1.1", "no-path"),
    ]
    assert read(file, rows) == {"x": b"1", "y": b"2", "x#2": "same-path", "a.parquet#1.1": "no-path"}


# Tars


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def test_webdataset_tars(tmp_path: Path) -> None:
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


# Lists of URIs


def test_lists_of_paths_and_uris(tmp_path: Path) -> None:
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

    parquet = write(tmp_path / "lists/a.parquet", path=list(expected), stars=[1, 2, 3, 4])
    listing, rows = listed(parquet, tmp_path / "list")
    assert read(parquet, rows) == expected
    assert [row["stars"] for row in rows] == [1, 2, 3, 4]


def test_what_lists_may_not_name_costs_its_line(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").write_bytes(b"b")
    file = tmp_path / "lists/x.csv"
    file.write_text(
        "uri,n\na.jpg,1\nhttps://host/x.jpg,2\n../b.jpg,3\n,4\ntoo,many,fields\ns3://key:word@bucket/x.jpg,5\na.jpg,6\n"
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
        "a.jpg#5": "same-path",
    }
    details = {row["path"]: row["detail"] for row in rows}
    assert "https:// is not read" in details["https://host/x.jpg"]
    assert "img2dataset" in details["https://host/x.jpg"]
    assert "key:word" not in json.dumps(rows)
    (tmp_path / "h.txt").write_text("http://host/a.jpg\nhttp://host/b.jpg\n")
    with pytest.raises(ValueError, match=r"nothing in .*h\.txt can be embedded: line 1 of h\.txt: http:// is not read"):
        listed(tmp_path / "h.txt", tmp_path / "list")
    (tmp_path / "h.csv").write_text("label,url\nx,y\n")
    with pytest.raises(ValueError, match=r"has no column uri or path in its first line; it has label, url"):
        listed(tmp_path / "h.csv", tmp_path / "list")


# Growth, and what differs


def test_known_inputs_are_left_out_unless_they_have_changed(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(5):
        (photos / f"{i}.jpg").write_bytes(b"any")
    first, _ = listed(photos, tmp_path / "1")
    assert (first.count, first.skipped, first.changed) == (5, 0, ())
    (photos / "0.jpg").unlink()
    (photos / "1.jpg").write_bytes(b"longer")
    os.utime(photos / "2.jpg", ns=(1, 1))
    (photos / "new.jpg").write_bytes(b"any")
    second, rows = listed(photos, tmp_path / "2", known=[tmp_path / "1"])
    assert [row["path"] for row in rows] == ["1.jpg", "2.jpg", "new.jpg"]
    assert (second.count, second.skipped, second.changed) == (3, 2, ("1.jpg", "2.jpg"))
    third, rows = listed(photos, tmp_path / "3", known=[tmp_path / "1", tmp_path / "2"])
    assert (third.count, third.skipped, third.changed, rows) == (0, 5, (), [])
    again = Known(Folder(tmp_path / "1"), ["0.jpg", "3.jpg"])
    fourth = list_inputs(str(photos), Folder(tmp_path / "4"), known=[again])
    assert [row["path"] for row in rows_of(tmp_path / "4")] == ["1.jpg", "2.jpg", "3.jpg", "new.jpg"]
    assert fourth.changed == ("1.jpg", "2.jpg", "3.jpg")
    # What a later list has made of a path counts: here, that it could not be read, though it is again as it once was.
    list_inputs(str(photos), Folder(tmp_path / "5"), known=[Known(Folder(tmp_path / "2"))])
    lists = [Known(Folder(tmp_path / "all")), Known(Folder(tmp_path / "2"), ["new.jpg"]), Known(Folder(tmp_path / "5"))]
    list_inputs(str(photos), Folder(tmp_path / "6"), known=lists)
    assert [row["path"] for row in rows_of(tmp_path / "6")] == ["new.jpg"]
    assert difference(Folder(tmp_path / "1"), Folder(tmp_path / "1")) is None
    listed(photos, tmp_path / "all")
    assert difference(Folder(tmp_path / "1"), Folder(tmp_path / "all")) == (
        "1 input is new (new.jpg), 1 is gone (0.jpg), 2 have changed (1.jpg, 2.jpg)"
    )


def test_difference_names_a_few_of_many(tmp_path: Path) -> None:
    for name, names in (("old", range(10)), ("new", range(4, 5))):
        (tmp_path / name).mkdir()
        for i in names:
            (tmp_path / name / f"{i}.jpg").write_bytes(b"any")
            os.utime(tmp_path / name / f"{i}.jpg", ns=(1, 1))
        listed(tmp_path / name, tmp_path / f"{name}-list")
    said = difference(Folder(tmp_path / "old-list"), Folder(tmp_path / "new-list"))
    assert said == "9 inputs are gone (0.jpg, 1.jpg, 2.jpg, …)"


def test_what_is_known_takes_16_bytes_a_row(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(100):
        (photos / f"{i}.jpg").write_bytes(b"any")
    listed(photos, tmp_path / "list")
    seen = input_list.Seen([Known(Folder(tmp_path / "list"))])
    assert sum(array.nbytes for array in vars(seen).values() if isinstance(array, np.ndarray)) == 16 * 100


@pytest.mark.ray
def test_with_ray_lists_are_the_same(tmp_path: Path, ray_session: None) -> None:
    for i in range(7):
        value: Any = str(i) if i == 5 else i
        paths = [f"{i}-{j}" for j in range(20)] + ["everywhere"]
        write(tmp_path / f"all/{i}.parquet", image=[b"x"] * 21, path=paths, value=[value] * 21, row_group_size=4)
    (tmp_path / "all/broken.parquet").write_bytes(b"PAR1, but no more")
    write_tar(tmp_path / "tars/a.tar", {"1.jpg": b"x"})
    (tmp_path / "tars/broken.tar").write_bytes(b"")
    assert [row["reason"] for row in listed(tmp_path / "tars", tmp_path / "of-tars")[1]] == [None, "broken-file"]
    with_ray, rows = listed(tmp_path / "all", tmp_path / "with")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.is_initialized", lambda: False)
        without, expected = listed(tmp_path / "all", tmp_path / "without")
    assert rows == expected
    assert with_ray.digest == without.digest
    assert [row["reason"] for row in rows if row["reason"]] == ["same-path"] * 6 + ["broken-file"]
