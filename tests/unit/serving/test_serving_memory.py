"""The query memory: one making for all who ask, whoever leaves, fails, dies or writes at the same time."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from remembering import Maker, entry, same
from waiting import until

from serving.memory import StoreError
from serving.memory.entry import Remembered
from serving.memory.local import MemoryStore
from serving.memory.memory import Memory
from serving.memory.sqlite import SqliteStore

ROOT = Path(__file__).parents[3]


# Remembering


def test_hit_miss_and_eviction() -> None:
    async def case() -> None:
        store = MemoryStore()
        memory, maker = Memory(store, entries=2), Maker(0)
        assert await memory.recall("a") is None
        made, was_there = await memory.obtain("a", maker)
        assert not was_there
        assert await memory.obtain("a", maker) == (made, True)
        await memory.obtain("b", maker)
        await memory.recall("a")
        await memory.obtain("c", maker)  # evicts b here, not from the store
        assert maker.begun == 3
        for name in "abc":
            store.drop(name)
        assert [await memory.recall(name) is not None for name in "abc"] == [True, False, True]
        assert await memory.remembered_image("a", 1) == b"jpeg 1"
        assert await memory.remembered_image("a", 7) is None
        assert await memory.remembered_image("b", 0) is None

    asyncio.run(case())


def test_what_was_made_is_there_after_a_restart(tmp_path: Path) -> None:
    async def first() -> Remembered:
        return (await Memory(SqliteStore(tmp_path / "memory")).obtain("a", Maker(0)))[0]

    async def second() -> tuple[Remembered, bool]:
        return await Memory(SqliteStore(tmp_path / "memory")).obtain("a", Maker(error=AssertionError("made again")))

    made = asyncio.run(first())
    found, was_there = asyncio.run(second())
    assert was_there
    assert same(made, found)


def test_a_damaged_entry_is_made_again(tmp_path: Path, serve_log: pytest.LogCaptureFixture) -> None:
    async def case() -> None:
        store, maker = SqliteStore(tmp_path / "memory"), Maker(0)
        await Memory(store).obtain("a", maker)
        data = store.get("a")
        assert data
        store.put("a", data[:-20])
        assert await Memory(store).recall("a") is None
        assert store.get("a") is None
        _, was_there = await Memory(store).obtain("a", maker)
        assert not was_there
        assert store.get("a") == data

    asyncio.run(case())
    assert "what is remembered as a is damaged and will be made again: the checksum" in serve_log.text


def test_images_that_were_all_rejected_are_remembered_too() -> None:
    async def case() -> None:
        memory = Memory(MemoryStore())

        async def make() -> Remembered:
            return entry(images=0)

        await memory.obtain("a", make)
        found, was_there = await memory.obtain("a", make)
        assert was_there
        assert found.rejected == ["constant"]

    asyncio.run(case())


# Single flight in one process


def test_a_hundred_who_ask_at_once_cost_one_making() -> None:
    async def case() -> None:
        memory, maker = Memory(MemoryStore()), Maker()
        answers = await asyncio.gather(*(memory.obtain("a", maker) for _ in range(100)))
        assert maker.begun == 1
        assert {id(found) for found, _ in answers} == {id(answers[0][0])}
        other = await asyncio.gather(*(memory.obtain(name, maker) for name in "bcd"))
        assert maker.begun == 4
        assert not any(was_there for _, was_there in other)

    asyncio.run(case())


def test_a_failure_reaches_all_who_wait_and_is_not_remembered(caplog: pytest.LogCaptureFixture) -> None:
    async def case() -> None:
        store = MemoryStore()
        memory, broken = Memory(store), Maker(error=RuntimeError("out of memory"))
        answers = await asyncio.gather(*(memory.obtain("a", broken) for _ in range(10)), return_exceptions=True)
        assert [str(answer) for answer in answers] == ["out of memory"] * 10
        assert broken.begun == 1
        assert store.claim("a", "anyone", 1)
        store.release("a", "anyone")
        _, was_there = await memory.obtain("a", Maker(0))
        assert not was_there

    asyncio.run(case(), debug=True)
    assert "never retrieved" not in caplog.text


def test_the_making_goes_on_while_anyone_waits_and_ends_with_the_last() -> None:
    async def case() -> None:
        store = MemoryStore()
        memory, maker = Memory(store), Maker(0, may=False)
        asking = [asyncio.create_task(memory.obtain("a", maker)) for _ in range(3)]
        await until(lambda: maker.begun)
        asking[0].cancel()
        asking[1].cancel()
        await asyncio.wait(asking[:2])
        maker.may.set()
        found, _ = await asking[2]
        assert (maker.begun, maker.ended) == (1, 1)

        maker.may.clear()
        asking = [asyncio.create_task(memory.obtain("b", maker)) for _ in range(3)]
        await until(lambda: maker.begun == 2)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        # Who asks right now must not be given the end of the others.
        again_task = asyncio.create_task(memory.obtain("b", maker))
        await until(lambda: maker.begun == 3)
        maker.may.set()
        again, was_there = await again_task
        assert (was_there, maker.begun, maker.ended) == (False, 3, 2)
        assert same(found, again)
        assert store.claim("b", "anyone", 1)

    asyncio.run(case())


def test_a_deadline_leaves_the_making_running_for_who_asks_next(caplog: pytest.LogCaptureFixture) -> None:
    async def case() -> None:
        memory, maker = Memory(MemoryStore()), Maker(0, may=False)
        with pytest.raises(TimeoutError, match=r"not made within 0\.05 s"):
            await memory.obtain("a", maker, seconds=0.05)
        # Nor does one who leaves afterwards end it.
        asking = asyncio.create_task(memory.obtain("a", maker))
        await until(lambda: memory._flights["a"]._waiting)
        asking.cancel()
        await asyncio.wait([asking])
        await until(lambda: maker.begun)
        maker.may.set()
        await until(lambda: maker.ended)
        _, was_there = await memory.obtain("a", maker)
        assert was_there
        assert (maker.begun, maker.ended) == (1, 1)

        broken = Maker(0, error=RuntimeError("nobody hears this"), may=False)
        with pytest.raises(TimeoutError):
            await memory.obtain("b", broken, seconds=0.01)
        broken.may.set()
        await until(lambda: not memory._flights)
        assert broken.ended

    asyncio.run(case(), debug=True)
    assert "never retrieved" not in caplog.text


def test_a_timeout_around_it_counts_as_leaving() -> None:
    async def case() -> None:
        store = MemoryStore()
        memory, maker = Memory(store), Maker(0, may=False)
        asking = asyncio.create_task(asyncio.wait_for(memory.obtain("a", maker), 0.5))
        await until(lambda: maker.begun or asking.done())
        with pytest.raises(TimeoutError):
            await asking
        maker.may.set()
        await until(lambda: store.claim("a", "anyone", 1))
        assert maker.ended == 0

    asyncio.run(case())


def test_the_making_does_not_belong_to_the_request_that_was_first() -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")

    async def case() -> None:
        async def make() -> Remembered:
            return entry(text=request.get())

        request.set("the first")
        made, _ = await Memory(MemoryStore()).obtain("a", make)
        assert made.text == "none"

    asyncio.run(case())


def test_closing_ends_what_is_being_made_and_gives_the_lease_back() -> None:
    async def case() -> None:
        store = MemoryStore()
        memory, maker = Memory(store), Maker(may=False)
        with pytest.raises(TimeoutError):
            await memory.obtain("a", maker, seconds=0.05)
        await until(lambda: maker.begun)
        assert not store.claim("a", "anyone", 1)
        await memory.close()
        assert store.claim("a", "anyone", 1)
        assert (maker.begun, maker.ended) == (1, 0)

    asyncio.run(case())


# Single flight across processes


def test_two_replicas_make_an_entry_once() -> None:
    async def case() -> None:
        store, maker = MemoryStore(), Maker(0.3)
        replicas = [Memory(store) for _ in range(4)]
        answers = await asyncio.gather(*(memory.obtain("a", maker) for memory in replicas for _ in range(25)))
        assert maker.begun == 1
        assert sorted({was_there for _, was_there in answers}) == [False, True]

    asyncio.run(case())


def test_a_lease_is_prolonged_while_its_owner_works() -> None:
    async def case() -> None:
        class Counting(MemoryStore):
            claims = 0

            def claim(self, key: str, owner: str, seconds: float) -> bool:
                granted = super().claim(key, owner, seconds)
                self.claims += granted
                return granted

        store, maker = Counting(), Maker(0, may=False)
        replicas = [Memory(store, lease_seconds=2) for _ in range(2)]
        asking = [asyncio.create_task(memory.obtain("a", maker)) for memory in replicas]
        await until(lambda: store.claims >= 5)  # one in each third of a lease: the first lease is over
        maker.may.set()
        await asyncio.gather(*asking)
        assert maker.begun == 1

    asyncio.run(case())


def test_the_lease_of_one_that_died_is_taken_over() -> None:
    async def case() -> None:
        store, maker = MemoryStore(), Maker(0)
        assert store.claim("a", "one that died", 1.5)
        memory = Memory(store)
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            await memory.obtain("a", maker, seconds=0.1)
        assert maker.begun == 0
        await memory.obtain("a", maker)
        assert maker.begun == 1
        assert time.monotonic() - begun > 1

    asyncio.run(case())


def test_a_failure_elsewhere_lets_the_next_replica_try() -> None:
    async def case() -> None:
        store, broken, maker = MemoryStore(), Maker(error=RuntimeError("broken"), may=False), Maker(0)
        first = asyncio.create_task(Memory(store).obtain("a", broken))
        await until(lambda: broken.begun)
        second = asyncio.create_task(Memory(store).obtain("a", maker))
        await asyncio.sleep(0.1)
        broken.may.set()
        _, was_there = await second
        assert not was_there
        with pytest.raises(RuntimeError, match="broken"):
            await first

    asyncio.run(case())


REPLICA = """
import asyncio, sys
sys.path.insert(0, "tests")
from remembering import Maker
from serving.memory.memory import Memory
from serving.memory.sqlite import SqliteStore

async def main():
    memory, maker = Memory(SqliteStore(sys.argv[1]), lease_seconds=float(sys.argv[4])), Maker(float(sys.argv[2]))
    sys.stdin.readline()
    for round in range(3):
        answers = await asyncio.gather(*(memory.obtain(f"{sys.argv[3]} {round}", maker) for _ in range(50)))
    print(maker.begun, len({found.text for found, _ in answers}))

print("ready", flush=True)
asyncio.run(main())
"""


def replica(file: Path, seconds: float, key: str, lease_seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", REPLICA, str(file), str(seconds), key, str(lease_seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def begin(*replicas: subprocess.Popen[str]) -> None:
    """Let replicas begin together, as soon as all are ready."""
    for one in replicas:
        assert one.stdout
        assert one.stdout.readline() == "ready\n"
    for one in replicas:
        assert one.stdin
        one.stdin.write("go\n")
        one.stdin.flush()


def test_processes_on_one_file_make_each_entry_once(tmp_path: Path) -> None:
    replicas = [replica(tmp_path / "memory", 0.5, "query", 15) for _ in range(2)]
    begin(*replicas)
    made = [one.communicate(timeout=60)[0].split() for one in replicas]
    assert sum(int(count) for count, _ in made) == 3
    assert [texts for _, texts in made] == ["1", "1"]


def test_a_process_that_is_killed_while_making_is_replaced(tmp_path: Path) -> None:
    store, maker = SqliteStore(tmp_path / "memory"), Maker(0)
    killed = replica(tmp_path / "memory", 60, "query", 2)
    begin(killed)
    while store.claim("query 0", "the test", 10):
        store.release("query 0", "the test")
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    asyncio.run(Memory(store).obtain("query 0", maker))
    assert maker.begun == 1


# A store that fails


class Failing(MemoryStore):
    """A store that takes its time and then fails, while ``away``."""

    def __init__(self) -> None:
        super().__init__()
        self.away, self.asked = True, 0

    def _fail(self) -> None:
        self.asked += 1
        if self.away:
            time.sleep(0.2)
            raise StoreError("the query memory cannot be used: timeout")

    def get(self, key: str) -> bytes | None:
        self._fail()
        return super().get(key)

    def put(self, key: str, value: bytes) -> None:
        self._fail()
        super().put(key, value)

    def claim(self, key: str, owner: str, seconds: float) -> bool:
        self._fail()
        return super().claim(key, owner, seconds)


def test_without_its_store_a_replica_remembers_on_its_own(
    serve_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Memory, "BACK_OFF_SECONDS", 300.0)

    async def case() -> None:
        store, maker = Failing(), Maker(0.05)
        memory = Memory(store)
        answers = await asyncio.gather(*(memory.obtain("a", maker) for _ in range(100)))
        assert maker.begun == 1
        assert not answers[0][1]
        for name in "bcd":
            await memory.obtain(name, maker)
        assert store.asked == 1  # none of these waited for it again
        assert (await memory.obtain("a", maker))[1]
        store.away = False
        memory._failed_until = 0.0
        await memory.obtain("e", maker)
        assert store.get("e")

    asyncio.run(case())
    assert serve_log.text.count("timeout; for 300 s each replica remembers on its own") == 1


def test_the_event_loop_goes_on_while_the_store_is_slow() -> None:
    class Slow(MemoryStore):
        asked, goes_on = threading.Event(), threading.Event()

        def get(self, key: str) -> bytes | None:
            self.asked.set()
            assert self.goes_on.wait(30), "the event loop waits for the store"
            return super().get(key)

    async def case() -> None:
        asking = asyncio.create_task(Memory(Slow()).recall("a"))
        await until(Slow.asked.is_set)
        assert not asking.done()
        Slow.goes_on.set()
        assert await asking is None

    asyncio.run(case())
