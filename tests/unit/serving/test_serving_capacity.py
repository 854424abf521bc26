"""Replicas, calls and bytes of a planned service: against reckoning by hand, and against what shards really send."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from plain_shard import build, joint, queries

from cluster.profile import load_profile
from cluster.rates import Known
from cluster.sheet import Figure, Sheet, Workload, cut_of
from serving.capacity import add_fan_out, add_network, add_service, answer_bytes, deployments_of
from serving.deployments.shards import Opened

RATES = {
    "vlm_dim": 768,
    "vision_dim": 1024,
    "requests_per_s": 100,
    "texts_per_s": 50,
    "pictures_per_s": 400,
    "generator_images_per_s": 8,
    "shard_search_ms": 5,
    "call_ms": 0.5,
    "part_ms": 0.05,
    "row_ms": 0.01,
    "busy": 0.5,
}
WORKLOAD = Workload(images=10**9, load=50, hits=0.9, k=100)


def planned(workload: Workload = WORKLOAD, **serve: Any) -> tuple[Sheet, dict[str, float | None]]:
    profile = load_profile("paper")
    profile = profile.model_copy(update={"serve": profile.serve.model_copy(update=serve)})
    known = Known.of(given=RATES)
    sheet = Sheet(workload, known, cut_of(workload, known.rates, profile))
    add_service(sheet, profile, add_fan_out(sheet, profile))
    add_network(sheet, profile)
    return sheet, {f"{one.name} {one.unit}".strip(): one.value for one in sheet.figures}


def test_replicas_are_load_by_rate_and_share_of_time() -> None:
    sheet, found = planned()
    assert found["ingress, replicas"] == 1
    assert found["vlm, replicas"] == 1
    assert found["generator, replicas"] == 20  # 5 new queries a second, 16 images, 4 images a second each
    assert found["vision, replicas"] == 1
    assert found["ranking ms"] == 500 * 0.5 + 500 * 0.05 + 100 * 0.01
    assert found["ranker, replicas"] == 56  # 100 rankings a second, 276 ms, half of the time
    assert found["shards, replicas"] == 500  # one of 4 CPUs searches 800 times a second
    assert found["shards, all replicas CPU"] == 2000
    assert "serve.ranker.max_replicas is 4, and 56 are needed" in sheet.notes
    assert "serve.generator.max_replicas is 16, and 20 are needed" in sheet.notes


def test_several_shards_of_a_deployment_save_calls_and_cost_memory_of_a_replica() -> None:
    _, each = planned()
    _, eight = planned(shards_per_deployment=8)
    assert (each["calls of a ranking"], eight["calls of a ranking"]) == (500, 63)
    assert eight["ranking ms"] == pytest.approx(63 * 0.5 + 26)
    assert eight["ranker, replicas"] == 12
    assert eight["search of a deployment ms"] == 40
    assert eight["a replica with shards B"] == pytest.approx(8 * (each["a replica with shards B"] or 0))
    assert each["shards of a deployment, advised"] == 10


def test_more_deployments_than_can_be_asked_in_time_are_noted() -> None:
    sheet, found = planned(shard_timeout_ms=500)
    assert found["deployments within shard_timeout_ms"] == 448  # (half of 500 ms, less 26 of merging) by half a ms
    assert any("asks 448 deployments" in note and "there are 500" in note and "to 10 " in note for note in sheet.notes)
    assert not any("deployments" in note for note in planned(shard_timeout_ms=500, shards_per_deployment=2)[0].notes)
    few, found = planned(Workload(images=10**8, load=1))
    assert "shards of a deployment, advised" not in found
    assert not few.notes


def test_a_small_index_is_held_by_the_rankers() -> None:
    sheet, found = planned(Workload(images=10_000, load=10))
    assert deployments_of(sheet, load_profile("paper")) == 0
    assert found["calls of a ranking"] == 0
    assert "shards, replicas" not in found
    assert found["search in the ranker ms"] == pytest.approx(5 + 0.05 + 1)


def test_a_small_index_whose_shards_have_gpus_is_planned_as_it_is_served() -> None:
    shards = load_profile("paper").serve.shards.model_copy(update={"gpus": 0.5})
    _, found = planned(Workload(images=10_000, load=10), shards=shards, shards_per_deployment=8)
    assert found["calls of a ranking"] == found["shards, replicas"] == 1
    _, alone = planned(Workload(images=10_000, load=10), shards=shards)
    assert found["a replica with shards B"] == alone["a replica with shards B"]  # it has one shard, not eight


def test_a_load_of_nobody_asks_for_the_least_that_the_profile_has() -> None:
    assert planned(Workload(images=10**9, load=1e-9))[1]["ranker, replicas"] == 1


@pytest.mark.parametrize("k", [10, 100, 1000])
def test_a_shard_sends_no_more_than_planned_and_not_much_less(k: int) -> None:
    rows, shards = 2000, 500
    table = pa.table(
        {
            "path": [f"some folder/{n:09d}.jpg" for n in range(rows)],
            "label": ["some folder"] * rows,
            "batch": ["000001"] * rows,
        }
    )
    shard = build([f"{n:025x}" for n in range(rows)], joint(rows), rows=table)
    of_all = Opened({0: shard}, rows=rows * shards, total=shards)
    sent = len(pickle.dumps(of_all.search(queries()[0], k, False)))
    most = answer_bytes(k, rows, rows * shards, shards, shard.rows.nbytes / rows)
    assert 0.5 * most < sent < 1.05 * most


def test_a_figure_that_lacks_a_rate_makes_those_lack_it_that_are_computed_from_it() -> None:
    workload = Workload(images=10**9, load=50)
    known = Known.of(given={"vlm_dim": 768, "vision_dim": 1024})
    profile = load_profile("paper")
    sheet = Sheet(workload, known, cut_of(workload, known.rates, profile))
    machines = add_service(sheet, profile, add_fan_out(sheet, profile))
    of = {one.name: one for one in sheet.figures}
    assert of["shards, replicas"].missing == ("shard_search_ms",)
    assert of["all replicas with shards"].missing == ("shard_search_ms",)
    assert of["ranker, replicas"].assumed == ("busy", "call_ms", "part_ms", "row_ms")
    assert all(isinstance(one, Figure) for one in [*machines.cpus, *machines.gpus, *machines.memory])
    assert np.isfinite([one.value for one in sheet.figures if one.value is not None]).all()
