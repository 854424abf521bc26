"""Ray makes the same of a pipeline as this process does: rows, shards, versions; and either resumes the other's job."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
from pictures import BROKEN, good_pictures, write_pictures
from ray.data import Dataset
from ray.exceptions import RayTaskError
from synthetic import D1, D2, directions, write_gallery
from waiting import wait_until

from cluster.profile import Placement, Profile, Stage
from cluster.progress import RayCounter, progress, stages
from cluster.room import Capacity
from cluster.session import session
from demo.grammar import categories
from demo.world import render
from pipelines import ray_executor
from pipelines.batch_contents import duplicates_in, summary_of
from pipelines.embedding import count_written
from pipelines.executor import Each, Workers
from pipelines.gallery import build_gallery, gallery_of
from pipelines.growth import remove
from pipelines.index import build_index
from pipelines.ray_executor import RayExecutor
from pipelines.running import current_executor
from pipelines.selection import Selection
from retrieval.artifacts import Gallery, Index
from retrieval.artifacts.columns import matrix
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.fusion import fused_query
from retrieval.index.hits import Hits, merge_topk

PICTURES = 130
ADDRESSES = ("none", None)
"""This process, and the Ray of the test run."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files for more than two blocks."""
    folder = tmp_path_factory.mktemp("source") / "images"
    write_pictures(folder)
    for i in range(PICTURES):
        file = folder / f"class {i % 5}" / f"{i:03d}.png"
        file.parent.mkdir(exist_ok=True)
        render(categories()[i % 40], i).save(file)
    return folder


def check_same_rows(one: Gallery, other: Gallery) -> None:
    first, second = (pa.concat_tables(each.tables()).sort_by("id") for each in (one, other))
    for name in ("id", "path", "label", "width", "height", "batch"):
        assert first[name].to_pylist() == second[name].to_pylist()
    for name in ("vlm", "vision"):
        # One unit in the last place of a float16: batches are cut otherwise, and kernels round otherwise for them.
        np.testing.assert_allclose(matrix(first[name]), matrix(second[name]), atol=2**-10, rtol=0)
    assert one.rejected().sort_by("path").equals(other.rejected().sort_by("path"))
    assert one.manifest.batches == other.manifest.batches


@pytest.fixture(scope="module")
def embedded(
    source: Path, profile: Profile, tmp_path_factory: pytest.TempPathFactory, ray_session: None
) -> dict[str | None, Path]:
    """A gallery by address, embedded and not committed."""

    def interrupted(*_: Any) -> Gallery:
        raise KeyboardInterrupt

    places = {}
    for address in ADDRESSES:
        places[address] = tmp_path_factory.mktemp("gallery")
        with pytest.MonkeyPatch.context() as patch, session(address):
            patch.setattr("pipelines.gallery.commit_batch", interrupted)
            with pytest.raises(KeyboardInterrupt):
                gallery_of(str(source), str(places[address]), profile)
    return places


@pytest.fixture(scope="module")
def galleries(embedded: dict[str | None, Path], source: Path, profile: Profile) -> dict[str | None, Gallery]:
    """Each is resumed by the other, which finds one block half written."""
    made = {}
    for address in ADDRESSES:
        other = next(each for each in ADDRESSES if each != address)
        lose_a_note(embedded[other])
        logged: list[str] = []
        with session(address):
            made[address] = build_gallery(str(source), str(embedded[other]), profile, log=logged.append)
        assert logged[0].startswith("resuming batch 000001: ")
    return made


def lose_a_note(gallery: Path) -> None:
    """Leave what a block has written without the note that it is written."""
    batch = Folder(gallery / "batches/000001")
    before = count_written(batch)
    name = batch.files("checkpoint")[0].removesuffix(".parquet")
    Path(f"{batch.path}/{name}.parquet").rename(f"{batch.path}/{name}.pending.parquet")
    assert 0 < before - count_written(batch) < before


def test_rows_are_the_same_whoever_began_and_whoever_ended(galleries: dict[str | None, Gallery]) -> None:
    here, on_ray = (galleries[address] for address in ADDRESSES)
    assert here.manifest.rows == PICTURES + len(good_pictures())
    assert here.rejected().num_rows == len(BROKEN)
    check_same_rows(here, on_ray)


def test_rows_of_equal_bytes_are_counted_as_here(
    galleries: dict[str | None, Gallery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.batch_contents.RUN_ROWS", 30)
    monkeypatch.setattr("pipelines.hash_ranges.RANGE_ROWS", 20)
    for address in ADDRESSES:
        gallery = galleries[address]
        contents = {id.split("-")[0] for table in gallery.tables(["id"]) for id in table["id"].to_pylist()}
        with session(address):
            found = duplicates_in(gallery.folder, gallery.manifest.parts)
        assert found == gallery.manifest.rows - len(contents) > 0
        assert summary_of(gallery, gallery.manifest.batches[0]).duplicates == found


@pytest.fixture(scope="module")
def indexes(profile: Profile, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> dict[str | None, Index]:
    """By address, an index of three quantised shards, and a version of it without a tenth of its rows."""
    rng = np.random.default_rng(0)
    vectors = directions(900, D1, rng), directions(900, D2, rng)
    gallery = write_gallery(tmp_path_factory.mktemp("vectors") / "gallery", *vectors)
    made = {}
    for address in ADDRESSES:
        place = tmp_path_factory.mktemp("target")
        shutil.copytree(gallery.uri, place / "gallery")
        own = Gallery.open(place / "gallery")
        with session(address):
            index = build_index(own, str(place / "index"), profile, shards=3, factory="IVF8,SQ8")
            gone = Selection(ids=[f"row-{i:05d}" for i in range(0, 900, 10)])
            made[address] = remove(gone, own, index, profile.index).index
    return made


def test_shards_answer_to_the_bit_as_those_that_were_built_here(indexes: dict[str | None, Index]) -> None:
    here, on_ray = (indexes[address] for address in ADDRESSES)
    rng = np.random.default_rng(1)
    queries = fused_query(directions(20, D1, rng), directions(20, D2, rng), 0.5)

    def search(index: Index) -> Hits:
        return merge_topk([shard.search(queries, 30) for shard in index.shards()], 30)

    one, other = search(here), search(on_ray)
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.scores, other.scores)
    assert here.manifest.recall == on_ray.manifest.recall
    assert [record.rows for record in here.manifest.shards] == [record.rows for record in on_ray.manifest.shards]
    assert (here.manifest.rows, here.manifest.removed) == (on_ray.manifest.rows, on_ray.manifest.removed) == (810, 90)


@pytest.fixture
def executor(ray_session: None) -> RayExecutor:
    found = current_executor()
    assert isinstance(found, RayExecutor)
    return found


# Functions that are defined within a test are sent to workers whole.


def test_what_a_person_can_put_right_is_raised_as_itself_and_a_bug_with_its_traceback(executor: RayExecutor) -> None:
    def refused() -> None:
        raise UserError("too many", code="too-many", field="count")

    def away() -> None:
        raise FileNotFoundError("away")

    def bug() -> None:
        raise ValueError("not what the user gave")

    with pytest.raises(UserError) as mistake, session():
        executor.map(refused, [()])
    assert type(mistake.value) is UserError
    assert (mistake.value.code, mistake.value.field, str(mistake.value)) == ("too-many", "count", "too many")
    with pytest.raises(UserError) as left, session():
        executor.map(lambda values: [value.get() for value in values], [(executor.map_shared(refused, [()]),)])
    assert type(left.value) is UserError
    with pytest.raises(FileNotFoundError) as missing, session():
        executor.run(away).get()
    assert type(missing.value) is FileNotFoundError
    with pytest.raises(RayTaskError) as ours, session():
        list(executor.as_completed(bug, [()]))
    assert "in bug" in str(ours.value)


@pytest.mark.timeout(120)
def test_the_worker_of_a_call_with_gpus_ends_with_it_and_others_are_kept(
    executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def process() -> int:
        return os.getpid()

    def gone(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    kept = [executor.run(process).get() for _ in range(3)]
    assert len(set(kept)) < 3
    assert not any(gone(pid) for pid in kept)
    remote = ray.remote  # there is no GPU here: the call is as one with GPUs in all but that
    monkeypatch.setattr(ray, "remote", lambda **options: remote(**options | {"num_gpus": 0}))
    own = [executor.run(process, place=Placement(gpus=1)).get() for _ in range(3)]
    assert len(set(own)) == 3
    wait_until(lambda: all(gone(pid) for pid in own))


def test_calls_are_given_shared_values_and_answer_in_order(executor: RayExecutor) -> None:
    def added(shared: Any, number: int) -> int:
        return int(shared.get().sum()) + number

    def counted(count: int) -> Iterator[int]:
        yield from range(count)

    shared = executor.share(np.arange(3))
    assert executor.map(added, [(shared, 1), (shared, 2)]) == [4, 5]
    assert sorted(executor.as_completed(added, [(shared, 1), (shared, 2)])) == [4, 5]
    left = executor.map_shared(added, [(shared, 1), (shared, 2)])
    assert executor.map(lambda values: [value.get() for value in values], [(left,)]) == [[4, 5]]
    assert executor.map_shared(added, []) == []
    assert list(executor.stream(counted, [(2,), (3,)], ahead=1)) == [0, 1, 0, 1, 2]
    assert executor.run(added, executor.run(lambda: np.arange(4)), 1).get() == 7


def test_what_comes_before_workers_on_cpus_runs_within_them(executor: RayExecutor) -> None:
    """Otherwise decoding waits for a CPU that the workers hold, or they for what is decoded on too few."""

    def first(rows: pa.Table) -> pa.Table:
        return rows.append_column("first", pa.array([os.getpid()] * rows.num_rows))

    class Second:
        def __call__(self, rows: pa.Table) -> pa.Table:
            return rows.append_column("second", pa.array([os.getpid()] * rows.num_rows))

    numbers = [pa.table({"number": list(range(8))})]
    tables = executor.tables(numbers, Each(first, 4), Workers(Second, (), Stage(cpus=0.5, max_actors=1, batch=4)))
    rows = pa.concat_tables(tables)
    assert rows.num_rows == 8
    assert rows["first"].to_pylist() == rows["second"].to_pylist()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options with which datasets are mapped, which is then not done."""
    asked: list[dict[str, Any]] = []

    def recorded(dataset: Dataset, function: Any, **options: Any) -> Dataset:
        asked.append(options)
        return dataset

    monkeypatch.setattr(Dataset, "map_batches", recorded)
    return asked


def test_what_comes_before_workers_on_gpus_does_not_take_their_time(
    executor: RayExecutor, asked: list[dict[str, Any]]
) -> None:
    workers = Workers(list, (), Stage(cpus=1, gpus=1, max_actors=1, batch=4))
    list(executor.tables([pa.table({"a": [1]})], Each(len), workers))
    assert [(options.get("num_cpus"), options.get("num_gpus")) for options in asked] == [(None, None), (1, 1)]


def test_workers_and_what_runs_within_them_have_the_nodes_of_their_stage(
    executor: RayExecutor, asked: list[dict[str, Any]]
) -> None:
    there = {"labels": {"mindseye/pool": "gpu"}, "fallback": [{"mindseye/pool": "cpu"}]}
    for gpus in (0, 1):
        stage = Stage(cpus=1, gpus=gpus, max_actors=1, batch=4, **there)
        list(executor.tables([pa.table({"a": [1]})], Each(len), Workers(list, (), stage)))
    placed = [(options.get("label_selector"), options.get("fallback_strategy")) for options in asked]
    selected = ({"mindseye/pool": "gpu"}, [{"label_selector": {"mindseye/pool": "cpu"}}])
    assert placed == [selected, selected, (None, None), selected]


def test_calls_have_the_nodes_of_their_place(executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def recorded(**options: Any) -> Any:
        asked.append(options)
        return ray_remote(**options)

    def added(values: list[int]) -> int:
        return sum(values)

    ray_remote = ray.remote
    monkeypatch.setattr(ray, "remote", recorded)
    place = Placement(cpus=0.5, labels={"mindseye/pool": "index"})  # no node here has it, so any will do
    assert executor.run(added, [1, 2], place=place).get() == 3
    assert executor.map(added, [([1, 2],)], place=place) == [3]
    assert list(executor.as_completed(added, [([1, 2],)], place=place)) == [3]
    assert len(asked) == 3
    for options in asked:
        assert place.options().items() <= options.items()


@pytest.mark.parametrize(
    ("stage", "start"),
    [
        (Stage(max_actors=9, batch=1), 9),
        (Stage(max_actors=90, batch=1), 15),
        (Stage(max_actors=90, batch=1, labels={"pool": "gpu"}), 15),
        (Stage(max_actors=90, batch=1, labels={"pool": "gpu"}, fallback=[]), 8),
        (Stage(max_actors=90, batch=1, gpus=0.5, labels={"pool": "gpu"}), 4),
        (Stage(max_actors=90, batch=1, labels={"pool": "none"}, fallback=[]), 1),
        (Stage(max_actors=90, batch=1, cpus=0), 90),
    ],
)
def test_a_pool_begins_with_as_many_actors_as_its_nodes_hold(
    stage: Stage, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [Capacity({"pool": "cpu"}, 4, 0), Capacity({"pool": "cpu"}, 4, 0), Capacity({"pool": "gpu"}, 8, 2)]
    monkeypatch.setattr(ray_executor, "cluster_nodes", lambda: nodes)
    assert ray_executor.actor_pool(stage).initial_size == start


def test_calls_share_the_cpus_of_the_nodes_that_are_preferred(
    executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [Capacity({"pool": "cpu"}, 64, 0), Capacity({"pool": "index"}, 8, 0), Capacity({"pool": "index"}, 8, 0)]
    monkeypatch.setattr(ray_executor, "cluster_nodes", lambda: nodes)
    place = Placement(cpus=2, gpus=1, labels={"pool": "index"})
    assert [executor.shared_among(calls, place).cpus for calls in (1, 2, 4, 100)] == [8, 8, 4, 2]
    assert executor.shared_among(1, place) == place.resized(8)
    assert executor.shared_among(1, Placement(cpus=2)).cpus == 64


def test_counters_of_all_steps_share_a_worker(ray_session: None) -> None:
    """A counter that took a worker of its own, and killed it at the end, would take one that has loaded models."""
    with progress("one", 2) as one, progress("other", 3) as other:
        one.add(2, read=0.5)
        other.add(1)
        other.flush()
        assert (one.done(), other.done()) == (2, 1)
        assert (one.seconds(), other.seconds()) == ({"read": 0.5}, {})
        [of_this_driver] = [found for found in stages().values() if found[0].what == "one"]
        assert [(stage.what, stage.done, stage.total) for stage in of_this_driver] == [("one", 2, 2), ("other", 1, 3)]
    with progress("later", 1) as later:
        assert isinstance(one, RayCounter)
        assert isinstance(later, RayCounter)
        assert one.actor == later.actor
        assert later.done() == 0
