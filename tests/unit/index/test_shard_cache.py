"""Copies of shards on this machine: downloaded once, bounded, no damage unnoticed, none evicted that is open."""

from __future__ import annotations

import errno
import gc
import hashlib
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from errors import refused
from far_folder import FarFolder

from retrieval.index import cache
from retrieval.index.cache import BYTES, FOLDER, Files, open_copy

SIZE = 1000
NAMES = ("index.faiss", "vectors.npy")


class Opened:
    """What was opened of a copy."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.content = [(place / name).read_bytes() for name in NAMES]


class Far:
    """A shard in a store."""

    def __init__(self, folder: Path, number: int = 0) -> None:
        self.content = [bytes([number, len(name)]) * (SIZE // 2) for name in NAMES]
        self.folder = FarFolder(folder / f"shard {number}")
        self.files: Files = {
            name: {"bytes": SIZE, "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in zip(NAMES, self.content, strict=True)
        }
        for name, content in zip(NAMES, self.content, strict=True):
            if not self.folder.exists(name):  # another process may be reading it
                self.folder.write_bytes(name, content)

    def open(self, **more: Any) -> Opened:
        opened = open_copy(self.folder, self.files, Opened, **more)
        assert opened.content == self.content
        return opened

    @property
    def downloads(self) -> int:
        assert self.folder.traffic.opened.count(NAMES[0]) == self.folder.traffic.opened.count(NAMES[1])
        return self.folder.traffic.opened.count(NAMES[0])


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a test."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    monkeypatch.delenv(BYTES, raising=False)
    return tmp_path / "cache"


def used(place: Path) -> int:
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())


def test_a_shard_is_downloaded_once_and_shared_by_whatever_has_its_checksums(tmp_path: Path, place: Path) -> None:
    one, same = Far(tmp_path), Far(tmp_path / "copied")
    first = one.open()
    assert first.place.parent == place
    assert [one.open().place, same.open().place, one.open(verified=True).place] == [first.place] * 3
    assert (one.downloads, same.downloads) == (1, 0)
    assert place.stat().st_mode & 0o077 == 0


def test_one_of_several_that_want_a_shard_downloads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far, plain = Far(tmp_path), cache._locked
    wanting, all_want = set(), threading.Event()

    def locked(*arguments: Any) -> Any:
        wanting.add(threading.get_ident())
        if len(wanting) == 4:
            all_want.set()
        return plain(*arguments)

    class Slow(FarFolder):
        def open_input(self, name: str) -> pa.NativeFile:
            assert all_want.wait(60)
            return super().open_input(name)

    monkeypatch.setattr(cache, "_locked", locked)
    far.folder = Slow(tmp_path / "shard 0")
    ready = threading.Barrier(4)

    def opened(_: int) -> Opened:
        ready.wait(60)
        return far.open()

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(opened, range(4)))
    assert len({opened.place for opened in made}) == 1
    assert far.downloads == 1


def test_who_waits_for_a_download_does_not_wait_for_who_has_it_open(tmp_path: Path) -> None:
    at_once = threading.Barrier(4)

    def hold(far: Far) -> None:
        at_once.wait(60)
        held.append(far.open())

    for number in range(50):
        far, held = Far(tmp_path, number), list[Opened]()
        threads = [threading.Thread(target=hold, args=(far,), daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(held) == 4
        assert len({opened.place for opened in held}) == far.downloads == 1


def _hold(folder: Path, opened: Any, over: Any) -> None:
    held = Far(folder).open()
    opened.put(str(held.place))
    over.wait(120)


def test_processes_that_hold_what_they_opened_keep_none_waiting(tmp_path: Path, place: Path) -> None:
    fresh = multiprocessing.get_context("spawn")
    Far(tmp_path)
    opened, over = fresh.Queue(), fresh.Event()
    processes = [fresh.Process(target=_hold, args=(tmp_path, opened, over), daemon=True) for _ in range(4)]
    try:
        for process in processes:
            process.start()
        places = {Path(opened.get(timeout=60)) for _ in processes}
    finally:
        over.set()
        for process in processes:
            process.join(60)
    assert len(places) == 1
    assert places.pop().parent == place
    assert [process.exitcode for process in processes] == [0] * 4


def test_bound_is_kept_and_what_was_not_used_for_longest_goes_first(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BYTES, str(2 * 2 * SIZE + 1))
    shards = [Far(tmp_path, number) for number in range(4)]
    for number in (0, 1, 0, 2, 0, 3, 0):
        shards[number].open()
        assert used(place) <= 2 * 2 * SIZE
    assert [shard.downloads for shard in shards] == [1, 1, 1, 1]
    assert len(list(place.glob("*.lock"))) == 2
    shards[2].open()
    assert [shard.downloads for shard in shards] == [1, 1, 2, 1]


def test_what_is_open_is_not_evicted_and_a_bound_too_small_is_no_error(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(BYTES, str(2 * SIZE))
    one, other = Far(tmp_path, 1), Far(tmp_path, 2)
    held = one.open()
    aside = other.open()
    assert not aside.place.exists()
    assert held.place.exists()
    assert f"{2 * SIZE:,} are in use" in caplog.text
    del held
    gc.collect()
    assert other.open().place.parent == place
    assert used(place) == 2 * SIZE
    monkeypatch.setenv(BYTES, "0")
    assert not other.open().place.exists()
    assert (one.downloads, other.downloads) == (1, 3)
    monkeypatch.setenv(BYTES, "7 GB")
    with refused("malformed", BYTES):
        one.open()


def test_an_unbounded_cache_leaves_half_of_the_disk(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(_: Path) -> Any:
        return type("Usage", (), {"free": 3 * 2 * SIZE - used(place)})

    monkeypatch.setattr("shutil.disk_usage", usage)
    shards = [Far(tmp_path, number) for number in range(3)]
    for shard in shards:
        assert shard.open().place.parent == place
    assert used(place) == 2 * SIZE


def test_a_download_has_its_room_on_the_disk_before_it_begins(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, plain, had = Far(tmp_path), cache._download, list[int]()
    far.folder.write_bytes("empty", b"")
    far.files = {**far.files, "empty": {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}}

    def download(source: FarFolder, files: Files, target: Path) -> None:
        had.extend(512 * (target / name).stat().st_blocks for name in NAMES)
        plain(source, files, target)

    monkeypatch.setattr(cache, "_download", download)
    assert far.open().place.parent == place
    assert min(had) >= SIZE


def test_a_disk_without_the_room_it_said_it_has_keeps_nothing(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    far = Far(tmp_path)
    assert not far.open().place.exists()
    assert "No space left" in caplog.text
    assert not list(place.glob("*.partial"))
    assert far.downloads == 1


def test_where_times_are_not_kept_no_copy_is_and_it_is_downloaded_once(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("os.utime", lambda *_, **__: None)
    far = Far(tmp_path)
    assert not far.open().place.exists()
    assert "does not keep the times" in caplog.text
    assert used(place) == 0
    assert far.downloads == 1


@pytest.mark.parametrize("verified", [False, True])
def test_a_copy_that_was_written_to_is_noticed_and_downloaded_again(
    tmp_path: Path, verified: bool, caplog: pytest.LogCaptureFixture
) -> None:
    far = Far(tmp_path)
    for damage in (b"x", far.content[1] + b"x", far.content[1][:-1] + b"x"):
        file = far.open().place / NAMES[1]
        file.write_bytes(damage)
        far.open(verified=verified)
        assert "downloaded again" in caplog.text
        caplog.clear()
    assert far.downloads == 4
    (far.open().place / NAMES[0]).unlink()
    far.open()
    assert far.downloads == 5


def test_rot_below_the_filesystem_is_noticed_by_checksums(tmp_path: Path) -> None:
    far = Far(tmp_path)
    file = far.open().place / NAMES[1]
    before = file.stat()
    file.write_bytes(far.content[1][:-1] + b"x")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    far.open(verified=True)
    assert far.downloads == 2


def test_a_copy_that_changed_while_it_is_open_is_left_to_who_has_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    far = Far(tmp_path)
    held = far.open()
    (held.place / NAMES[1]).write_bytes(b"x")
    assert far.open().place != held.place
    assert "is in use" in caplog.text
    del held
    gc.collect()
    far.open()
    assert far.downloads == 3


def test_a_shard_damaged_in_the_store_is_refused_and_leaves_nothing(tmp_path: Path, place: Path) -> None:
    far = Far(tmp_path)
    for damage in (far.content[1][:-1] + b"x", far.content[1][:-1], far.content[1] + b"x"):
        far.folder.write_bytes(NAMES[1], damage)
        with refused("damaged", NAMES[1]):
            far.open()
        assert used(place) == 0
    with refused("damaged", "../x"):
        open_copy(far.folder, {"../x": far.files[NAMES[0]]}, Opened)


def test_a_full_or_unusable_disk_is_gone_round_and_a_failing_store_is_not(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    far, plain = Far(tmp_path), cache._download

    def full(source: FarFolder, files: Files, target: Path) -> None:
        if target.parent == place:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(source, files, target)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_download", full)
        assert not far.open().place.exists()
    assert "is full" in caplog.text
    assert used(place) == 0
    (tmp_path / "a file").touch()
    with monkeypatch.context() as patch:
        patch.setenv(FOLDER, str(tmp_path / "a file/cache"))
        assert not far.open().place.exists()
    assert "cannot be written to" in caplog.text

    def away(*_: Any) -> None:
        raise OSError("the store is away")

    monkeypatch.setattr(cache, "_download", away)
    with pytest.raises(OSError, match="the store is away"):
        far.open()
    assert used(place) == 0
