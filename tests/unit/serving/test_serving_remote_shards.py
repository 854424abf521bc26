"""Shards that send what is likely to be needed, and the rest when it is: against one shard of all rows."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from plain_shard import build, names, queries, with_twins
from ray.exceptions import ActorDiedError

from retrieval.index.shard import Shard
from serving.deployments import shards as shards_module
from serving.deployments.merging import Found, ranked
from serving.deployments.remote_shards import RemoteShards
from serving.deployments.shards import Opened

ROWS, SHARDS, K = 1200, 12, 150
SOURCES = {"one": "images"}
SECONDS = 30.0


class Deployment:
    """A shard deployment of this process, and its handle. ``asked`` has the version, and whether all was asked for."""

    def __init__(self, versions: dict[str, Opened]) -> None:
        self.versions = versions
        self.asked: list[tuple[str, bool]] = []
        self.dead_from = 10**9
        self.search = SimpleNamespace(remote=lambda *arguments: asyncio.ensure_future(self._search(*arguments)))

    async def _search(self, version: str, query_D: np.ndarray, k: int, whole: bool = False) -> Any:
        self.asked.append((version, whole))
        if len(self.asked) > self.dead_from:
            raise ActorDiedError
        return self.versions[version].search(query_D, k, whole)


def shard(ids: list[str], vectors: np.ndarray) -> Shard:
    table = pa.table({"path": ids, "label": ids, "batch": ["one"] * len(ids), "note": [f"note {id}" for id in ids]})
    return build(ids, vectors, rows=table)


def deployments(ids: list[str], vectors: np.ndarray, home: np.ndarray) -> list[Deployment]:
    """A deployment for each shard; row n lies in shard ``home[n]``."""
    opened = []
    for number in range(SHARDS):
        of = np.flatnonzero(home == number)
        opened.append(Opened({number: shard([ids[n] for n in of], vectors[of])}, rows=len(ids), total=SHARDS))
    return [Deployment({"v1": one}) for one in opened]


def asked_twice(every: list[Deployment]) -> list[int]:
    return [number for number, one in enumerate(every) if len(one.asked) > 1]


@pytest.fixture(scope="module")
def world() -> tuple[list[str], np.ndarray, Shard]:
    ids, vectors = names(ROWS), with_twins(ROWS)
    return ids, vectors, shard(ids, vectors)


@pytest.fixture(autouse=True)
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the index had so many shards that only what is likely may be sent."""
    monkeypatch.setattr(shards_module, "ROOM", 0)


def homes(world: tuple[list[str], np.ndarray, Shard], spread: str) -> np.ndarray:
    """Of each row: shuffled; or the best rows of the query together, as if a shard had been added for them."""
    if spread == "shuffled":
        return np.random.default_rng(5).integers(SHARDS, size=ROWS)
    ids, _, whole = world
    order = {id: place for place, id in enumerate(whole.search(queries()[0], ROWS).ids[0])}
    return np.array([order[id] * SHARDS // ROWS for id in ids])


def search(every: list[Deployment], query: np.ndarray, k: int = K, version: str = "v1") -> Found:
    return asyncio.run(RemoteShards(every).search(version, query, k, seconds=SECONDS))  # type: ignore[arg-type]


def as_tuples(found: Found, k: int) -> list[tuple]:
    return [
        (row.id, row.path, row.metadata["note"], row.score, row.text_part) for row in ranked(found.parts, k, SOURCES)
    ]


def of_all(whole: Shard, query: np.ndarray, k: int) -> list[tuple]:
    hits = whole.search(query, k)
    found = zip(hits.ids[0], hits.scores[0].tolist(), hits.text_part[0].tolist(), strict=True)
    return [(id, id, f"note {id}", score, text) for id, score, text in found]


@pytest.mark.parametrize("spread", ["shuffled", "together"])
@pytest.mark.parametrize("k", [1, 10, K, ROWS])
def test_the_ranking_is_that_of_one_shard_wherever_its_rows_lie(
    world: tuple[list[str], np.ndarray, Shard], spread: str, k: int
) -> None:
    ids, vectors, whole = world
    every = deployments(ids, vectors, homes(world, spread))
    for query in queries():
        found = search(every, query, k)
        assert as_tuples(found, k) == of_all(whole, query, k)
        assert (found.answered, found.troubles) == (SHARDS, [])


def test_a_second_call_goes_to_those_alone_that_may_have_more(world: tuple[list[str], np.ndarray, Shard]) -> None:
    ids, vectors, _ = world
    every = deployments(ids, vectors, homes(world, "together"))
    search(every, queries()[0])
    assert asked_twice(every) == [0, 1, 2, 3]  # each sent 36 rows, and all of them were among the best 150 of what came
    assert every[0].asked == [("v1", False), ("v1", True)]
    every = deployments(ids, vectors, homes(world, "shuffled"))
    search(every, queries()[0])
    assert asked_twice(every) == []
    sent = sum(pickle.dumps(one.versions["v1"].search(queries()[0], K, False)).__len__() for one in every)
    everything = sum(pickle.dumps(one.versions["v1"].search(queries()[0], K)).__len__() for one in every)
    assert sent < everything / 2


def test_while_there_is_room_everything_is_sent(
    world: tuple[list[str], np.ndarray, Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "ROOM", 2**20)
    ids, vectors, whole = world
    every = deployments(ids, vectors, homes(world, "together"))
    assert as_tuples(search(every, queries()[0]), K) == of_all(whole, queries()[0], K)
    assert asked_twice(every) == []


def test_a_thousand_rows_of_each_of_five_hundred_shards_are_a_few_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    ids = [f"{n:024x}" for n in range(2000)]
    one = Opened({0: shard(ids, with_twins(2000))}, rows=500 * 2000, total=500)
    sent = len(pickle.dumps(one.search(queries()[0], 1000, False)))
    assert 500 * sent < 3 * 2**20 < 500 * len(pickle.dumps(one.search(queries()[0], 1000))) / 10


def test_a_shard_that_dies_between_the_calls_counts_as_missing_and_what_it_sent_stays(
    world: tuple[list[str], np.ndarray, Shard],
) -> None:
    ids, vectors, whole = world
    every = deployments(ids, vectors, homes(world, "together"))
    every[1].dead_from = 1
    found = search(every, queries()[0])
    assert found.answered == SHARDS - 1
    assert [(trouble.part, trouble.trouble) for trouble in found.troubles] == [("shard 1", "down")]
    assert every[1].asked == [("v1", False), ("v1", True), ("v1", True)]  # a replica that died is asked again once
    [sent] = every[1].versions["v1"].search(queries()[0], K, False)
    there = {*every[0].versions["v1"].shards[0].rows["id"].to_pylist(), *sent.hits.ids[0]}
    expected = [row for row in of_all(whole, queries()[0], ROWS) if row[0] in there]
    assert as_tuples(found, len(there)) == expected
    assert len(there) < K  # the rest of the k best was not to be had


def test_a_shard_that_switches_between_the_calls_answers_of_the_version_that_was_asked_for(
    world: tuple[list[str], np.ndarray, Shard],
) -> None:
    ids, vectors, whole = world
    every = deployments(ids, vectors, homes(world, "together"))
    other = deployments(ids, vectors[::-1], homes(world, "shuffled"))
    for one, later in zip(every, other, strict=True):
        one.versions["v2"] = later.versions["v1"]
    first, _ = every[:2]
    plain, answered = first._search, []

    async def switching(*arguments: Any) -> Any:
        if first.asked and not answered:  # while the second call waits, another search has the next version opened
            answered.append(await plain("v2", *arguments[1:]))
        return await plain(*arguments)

    first._search = switching  # type: ignore[method-assign]
    assert as_tuples(search(every, queries()[0]), K) == of_all(whole, queries()[0], K)
    assert [version for version, _ in first.asked] == ["v1", "v2", "v1"]
    assert len(answered) == 1


def test_of_a_deployment_with_several_shards_those_that_sent_all_that_matters_have_answered(
    world: tuple[list[str], np.ndarray, Shard],
) -> None:
    ids, vectors, _ = world
    home = homes(world, "together")
    every = deployments(ids, vectors, home)
    best, other = every[1].versions["v1"], every[5].versions["v1"]
    every[1].versions["v1"] = replace(best, shards=best.shards | other.shards)
    every[1].dead_from = 1
    found = search([*every[:5], *every[6:]], queries()[0])
    assert found.answered == SHARDS - 1
