"""Which Ray a command uses."""

from __future__ import annotations

from pathlib import Path

import pytest
from errors import refused
from ray._private import utils as ray_utils

import cluster.session as module
from cluster.cores import usable_cores
from cluster.profile import Placement
from cluster.session import check_shared, cluster_address, in_process, session
from commands.console import quoted, with_profile
from pipelines.local_executor import LocalExecutor
from retrieval.folder import Folder


def test_the_cluster_is_the_one_given_else_that_of_the_environment_else_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster_address(None) is None
    assert cluster_address("head:6379") == "head:6379"
    monkeypatch.setenv("RAY_ADDRESS", "other:6379")
    assert cluster_address(None) == "other:6379"
    assert cluster_address("head:6379") == "head:6379"
    assert cluster_address("local") is None


def test_an_address_of_ray_client_is_refused_for_ray_data_does_not_work_over_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with refused("ray-client", "address"), session("ray://head:10001"):
        pytest.fail("it is used")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with refused("ray-client", "address"), session():
        pytest.fail("it is used")


def test_without_ray_and_where_it_is_asked_for_jobs_run_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.ray, "init", lambda **_: pytest.fail("Ray is started"))
    for running in (False, True):
        monkeypatch.setattr(module.ray, "is_initialized", lambda running=running: running)
        assert in_process() is not running
        with session("none"):
            assert in_process()
            with session("head:6379"):
                assert in_process()
        assert in_process() is not running


def test_a_local_ray_and_this_process_use_no_more_cpus_than_a_container_has(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(ray_utils, "_get_docker_cpus", lambda: 2.0)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("multiprocessing.cpu_count", lambda: 64)
    monkeypatch.setattr(module.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(module.ray, "shutdown", lambda: None)
    monkeypatch.setattr(module.ray, "init", lambda num_cpus, **_: started.append(num_cpus))
    with session("local"):
        pass
    assert started == [3]  # one more, to read with
    assert LocalExecutor().shared_among(1, Placement()).cpus == 2
    monkeypatch.setattr(ray_utils, "_get_docker_cpus", lambda: 0.5)
    assert usable_cores() == 1


@pytest.mark.ray
def test_a_target_that_other_machines_do_not_see_is_said_at_once(ray_session: None, tmp_path: Path) -> None:
    class Elsewhere(Folder):  # local, so that it is sent to the worker whole
        def exists(self, name: str = "") -> bool:
            return False

    Folder(tmp_path).write_bytes("job.json", b"")
    check_shared(Folder(tmp_path), "job.json")
    with refused("not-shared", "target"):
        check_shared(Elsewhere(tmp_path), "job.json")


def test_a_command_that_is_suggested_has_the_profile_of_the_one_that_ran() -> None:
    assert with_profile("mindseye search star target", "tiny") == "mindseye search star target"
    assert with_profile("mindseye search star target", "my own.yaml").endswith(" --profile 'my own.yaml'")


def test_a_place_in_a_command_that_is_suggested_is_one_word_and_what_is_inside_it_is_another_place() -> None:
    assert quoted("target") == "target"
    assert quoted("my target", "queries") == "'my target/queries'"
    assert quoted("s3://bucket/target?scheme=http&x=y", "queries") == "'s3://bucket/target/queries?scheme=http&x=y'"
    assert quoted("what?", "queries") == "'what?/queries'"
