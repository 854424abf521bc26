"""Parquet: rows with bytes in columns of every shape; damage costs its own rows; one image takes one row group."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from errors import refused
from source_files import GOOD, Outcome, listed, listed_table, outcomes, read, write_parquet

from retrieval.sources import parquet
from retrieval.sources.lookup import ImageLookup
from retrieval.sources.reader import InputReader

DATA = [b"one", b"ends in zeros\x00\x00", None]

# Listing


def test_bytes_and_structs_labels_and_nulls(tmp_path: Path) -> None:
    plain = write_parquet(
        tmp_path / "plain.parquet", image=DATA, path=["a", "b", "c"], label=["x", None, ""], other=[1, 2, 3]
    )
    listing, rows = listed(plain, tmp_path / "list")
    assert [(row["path"], row["label"], row["other"]) for row in rows] == [
        ("a", "x", 1),
        ("b", None, 2),
        ("c", None, 3),
    ]
    assert listing.metadata == ("other",)
    assert read(plain, rows) == {"a": DATA[0], "b": DATA[1], "c": "empty"}
    structs = pa.array([*({"bytes": data, "path": None} for data in DATA), None])
    unlabelled = write_parquet(tmp_path / "structs.parquet", image=structs, path=["a", "b", "c", "d"])
    _, rows = listed(unlabelled, tmp_path / "list")
    assert [row["label"] for row in rows] == [None] * 4
    assert read(unlabelled, rows) == {"a": DATA[0], "b": DATA[1], "c": "empty", "d": "empty"}


def test_a_folder_is_all_its_parquet_files_at_any_depth_and_no_others(tmp_path: Path) -> None:
    write_parquet(tmp_path / "all/1.parquet", image=DATA[:1], path=["a"], label=["x"])
    write_parquet(tmp_path / "all/deep/2.parquet", label=["y"], path=["b"], image=DATA[1:2])
    write_parquet(tmp_path / "all/.hidden/3.parquet", label=["y"], path=["c"], image=DATA[1:2])
    (tmp_path / "all/README.md").write_text("about this data")
    _, rows = listed(tmp_path / "all", tmp_path / "list")
    assert [(row["file"], row["path"], row["label"]) for row in rows] == [
        ("1.parquet", "a", "x"),
        ("deep/2.parquet", "b", "y"),
    ]
    assert read(tmp_path / "all", rows) == {"a": DATA[0], "b": DATA[1]}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"img": DATA}, "no column image"),
        ({"label": ["x"]}, "no column image"),
        ({"image": DATA}, "no column path"),
        ({"image": DATA, "uri": ["a", "b", "c"]}, "no column path"),
        ({"image": [1, 2], "path": ["a", "b"]}, "column image of int64"),
        ({"image": [{"bytes": 1}], "path": ["a"]}, "column image of int64"),
        ({"image": [{"data": b"1"}], "path": ["a"]}, "column image of struct"),
    ],
)
def test_unfit_columns_are_refused_by_name(tmp_path: Path, columns: dict[str, list], said: str) -> None:
    file = write_parquet(tmp_path / "a.parquet", **columns)
    with refused("no-usable-input", "source") as error:
        listed(file, tmp_path / "list")
    assert said in str(error.value)


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array([GOOD])], ["path", "path", "image"])
    pq.write_table(table, tmp_path / "a.parquet")
    with refused("no-usable-input", "source") as error:
        listed(tmp_path / "a.parquet", tmp_path / "list")
    assert "several columns path" in str(error.value)


def test_no_rows_are_no_inputs(tmp_path: Path) -> None:
    empty = write_parquet(tmp_path / "d.parquet", image=pa.array([], pa.binary()), path=pa.array([], pa.string()))
    with refused("no-inputs", "source"):
        listed(empty, tmp_path / "list")


def test_rows_without_a_path_and_with_one_that_repeats(tmp_path: Path) -> None:
    file = write_parquet(
        tmp_path / "a.parquet", image=[b"1", b"2", b"3", b"4"], path=["x", "y", "x", None], row_group_size=2
    )
    _, rows = listed(file, tmp_path / "list")
    assert [(row["path"], row["reason"]) for row in rows] == [
        ("x", None),
        ("y", None),
        ("x#2", "same-path"),
        ("a.parquet#1.1", "no-path"),
    ]
    assert read(file, rows) == {"x": b"1", "y": b"2", "x#2": "same-path", "a.parquet#1.1": "no-path"}


# Bad files


def test_one_bad_file_costs_its_rows(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    write_parquet(
        folder / "0.parquet", image=pa.array([GOOD, None, b"", b"text"], pa.binary()), path=["a", "b", "c", "d"]
    )
    write_parquet(folder / "1.parquet", image=[1], path=["x"])
    write_parquet(folder / "2.parquet", picture=[GOOD], label=["x"])
    (folder / "3.parquet").write_bytes((folder / "0.parquet").read_bytes()[:-20])
    (folder / "4.parquet").write_bytes(b"")
    paths = pa.array([b"e", b"\xff", None], pa.binary())
    write_parquet(folder / "5.parquet", path=paths, image=[{"bytes": GOOD}, {"bytes": None}, None])
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
    file = write_parquet(tmp_path / "a.parquet", image=[GOOD], path=["a"], label=wrong, note=wrong)
    (row,) = listed(file, tmp_path / "list")[1]
    assert (row["label"], row["note"]) == ("caf\\xe9", "caf\\xe9")


# Reading


@pytest.mark.parametrize("whole", [True, False])
def test_a_row_group_is_read_once_for_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    images = [bytes([i]) * 50 for i in range(40)]
    file = write_parquet(tmp_path / "a.parquet", image=images, path=[str(i) for i in range(40)], row_group_size=10)
    rows = listed_table(file, tmp_path / "list")
    if not whole:
        monkeypatch.setattr(parquet, "_GROUP_BYTES", 0)
        monkeypatch.setattr(parquet, "_BATCH_BYTES", 120)  # two rows or so
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


def test_several_threads_read_rows_at_once(tmp_path: Path) -> None:
    images = [bytes([i]) * 50 for i in range(60)]
    file = write_parquet(tmp_path / "a.parquet", image=images, path=[str(i) for i in range(60)], row_group_size=7)
    rows, reader = listed_table(file, tmp_path / "list"), InputReader(str(file))
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


# One image again


def images_of(*names: str) -> list[bytes]:
    return [f"image of {name}".encode() for name in names]


def test_the_rows_with_these_paths_are_found(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(1000)]
    write_parquet(tmp_path / "all.parquet", path=names, image=images_of(*names), row_group_size=150)
    images = ImageLookup(str(tmp_path / "all.parquet"))
    assert images.bytes_of("0.jpg") == b"image of 0.jpg"
    assert images.bytes_of("999.jpg") == b"image of 999.jpg"
    assert images.read(names[::7]) == dict(zip(names[::7], images_of(*names[::7]), strict=True))
    for path in ("1000.jpg", "../all.parquet", "", "all.parquet", "/etc/passwd", "\ud83d"):
        assert images.bytes_of(path) is None


def test_only_the_row_group_of_a_path_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{i}.jpg" for i in range(40)]
    for number in range(2):
        part = names[20 * number :][:20]
        write_parquet(tmp_path / f"{number}.parquet", path=part, image=images_of(*part), row_group_size=5)
    opened: list[Any] = []
    real = pq.ParquetFile.iter_batches

    def watched(self: Any, size: int, *, row_groups: list[int], columns: list[str]) -> Any:
        opened.append(row_groups)
        return real(self, size, row_groups=row_groups, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    images = ImageLookup(str(tmp_path))
    assert not opened
    assert images.bytes_of("33.jpg") == b"image of 33.jpg"
    assert opened == [[2]]
    assert len(images.read(["0.jpg", "4.jpg", "39.jpg", "gone.jpg"])) == 3
    assert opened[1:] == [[0], [3]]
    assert images.bytes_of("gone.jpg") is None
    assert len(opened) == 3


def test_structs_nulls_and_other_files(tmp_path: Path) -> None:
    structs = [{"bytes": b"one", "path": None}, None, {"bytes": None, "path": "x"}, {"bytes": b"no name", "path": None}]
    write_parquet(tmp_path / "structs.parquet", image=structs, path=["a", "b", "c", None], label=["x"] * 4)
    write_parquet(tmp_path / "other.parquet", numbers=[1, 2])
    write_parquet(tmp_path / "e.parquet", image=pa.array([], pa.binary()), path=pa.array([], pa.string()))
    (tmp_path / "a.txt").write_bytes(b"beside the Parquet files")
    found = ImageLookup(str(tmp_path)).read(["a", "b", "c", "d", "a.txt", "structs.parquet"])
    assert found == {"a": b"one"}


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no, it is not")
    with pytest.raises(OSError, match=r"a\.parquet"):
        ImageLookup(str(tmp_path)).bytes_of("a")


def test_a_damaged_file_takes_no_other_images_away(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no, it is not")
    write_parquet(tmp_path / "deep/b.parquet", path=["b"], image=images_of("b"))
    assert ImageLookup(str(tmp_path)).read(["a", "b"]) == {"b": b"image of b"}


def test_several_threads_look_up_at_once(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(200)]
    write_parquet(tmp_path / "a.parquet", path=names, image=images_of(*names), row_group_size=20)
    images, found = ImageLookup(str(tmp_path / "a.parquet")), {}

    def look_up(name: str) -> None:
        found[name] = images.bytes_of(name)

    threads = [threading.Thread(target=look_up, args=(name,)) for name in names[::10]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict(zip(names[::10], images_of(*names[::10]), strict=True))
