"""What ``mindseye serve`` and a Serve config file are refused before anything is started; what an application is."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import Run, one_line_error
from errors import refused
from pydantic import ValidationError
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema
from synthetic import write_queries
from tiny_artifacts import Collection

import serving.launch
from cluster.loading import index_folder
from cluster.ports import free_port
from cluster.profile import Profile, Replicas, ServeSettings, Shards
from cluster.room import Capacity, trouble
from serving.app import ServeArgs, build, demands, plan
from serving.launch import prepare, switch

ROOT = Path(__file__).parents[3]


@pytest.fixture
def port() -> int:
    return free_port()


def test_keys_are_given_beside_a_shipped_profile() -> None:
    args = ServeArgs(target="work", profile="fast", keys_file="/etc/mindseye/keys")
    shipped = ServeArgs(target="work", profile="fast").load_profile()
    assert shipped.serve.keys_file is None
    assert args.load_profile().serve == shipped.serve.model_copy(update={"keys_file": "/etc/mindseye/keys"})


def test_what_cannot_be_served_is_refused_before_ray_is_started(
    collection: Collection, tmp_path: Path, port: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(serving.launch, "launch", lambda *_, **__: pytest.fail("it is started"))
    target = str(collection.folder)
    one_line_error(run("serve"), "give what to serve")
    one_line_error(run("serve", target, "--host", "0.0.0.0"), "0.0.0.0", "keys_file")
    with refused("keys-needed", "host"):
        prepare({"target": target}, host="0.0.0.0")
    with refused("missing"):
        prepare({"target": str(tmp_path)}, port=port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        one_line_error(run("serve", target, "--port", number), "127.0.0.1", str(number))
        with refused("port-taken", "port"):
            prepare({"target": target}, port=number)


@pytest.mark.parametrize("port", [0, 2**16])
def test_a_port_that_cannot_be_is_refused(collection: Collection, port: int) -> None:
    with refused("out-of-range", "port"):
        prepare({"target": str(collection.folder)}, port=port)


def test_a_service_needs_ray(collection: Collection, port: int) -> None:
    with refused("needs-ray", "address"):
        prepare({"target": str(collection.folder)}, port=port, address="none")


def test_where_no_service_answers_nothing_is_switched(collection: Collection, port: int) -> None:
    with refused("unreachable", "port"):
        switch(collection.index.uri, port=port)


def test_a_start_that_is_refused_changes_nothing_of_a_service_that_runs(
    collection: Collection, profile_file: Path, tmp_path: Path, port: int
) -> None:
    """The store is shared by services, one of which may have been switched to another index."""
    store = tmp_path / "queries.sqlite"
    given = {"target": str(collection.folder), "profile": str(profile_file), "store": f"sqlite:{store}"}
    with refused("missing"):
        prepare(given | {"warm": str(tmp_path / "nothing")}, port=port)
    prepare(given, port=port)
    assert not store.exists()


def test_the_config_file_is_one_that_serve_takes(collection: Collection) -> None:
    content = yaml.safe_load((ROOT / "serving/config.yaml").read_text())
    schema = ServeDeploySchema.model_validate(content)
    # Serve ignores keys that it does not know.
    assert set(content) <= set(ServeDeploySchema.model_fields)
    assert set(content["applications"][0]) <= set(ServeApplicationSchema.model_fields)
    [application] = schema.applications
    assert application.import_path == "serving.app:build"
    ServeArgs.model_validate(application.args)
    assert schema.http_options.host == "127.0.0.1"


def test_an_application_is_built_without_ray(
    collection: Collection, profile_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    given = {"target": str(collection.folder), "profile": str(profile_file)}
    # Of a config file Serve hands on the mapping.
    for application in (build(ServeArgs(**given)), build(given)):
        assert application._bound_deployment.name == "Ingress"
    assert index_folder(str(collection.folder)).uri == str(collection.folder / "index")
    assert index_folder(str(collection.folder / "index")).uri == str(collection.folder / "index")
    with refused("missing"):
        build(ServeArgs(target=str(collection.folder), profile=str(profile_file), aggregator=str(tmp_path)))
    with refused("missing"):
        build(ServeArgs(target=str(collection.folder), profile=str(profile_file), warm=str(tmp_path)))
    with pytest.raises(ValidationError):
        build({"target": "x", "targets": "y"})


def test_a_query_set_is_told_of_that_requests_do_not_find_and_refused_where_no_replica_would(
    collection: Collection, profile_file: Path, tmp_path: Path, serve_log: pytest.LogCaptureFixture
) -> None:
    vlm, vision = np.eye(1, 4, dtype=np.float32), [np.eye(4, 6, dtype=np.float32)]
    manifest = collection.index.manifest
    made_by = manifest.models | {"generator": manifest.models["vision"]}
    queries = write_queries(tmp_path / "queries", vlm, vision, labels=[None], records=made_by)
    given = {"target": str(collection.folder), "profile": str(profile_file), "warm": queries.uri}
    with refused("store-not-shared", "store"):
        build(given | {"store": "memory:"})  # replicas would not have what is put into it here
    build(given | {"store": f"sqlite:{tmp_path / 'queries.sqlite'}"})
    [said] = serve_log.messages
    assert "made with images 4, templates ['{}']" in said
    assert "ask for images 2, templates ['{}', 'a photo of a {}']" in said


def test_what_must_run_at_once_asks_for_room() -> None:
    place = {"labels": {"shard": "{shard}"}, "fallback": []}
    settings = ServeSettings(
        generator=Replicas(max_replicas=0, min_replicas=0),
        vlm=Replicas(gpus=1, min_replicas=2, max_replicas=3),
        shards=Shards(cpus=2, min_replicas=0, **place),
    )
    asked = {demand.what: demand for demand in demands(settings, 2)}
    assert list(asked) == ["ingress", "vlm", "vision", "ranker", "shard 0", "shard 1"]
    assert (asked["vlm"].field, asked["vlm"].actors) == ("serve.vlm", 2)
    nodes = [Capacity({"shard": "0"}, 4, 2)]
    found = trouble(list(asked.values()), nodes)
    assert found
    assert (found.field, "shard=1" in found.sentence) == ("serve.shards.labels", True)
    assert trouble(list(asked.values()), [*nodes, Capacity({"shard": "1"}, 4, 0)]) is None


def test_replicas_come_and_go_as_the_profile_says(profile: Profile, collection: Collection) -> None:
    asked = Replicas(surge=False, upscale_s=1, downscale_s=2, max_replicas=3)
    settings = profile.serve.model_copy(update={"vlm": asked})
    args = ServeArgs(
        target=str(collection.folder), profile=profile.model_copy(update={"serve": settings}), store="memory:"
    )
    parts = plan(args).parts
    options = {name: getattr(parts, name)._bound_deployment for name in ("vlm", "vision")}
    given = options["vlm"]._deployment_config
    scaling = given.autoscaling_config
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s, given.max_surge_percent) == (1, 2, 0)
    # Serve is told of the load often enough for such a delay, and without being asked keeps the old replicas meanwhile.
    assert scaling.metrics_interval_s < scaling.look_back_period_s <= 10
    assert options["vision"]._deployment_config.max_surge_percent == 100
