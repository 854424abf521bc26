"""What earlier lists have: inputs that are known are left out, and what differs between two lists is named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from source_files import listed, listed_rows

from retrieval.folder import Folder
from retrieval.sources.frozen_list import freeze
from retrieval.sources.known import Known, KnownInputs, difference


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
    fourth = freeze(str(photos), Folder(tmp_path / "4"), known=[again])
    assert [row["path"] for row in listed_rows(tmp_path / "4")] == ["1.jpg", "2.jpg", "3.jpg", "new.jpg"]
    assert fourth.changed == ("1.jpg", "2.jpg", "3.jpg")
    # What a later list has made of a path counts: here, that it could not be read, though it is again as it once was.
    freeze(str(photos), Folder(tmp_path / "5"), known=[Known(Folder(tmp_path / "2"))])
    lists = [Known(Folder(tmp_path / "all")), Known(Folder(tmp_path / "2"), ["new.jpg"]), Known(Folder(tmp_path / "5"))]
    freeze(str(photos), Folder(tmp_path / "6"), known=lists)
    assert [row["path"] for row in listed_rows(tmp_path / "6")] == ["new.jpg"]
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
    known = KnownInputs([Known(Folder(tmp_path / "list"))])
    assert sum(array.nbytes for array in vars(known).values() if isinstance(array, np.ndarray)) == 16 * 100


def test_a_file_that_changes_after_a_run_is_seen_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"first")
    listed(tmp_path / "photos", tmp_path / "before")
    (tmp_path / "photos/a.jpg").write_bytes(b"another of that name")
    listing, _ = listed(tmp_path / "photos", tmp_path / "after", known=[tmp_path / "before"])
    assert listing.changed == ("a.jpg",)
    assert difference(Folder(tmp_path / "before"), Folder(tmp_path / "after")) == "1 input has changed (a.jpg)"
