"""What replicas share: entries, leases and settings, in a file, in Redis and in memory."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from errors import refused
from waiting import wait_until

from serving.memory import Store, StoreError, open_store
from serving.memory import sqlite as sqlite_module
from serving.memory.local import MemoryStore
from serving.memory.redis import PASSWORD, RedisStore, shown
from serving.memory.sqlite import SqliteStore

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["sqlite", "redis", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "sqlite":
        return open_store(f"sqlite:{tmp_path}/new/folder/memory.sqlite")
    if request.param == "memory":
        return open_store("memory:")
    import redis

    url = request.getfixturevalue("redis_url")
    redis.Redis.from_url(url).flushall()
    return open_store(url)


def test_entries_and_settings(store: Store) -> None:
    assert store.get("a") is None
    store.put("a", b"one\x00\xff")
    store.put("b", b"")
    assert (store.get("a"), store.get("b")) == (b"one\x00\xff", b"")
    store.put("a", b"two")
    assert store.get("a") == b"two"
    store.drop("a")
    store.drop("never there")
    assert store.get("a") is None

    assert store.setting("index") is None
    store.set_setting("index", "s3://ünï/1")
    store.set_setting("index", "s3://ünï/2")
    assert store.setting("index") == "s3://ünï/2"


def test_a_lease_has_one_owner(store: Store) -> None:
    assert store.claim("key", "us", 30)
    assert not store.claim("key", "them", 30)
    assert store.claim("another key", "them", 30)
    store.release("key", "them")
    assert not store.claim("key", "them", 30)
    store.release("key", "us")
    assert store.claim("key", "them", 30)


def test_a_lease_runs_out_and_its_owner_can_prolong_it(store: Store) -> None:
    assert store.claim("key", "us", 0.3)
    assert store.claim("key", "us", 30)
    time.sleep(0.4)  # the first term is over, the second is not
    assert not store.claim("key", "them", 30)
    assert store.claim("key", "us", 0.1)
    wait_until(lambda: store.claim("key", "them", 30))
    store.release("key", "us")
    assert not store.claim("key", "us", 30)


def test_of_many_who_claim_at_once_one_succeeds(store: Store) -> None:
    claimed: list[int] = []
    together = threading.Barrier(8)

    def claim(owner: int) -> None:
        together.wait()
        for key in range(20):
            if store.claim(f"key-{key}", str(owner), 30):
                claimed.append(key)

    threads = [threading.Thread(target=claim, args=(owner,)) for owner in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(20))


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_the_longest_unused_entries_are_evicted(tmp_path: Path, kind: str) -> None:
    store = SqliteStore(tmp_path / "memory", entries=3) if kind == "sqlite" else MemoryStore(entries=3)
    store.set_setting("index", "kept")
    for key in "abc":
        store.put(key, key.encode())
    assert store.get("a")
    store.put("d", b"d")
    store.put("c", b"again")
    store.put("e", b"e")
    assert {key for key in "abcde" if store.get(key)} == {"c", "d", "e"}
    assert store.setting("index") == "kept"


def test_redis_forgets_entries_a_year_after_their_last_use_and_settings_never(redis_url: str) -> None:
    import redis

    store, server = RedisStore(redis_url), redis.Redis.from_url(redis_url)
    store.put("a", b"one")
    server.expire("mindseye:entry:a", 5)
    assert store.get("a") == b"one"
    assert server.ttl("mindseye:entry:a") > 360 * 24 * 3600
    store.set_setting("index", "here")
    assert server.ttl("mindseye:setting:index") == -1


def test_the_password_of_a_redis_may_be_in_the_environment(
    locked_redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match=r"(?i)authenti"):
        RedisStore(locked_redis_url).put("a", b"one")
    monkeypatch.setenv(PASSWORD, "secret")
    RedisStore(locked_redis_url).put("a", b"one")
    monkeypatch.setenv(PASSWORD, "another")
    assert RedisStore(locked_redis_url.replace("//", "//:secret@")).get("a") == b"one"


def test_a_file_is_there_after_a_restart_and_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "memory.sqlite"
    first = SqliteStore(file)
    first.put("a", b"one")
    first.set_setting("index", "here")
    assert first.claim("a", "one that is gone", 0.1)
    del first
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    second = SqliteStore(file)
    assert (second.get("a"), second.setting("index")) == (b"one", "here")
    wait_until(lambda: second.claim("a", "another", 30))


def test_a_lease_ends_although_the_clock_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(tmp_path / "memory")
    now = time.time()
    assert store.claim("key", "us", 30)
    monkeypatch.setattr(sqlite_module.time, "time", lambda: now - 3600)
    assert store.claim("key", "them", 30)
    assert not store.claim("key", "us", 30)


WRITER = """
import sys
from serving.memory.sqlite import SqliteStore
store = SqliteStore(sys.argv[1], entries=500)
for i in range(100):
    store.put(f"{sys.argv[2]}-{i}", sys.argv[2].encode() * 5000)
    store.put("shared", sys.argv[2].encode() * 5000)
    assert store.get(f"{sys.argv[2]}-{i}") == sys.argv[2].encode() * 5000
    assert len(set(store.get("shared"))) == 1
print(sum(store.claim(f"lease-{i}", sys.argv[2], 60) for i in range(100)))
"""


def test_several_processes_write_one_file_at_once(tmp_path: Path) -> None:
    file = tmp_path / "memory.sqlite"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(file), name], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for name in "xyz"
    ]
    claimed = [int(writer.communicate(timeout=90)[0]) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert sum(claimed) == 100
    store = SqliteStore(file)
    for name in "xyz":
        assert all(store.get(f"{name}-{i}") == name.encode() * 5000 for i in range(100))
    [[verdict]] = sqlite3.connect(file).execute("PRAGMA integrity_check")
    assert verdict == "ok"


def test_a_file_that_is_no_store_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("these are notes\n" * 100)
    with refused("wrong-kind", "store"):
        SqliteStore(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "these are notes\n" * 100
    SqliteStore(tmp_path / "newer")
    with sqlite3.connect(tmp_path / "newer") as database:
        database.execute("PRAGMA user_version = 9")
    with refused("wrong-format", "store"):
        SqliteStore(tmp_path / "newer")
    with pytest.raises(StoreError, match=r"File exists|Not a directory"):
        SqliteStore(tmp_path / "notes.txt" / "inside")


def test_a_file_that_is_damaged_or_locked_later_is_a_store_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SqliteStore, "WAIT_SECONDS", 0.1)
    store = SqliteStore(tmp_path / "memory")
    store.put("a", b"one")
    other = sqlite3.connect(tmp_path / "memory", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="database is locked"):
        store.put("b", b"two")
    assert store.get("a") == b"one"  # it can be read, although the use cannot be recorded
    other.execute("ROLLBACK")
    store.put("b", b"two")
    other.execute("DROP TABLE entries")
    with pytest.raises(StoreError, match="no such table"):
        store.get("a")


def test_a_redis_that_is_away_is_a_store_error_without_its_password() -> None:
    pytest.importorskip("redis")
    store = open_store("redis://user:secret@127.0.0.1:9/0")
    with pytest.raises(StoreError, match=r"redis://127\.0\.0\.1:9/0") as caught:
        store.get("a")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["memory", "sqlite:", "memory:/x", "postgres://user:secret@host/db", "", "/a/file"])
def test_an_unknown_store_is_refused_with_the_forms_there_are(uri: str) -> None:
    with refused("unknown-store", "store") as caught:
        open_store(uri)
    assert "secret" not in str(caught.value)


def test_a_wrong_redis_url_and_a_missing_package_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redis")
    with refused("bad-url", "store") as caught:
        open_store("redis://user:secret@host:port/0")
    assert "secret" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "redis", None)
    with refused("package-missing", "store"):
        open_store("redis://user:secret@host/0")


def test_a_uri_is_shown_without_its_password() -> None:
    assert shown("redis://user:p@ss@host:1/0") == "redis://host:1/0"
    assert shown("sqlite:/a@b/c") == "sqlite:/a@b/c"
