"""One job at a time on one target."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from errors import refused
from waiting import wait_until

from cluster import hold as module
from cluster.hold import HOLDS, LOST_SECONDS, STALE_SECONDS, check_held, hold, holds
from retrieval.folder import Folder


@pytest.fixture(params=["disk", "object store"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "disk":
        return Folder(tmp_path)
    return Folder(f"s3://bucket/{tmp_path.name}?{request.getfixturevalue('bucket')}")


def other(target: Folder, **changes: Any) -> None:
    """A lock of another process, which lives unless said otherwise."""
    content = {"job": "mindseye index there", "host": "elsewhere", "pid": 42, "since": "2026-01-01T00:00:00+00:00"}
    target.write_json(f"{HOLDS}/other.json", content | changes)


def test_a_second_job_is_refused_and_told_who_has_locked_the_target(target: Folder) -> None:
    other(target)
    with refused("locked", "target") as caught, hold(target, "mine"):
        pytest.fail("it has begun")
    for fact in ("mindseye index there", "process 42", "elsewhere", f"{STALE_SECONDS} s"):
        assert fact in str(caught.value)
    assert [each.job for each in holds(target)] == ["mindseye index there"]


def test_within_one_process_as_well(target: Folder) -> None:
    with hold(target, "first"), refused("locked") as caught, hold(target, "second"):
        pytest.fail("it has begun")
    assert "first" in str(caught.value)
    assert holds(target) == []
    with hold(target, "third"):
        assert [each.job for each in holds(target)] == ["third"]


def test_take_over_breaks_a_live_lock(target: Folder) -> None:
    other(target)
    with hold(target, "mine", take_over=True):
        assert [each.job for each in holds(target)] == ["mine"]


def test_the_lock_of_a_process_that_died_here_is_stale(target: Folder) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    boot, pids = module._process_space()
    other(target, host=socket.gethostname(), pid=gone.pid, boot=boot, pids=pids)
    assert holds(target)[0].dead
    with hold(target, "mine"):
        assert [each.job for each in holds(target)] == ["mine"]


def test_a_process_of_another_container_of_the_same_host_name_is_not_known_to_be_dead(target: Folder) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    boot, pids = module._process_space()
    of_earlier_versions: dict[str, Any] = {}
    for changes in ({"boot": boot, "pids": "pid:[1]"}, {"boot": "another", "pids": pids}, of_earlier_versions):
        other(target, host=socket.gethostname(), pid=gone.pid, **changes)
        [read] = holds(target)
        assert (read.pid, read.dead, read.stale) == (gone.pid, False, False)
        with refused("locked"), hold(target, "mine"):
            pytest.fail("it has begun")


def test_a_record_of_a_later_version_is_a_lock(target: Folder) -> None:
    other(target, more="than we know")
    with refused("locked"), hold(target, "mine"):
        pytest.fail("it has begun")


def test_a_job_whose_lock_was_taken_over_publishes_nothing(target: Folder) -> None:
    check_held(target / "gallery")  # nothing was locked
    with hold(target, "first"):
        check_held(target / "gallery")
        with hold(target, "second", take_over=True):
            pass
        with refused("lock-lost", "target") as caught:
            check_held(target / "gallery")
        assert "taken over" in str(caught.value)
        check_held(Folder(f"{target.path}2"))  # another target
    check_held(target)


def test_a_job_that_slept_publishes_nothing_and_leaves_its_lock_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.02)
    slept, clock = threading.Event(), module._clock
    monkeypatch.setattr(module, "_clock", lambda: clock() + slept.is_set() * (LOST_SECONDS + 1))
    assert LOST_SECONDS < STALE_SECONDS
    with hold(Folder(tmp_path), "mine"):
        check_held(Folder(tmp_path))
        [heartbeat] = [each for each in threading.enumerate() if getattr(each, "_target", None) is module._renew]
        slept.set()
        wait_until(lambda: not heartbeat.is_alive())
        with refused("lock-lost"):
            check_held(Folder(tmp_path))


def test_a_lock_without_a_heartbeat_is_stale(tmp_path: Path) -> None:
    other(Folder(tmp_path))
    file = tmp_path / HOLDS / "other.json"
    long_ago = file.stat().st_mtime - STALE_SECONDS - 1
    os.utime(file, (long_ago, long_ago))
    assert holds(Folder(tmp_path))[0].stale
    with hold(Folder(tmp_path), "mine"):
        assert not file.exists()


def test_a_lock_is_renewed_while_its_job_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.02)
    with hold(Folder(tmp_path), "mine"):
        [file] = (tmp_path / HOLDS).iterdir()
        os.utime(file, (0, 0))
        wait_until(lambda: file.stat().st_mtime > 0)
    assert list((tmp_path / HOLDS).iterdir()) == []


def test_the_heartbeat_ends_when_another_job_took_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.02)

    def heartbeats() -> int:
        return sum(getattr(thread, "_target", None) is module._renew for thread in threading.enumerate())

    with hold(Folder(tmp_path), "mine"):
        assert heartbeats() == 1
        [file] = (tmp_path / HOLDS).iterdir()
        file.unlink()

        def over() -> bool:
            file.unlink(missing_ok=True)  # a renewal may just have been under way
            return not heartbeats()

        wait_until(over)
        assert not file.exists()


def test_a_lock_that_cannot_be_read_does_not_pass_for_none(target: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    other(target)

    def away(self: Folder, name: str) -> None:
        raise OSError("the store is away")

    monkeypatch.setattr(Folder, "read_json", away)
    with pytest.raises(OSError, match="the store is away"), hold(target, "mine"):
        pytest.fail("it has begun")


def test_half_a_lock_file_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / HOLDS).mkdir()
    (tmp_path / HOLDS / "half.json").write_text('{"job": "mind')
    (tmp_path / HOLDS / "other.json").write_text(json.dumps({"of another": "version"}))
    with hold(Folder(tmp_path), "mine"):
        assert [each.job for each in holds(Folder(tmp_path))] == ["mine"]
