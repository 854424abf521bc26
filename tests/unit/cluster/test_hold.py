"""One job at a time on one target."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import hold as module
from cluster.hold import HOLDS, STALE_SECONDS, hold, holds
from retrieval.folder import Folder


@pytest.fixture(params=["disk", "object store"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "disk":
        return Folder(tmp_path)
    return Folder(f"s3://bucket/{tmp_path.name}?{request.getfixturevalue('bucket')}")


def other(target: Folder, **changes: Any) -> None:
    """A hold of another process, which lives unless said otherwise."""
    content = {"job": "mindseye index there", "host": "elsewhere", "pid": 42, "since": "2026-01-01T00:00:00+00:00"}
    target.write_json(f"{HOLDS}/other.json", content | changes)


def test_a_second_job_is_refused_and_told_who_holds_the_target(target: Folder) -> None:
    other(target)
    said = "is held by mindseye index there of process 42 on elsewhere, since"
    with pytest.raises(ValueError, match=said) as caught, hold(target, "mine"):
        pytest.fail("it has begun")
    assert f"ends {STALE_SECONDS} s after its last sign of life" in str(caught.value)
    assert "--take-over" in str(caught.value)
    assert [each.job for each in holds(target)] == ["mindseye index there"]


def test_within_one_process_as_well(target: Folder) -> None:
    with hold(target, "first"), pytest.raises(ValueError, match="is held by first"), hold(target, "second"):
        pytest.fail("it has begun")
    assert holds(target) == []
    with hold(target, "third"):
        assert [each.job for each in holds(target)] == ["third"]


def test_take_over_ends_a_hold_that_lives(target: Folder) -> None:
    other(target)
    with hold(target, "mine", take_over=True):
        assert [each.job for each in holds(target)] == ["mine"]


def test_a_hold_of_a_process_that_died_here_is_no_hold(target: Folder) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    other(target, host=socket.gethostname(), pid=gone.pid)
    assert holds(target)[0].dead
    with hold(target, "mine"):
        assert [each.job for each in holds(target)] == ["mine"]


def test_a_hold_without_a_sign_of_life_is_stale(tmp_path: Path) -> None:
    other(Folder(tmp_path))
    file = tmp_path / HOLDS / "other.json"
    long_ago = file.stat().st_mtime - STALE_SECONDS - 1
    os.utime(file, (long_ago, long_ago))
    assert holds(Folder(tmp_path))[0].stale
    with hold(Folder(tmp_path), "mine"):
        assert not file.exists()


def test_a_hold_is_renewed_while_it_lasts_and_not_when_another_took_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEWED_SECONDS", 0.02)
    with hold(Folder(tmp_path), "mine"):
        [file] = (tmp_path / HOLDS).iterdir()
        os.utime(file, (0, 0))
        while file.stat().st_mtime == 0:
            pass
        file.unlink()
        pause = module.threading.Event()
        pause.wait(0.1)
        file.unlink(missing_ok=True)  # a renewal may just have been under way
        pause.wait(0.2)
        assert not file.exists()
    assert list((tmp_path / HOLDS).iterdir()) == []


def test_a_hold_that_can_not_be_read_is_not_taken_for_none(target: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    other(target)

    def away(self: Folder, name: str) -> None:
        raise OSError("the store is away")

    monkeypatch.setattr(Folder, "read_json", away)
    with pytest.raises(OSError, match="the store is away"), hold(target, "mine"):
        pytest.fail("it has begun")


def test_half_a_hold_is_no_hold(tmp_path: Path) -> None:
    (tmp_path / HOLDS).mkdir()
    (tmp_path / HOLDS / "half.json").write_text('{"job": "mind')
    (tmp_path / HOLDS / "other.json").write_text(json.dumps({"of another": "version"}))
    with hold(Folder(tmp_path), "mine"):
        assert [each.job for each in holds(Folder(tmp_path))] == ["mine"]
