"""Checkpoints on disk: the newest whole one is found, damaged ones are skipped, and nothing foreign is loaded."""

from __future__ import annotations

import hashlib
import logging
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from retrieval.folder import Folder
from training import checkpoint


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of checkpoints: services that other tests left in this process log as well."""
    return [record.getMessage() for record in caplog.records if record.filename == "checkpoint.py"]


def write(run: Path, step: int) -> Path:
    """Write a checkpoint of a step; return its file."""
    folder = run / checkpoint.folder_name(step)
    checkpoint.write(
        Folder(folder), {"learner": {"step": step, "model": {"w": torch.full((3,), float(step))}}, "history": []}
    )
    return folder / checkpoint.FILE


def step_of(run: Path) -> int:
    state = checkpoint.newest(Folder(run))
    assert state is not None
    assert state["learner"]["model"]["w"].tolist() == [state["learner"]["step"]] * 3
    return state["learner"]["step"]


def test_the_newest_is_found_by_its_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (9, 1000, 25):
        write(tmp_path, step)
    (tmp_path / "zzz").mkdir()
    (tmp_path / "checkpoint_manager_snapshot.json").write_text("{}")
    assert step_of(tmp_path) == 1000
    assert not warnings_in(caplog)


def test_no_run_and_a_run_without_checkpoints_give_none(tmp_path: Path) -> None:
    assert checkpoint.newest(Folder(tmp_path / "none")) is None
    (tmp_path / "other").mkdir()
    assert checkpoint.newest(Folder(tmp_path)) is None


@pytest.mark.parametrize("damage", ["cut in half", "empty", "digest alone", "missing", "a bit flipped", "longer"])
def test_a_damaged_one_is_skipped_with_a_warning(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, 10)
    file = write(tmp_path, 20)
    data = file.read_bytes()
    spoilt = {
        "cut in half": data[: len(data) // 2],
        "empty": b"",
        "digest alone": data[:32],
        "a bit flipped": data[:100] + bytes([data[100] ^ 1]) + data[101:],
        "longer": data + b"\0",
    }
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(spoilt[damage])
    with caplog.at_level(logging.WARNING):
        assert step_of(tmp_path) == 10
    (warning,) = warnings_in(caplog)
    assert warning.endswith("step-00000020 is half-written; the one before it is used")


def test_if_all_are_damaged_the_run_starts_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (10, 20):
        write(tmp_path, step).write_bytes(b"half")
    assert checkpoint.newest(Folder(tmp_path)) is None
    assert len(warnings_in(caplog)) == 2


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    for step in (9, 1000, 25, 10):
        write(tmp_path, step)
    (tmp_path / "zzz").mkdir()
    checkpoint.delete_old(Folder(tmp_path))
    names = [checkpoint.folder_name(step) for step in (25, 1000)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "zzz"]
    checkpoint.delete_old(Folder(tmp_path / "none"))


class Foreign:
    """Runs code when it is unpickled by a plain loader."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_foreign_objects_are_never_loaded(plain_pickle: bool, tmp_path: Path) -> None:
    mark, buffer = tmp_path / "code ran", BytesIO()
    content = {"learner": Foreign(mark)}
    if plain_pickle:
        pickle.dump(content, buffer, protocol=2)
    else:
        torch.save(content, buffer)
    file = write(tmp_path, 10)
    file.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights.only"):
        checkpoint.newest(Folder(tmp_path))
    assert not mark.exists()
