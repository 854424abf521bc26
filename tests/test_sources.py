"""What is found in image folders and in Parquet, and what is said where nothing can be."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.sources import open_source


def labels_of(folder: Path) -> dict[str, str]:
    source = open_source(str(folder))
    rows = source.dataset.take_all()
    assert source.rows == len(rows)
    assert source.root is not None
    assert source.root.path == str(folder)
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row["label"] for row in rows}


@pytest.mark.ray
def test_folder_gives_every_file_once_with_its_class(tmp_path: Path, ray_session: None) -> None:
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    names = {
        "top.jpg": "",
        "dog/a.jpg": "dog",
        "dog/small/b.png": "dog",
        "two words/ c .jpg": "two words",
        "line\nbreak/new\nline.jpg": "line\nbreak",
        "ünï/😀.jpg": "ünï",
        "cat.jpg/not-a-file.txt": "cat.jpg",
    }
    hidden = (".DS_Store", "dog/.hidden.jpg", ".git/config", "dog/.thumbs/a.jpg")
    for name in (*names, *hidden, "../elsewhere/d.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"any")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "linked.jpg").symlink_to(elsewhere / "d.jpg")
    (folder / "dangling.jpg").symlink_to("nothing")
    (folder / "loop").symlink_to(".")
    (folder / "dog/up").symlink_to("..")
    (folder / "itself").symlink_to("itself")
    os.mkfifo(folder / "pipe.jpg")
    expected = names | {"linked/d.jpg": "linked", "linked.jpg": "", "dangling.jpg": "", "itself": ""}
    assert labels_of(folder) == expected


@pytest.mark.ray
def test_folder_with_a_name_that_is_not_utf8_is_still_listed(tmp_path: Path, ray_session: None) -> None:
    (tmp_path / "good.jpg").write_bytes(b"any")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"any")
    except OSError:
        pytest.skip("this filesystem takes UTF-8 names only")
    assert labels_of(tmp_path) == {"good.jpg": "", "caf\ufffd.jpg": ""}


def test_nothing_to_embed_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is nothing at .*/missing; expected an image folder or Parquet"):
        open_source(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match=r"is a folder without files"):
        open_source(str(tmp_path))
    (tmp_path / "empty/classes").mkdir(parents=True)
    (tmp_path / "empty/.hidden").write_bytes(b"any")
    with pytest.raises(ValueError, match=r"empty is a folder without files; expected images"):
        open_source(str(tmp_path / "empty"))
    (tmp_path / "photo.jpg").write_bytes(b"any")
    with pytest.raises(ValueError, match=r"photo\.jpg is a file; expected an image folder"):
        open_source(str(tmp_path / "photo.jpg"))


DATA = [b"one", b"ends in zeros\x00\x00", None]


def write(file: Path, **columns: object) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return str(file)


def rows_of(uri: str) -> dict[str, tuple[str, bytes]]:
    source = open_source(uri)
    rows = source.dataset.take_all()
    assert source.rows == len(rows)
    assert all(set(row) == {"path", "label", "data"} for row in rows)
    return {row["path"]: (row["label"], row["data"]) for row in rows}


@pytest.mark.ray
def test_parquet_bytes_and_structs_labels_and_nulls(tmp_path: Path, ray_session: None) -> None:
    plain = write(tmp_path / "plain.parquet", image=DATA, path=["a", "b", "c"], label=["x", None, "y"], other=[1, 2, 3])
    assert rows_of(plain) == {"a": ("x", DATA[0]), "b": ("", DATA[1]), "c": ("y", b"")}
    structs = pa.array([*({"bytes": data, "path": None} for data in DATA), None])
    unlabelled = write(tmp_path / "structs.parquet", image=structs, path=["a", "b", "c", None])
    assert rows_of(unlabelled) == {"a": ("", DATA[0]), "b": ("", DATA[1]), "c": ("", b""), "": ("", b"")}


@pytest.mark.ray
def test_parquet_folder_is_all_its_parquet_files_and_no_others(tmp_path: Path, ray_session: None) -> None:
    write(tmp_path / "1.parquet", image=DATA[:1], path=["a"], label=["x"])
    write(tmp_path / "2.parquet", label=["y"], path=["b"], image=DATA[1:2])
    (tmp_path / "README.md").write_text("about this data")
    assert rows_of(str(tmp_path)) == {"a": ("x", DATA[0]), "b": ("y", DATA[1])}


@pytest.mark.ray
def test_unfit_parquet_is_refused_by_column(tmp_path: Path, ray_session: None) -> None:
    file = write(tmp_path / "a.parquet", img=DATA, path=["a", "b", "c"])
    with pytest.raises(
        ValueError, match=r"a\.parquet has no column image; it has img, path\. .* needs image \(bytes\)"
    ):
        open_source(file)
    file = write(tmp_path / "b.parquet", label=["x"])
    with pytest.raises(ValueError, match=r"has no column image and path; it has label"):
        open_source(file)
    file = write(tmp_path / "c.parquet", image=[1, 2], path=["a", "b"])
    with pytest.raises(ValueError, match=r"c\.parquet: column image must hold bytes.* it holds int64"):
        open_source(file)
    file = write(tmp_path / "d.parquet", image=pa.array([], pa.binary()), path=pa.array([], pa.string()))
    with pytest.raises(ValueError, match=r"d\.parquet has no rows"):
        open_source(file)
