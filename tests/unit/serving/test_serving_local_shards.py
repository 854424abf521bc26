"""Shards in the ranker's own process: one that fails or hangs is missed, and nothing waits for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny_artifacts import Collection

from cluster.cores import usable_cores
from cluster.profile import ServeSettings, Shards
from retrieval.artifacts import Index
from retrieval.index.hits import merge_topk
from retrieval.index.shard import Shard
from serving.app import shard_deployments
from serving.deployments import local_shards
from serving.deployments.calls import Unavailable
from serving.deployments.local_shards import LocalShards
from serving.deployments.merging import ranked
from serving.deployments.shards import Opened

SECONDS = 30.0


def run(test: Any) -> Any:
    return asyncio.run(test)


@pytest.fixture
def query(collection: Collection) -> np.ndarray:
    return np.concatenate([collection.vlm_ND1[3], collection.vision_ND2[3]]).astype(np.float32) / 2


def spoil(monkeypatch: pytest.MonkeyPatch, shards: LocalShards, number: int, spoiled: Callable[[], None]) -> None:
    """Have searches in one shard do something else first."""
    assert shards._versions.last
    shard = shards._versions.last.shards[number]
    plain = shard.search

    def search(*arguments: Any) -> Any:
        spoiled()
        return plain(*arguments)

    monkeypatch.setattr(shard, "search", search)


def test_a_shard_that_fails_is_missed_and_its_fault_is_logged(
    collection: Collection, query: np.ndarray, monkeypatch: pytest.MonkeyPatch, serve_log: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("of the search")

    async def check() -> None:
        shards = LocalShards()
        await shards.start(collection.index.uri)
        spoil(monkeypatch, shards, 1, fail)
        found = await shards.search(collection.index.uri, query, 5, seconds=SECONDS)
        assert (found.answered, [str(trouble) for trouble in found.troubles]) == (1, ["shard 1 failed"])
        alone = merge_topk([collection.index.shard(0).search(query, 5)], 5)
        assert [row.id for row in ranked(found.parts, 5, collection.index.manifest.sources)] == alone.ids[0].tolist()
        with pytest.raises(Unavailable):
            await shards.check_health()

    run(check())
    assert "ZeroDivisionError" in serve_log.text


def test_a_shard_that_hangs_is_missed_in_time_and_no_other_waits_for_it(
    collection: Collection, query: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = threading.Event()

    async def check() -> None:
        shards = LocalShards()
        await shards.start(collection.index.uri)
        spoil(monkeypatch, shards, 1, lambda: end.wait(60) and None)
        begun = time.monotonic()
        asked = [shards.search(collection.index.uri, query, 5, seconds=2.0) for _ in range(3 * usable_cores())]
        both = shards.search_each(collection.index.uri, np.stack([query, query / 2]), 5, seconds=2.0)
        for found in [*await asyncio.gather(*asked), *await both]:
            assert (found.answered, [trouble.trouble for trouble in found.troubles]) == (1, ["late"])
        assert time.monotonic() - begun < 20
        monkeypatch.setattr(local_shards, "HEALTH_SECONDS", 0.1)
        with pytest.raises(Unavailable):  # every thread of the shard hangs, so that it is of no use any more
            await shards.check_health()
        end.set()
        monkeypatch.setattr(local_shards, "HEALTH_SECONDS", SECONDS)
        await shards.check_health()
        found = await shards.search(collection.index.uri, query, 5, seconds=SECONDS)
        assert (found.answered, found.troubles) == (2, [])

    try:
        run(check())
    finally:
        end.set()


def test_neither_searching_nor_opening_blocks_the_event_loop(
    collection: Collection, query: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both wait for what only the event loop does meanwhile."""
    turn = threading.Event()
    plain = Index.shard

    def opening(*arguments: Any, **options: Any) -> Any:
        assert turn.wait(SECONDS)
        return plain(*arguments, **options)

    monkeypatch.setattr(Index, "shard", opening)

    async def check() -> None:
        shards = LocalShards()
        for work in (shards.open, lambda uri: shards.search(uri, query, 5, seconds=SECONDS)):
            turn.clear()
            task = asyncio.ensure_future(work(collection.index.uri))
            await asyncio.sleep(0.01)
            turn.set()
            await task
            spoil(monkeypatch, shards, 0, lambda: turn.wait(SECONDS) or pytest.fail("the event loop was blocked"))

    run(check())


def test_a_version_is_opened_once_however_many_searches_give_up_waiting_for_it(
    collection: Collection, query: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, opened, plain = threading.Event(), [], Index.shard

    def opening(index: Index, number: int, **options: Any) -> Any:
        opened.append(number)
        assert end.wait(SECONDS)
        return plain(index, number, **options)

    monkeypatch.setattr(Index, "shard", opening)

    async def check() -> None:
        shards = LocalShards()
        for _ in range(3):
            with pytest.raises(Unavailable) as error:
                await shards.search(collection.index.uri, query, 5, seconds=0.05)
            assert error.value.trouble == "late"
        end.set()
        assert (await shards.search(collection.index.uri, query, 5, seconds=SECONDS)).answered == 2

    run(check())
    assert opened == [0, 1]


def test_a_version_that_cannot_be_opened_is_a_fault_of_the_service(collection: Collection, query: np.ndarray) -> None:
    async def check() -> None:
        shards = LocalShards()
        await shards.start(collection.index.uri)
        with pytest.raises(Unavailable) as error:
            await shards.search("/nowhere/index/000001", query, 5, seconds=SECONDS)
        assert (error.value.part, error.value.trouble) == ("every shard of the index", "failed")
        assert (await shards.search(collection.index.uri, query, 5, seconds=SECONDS)).answered == 2

    run(check())


def test_each_shard_is_searched_on_its_own(collection: Collection, query: np.ndarray) -> None:
    opened = Opened(dict(enumerate(collection.index.shards())), 24, 2)
    together, apart = opened.search(query, 5), [one.search(query, 5) for one in opened.each()]
    assert [part.hits.ids.tolist() for part in together] == [part.hits.ids.tolist() for [part] in apart]


@pytest.mark.parametrize(
    ("settings", "deployments"),
    [
        ({}, 0),
        ({"local_index_bytes": 0}, 2),
        ({"shards": Shards(labels={"shard": "{shard}"})}, 2),
        ({"shards": Shards(labels={"mindseye/pool": "index"}, fallback=[])}, 0),
        ({"shards": Shards(gpus=0.5)}, 2),
    ],
)
def test_small_indexes_are_held_by_the_ranker_unless_their_shards_have_a_place(
    collection: Collection, settings: dict[str, Any], deployments: int
) -> None:
    assert shard_deployments(collection.index, ServeSettings(**settings)) == deployments
    size = sum(record.bytes for record in collection.index.manifest.shards)
    for limit, expected in ((size, 0), (size - 1, 2)):
        assert shard_deployments(collection.index, ServeSettings(local_index_bytes=limit)) == expected


def test_a_version_that_another_replica_names_first_is_compared_with_its_checksums_as_well(
    collection: Collection, query: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bool] = []
    sound = Index.shard

    def noted(index: Index, number: int, *, verified: bool = False) -> Shard:
        compared.append(verified)
        return sound(index, number, verified=verified)

    monkeypatch.setattr(Index, "shard", noted)

    async def check() -> None:
        shards = LocalShards()
        await shards.search(collection.index.uri, query, 5, seconds=SECONDS)
        await shards.open(collection.index.uri)

    run(check())
    assert compared == [True, True]
