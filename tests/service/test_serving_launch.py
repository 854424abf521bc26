"""``mindseye serve``: what it refuses before anything is started, and one whole run of it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from command_line import Run, one_line_error
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema
from synthetic import write_queries
from tiny_artifacts import Collection

import serving.launch
from cluster.ports import free_port
from serving.app import ServeArgs, build, index_uri
from serving.client import ServiceFault, search, switch_index

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def command(*arguments: str, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "mindseye.py"), "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"XDG_CACHE_HOME": str(cache)},
    )


@pytest.fixture
def port() -> int:
    return free_port()


def test_what_can_not_be_served_is_refused_before_ray_is_started(
    collection: Collection, tmp_path: Path, port: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(serving.launch, "launch", lambda *_, **__: pytest.fail("it is started"))
    target = str(collection.folder)
    one_line_error(run("serve"), "give what to serve")
    one_line_error(run("serve", target, "--host", "0.0.0.0"), "needs API keys")
    one_line_error(run("serve", tmp_path, "--port", port), "there is no index")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        one_line_error(run("serve", target, "--port", number), f"can not listen on 127.0.0.1, port {number}")


@pytest.mark.slow
def test_it_starts_answers_and_leaves_nothing_behind(
    collection: Collection, profile_file: Path, tmp_path: Path, port: int
) -> None:
    arguments = (str(collection.folder), "--profile", str(profile_file), "--port", str(port))
    process = command(*arguments, cache=tmp_path)
    assert process.stdout
    begun = time.monotonic()
    own: list[psutil.Process] = []
    try:
        # Ray has notices of its own to give.
        assert any(f"http://127.0.0.1:{port}" in line for line in process.stdout)
        assert process.stdout.readline() == "next:\n"
        assert re.search(r"curl http\S+/v1/search ", process.stdout.readline())
        print(f"up after {time.monotonic() - begun:.0f} s")
        url = f"http://127.0.0.1:{port}"
        assert search(url, "a red star", images=1).stage == "fused"
        with pytest.raises(ServiceFault, match="there is no index"):
            switch_index(url, str(tmp_path))
        other = command("--index", str(collection.index.uri), "--port", str(port), cache=tmp_path)
        assert "serves version 000001" in other.communicate(timeout=300)[0]
        own = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            _, errors = process.communicate(timeout=200)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert [line for line in errors.splitlines() if "(raylet)" not in line] == []
    assert len(own) > 5
    _, alive = psutil.wait_procs(own, timeout=60)
    assert alive == []
    assert list((tmp_path / "mindseye").glob("queries.sqlite"))


def test_the_config_file_is_one_that_serve_takes(collection: Collection) -> None:
    content = yaml.safe_load((ROOT / "serving/config.yaml").read_text())
    schema = ServeDeploySchema.model_validate(content)
    # Keys that it does not know it passes over.
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
    assert index_uri(str(collection.folder)) == str(collection.folder / "index")
    assert index_uri(str(collection.folder / "index")) == str(collection.folder / "index")
    with pytest.raises(ValueError, match="there is no aggregator"):
        build(ServeArgs(target=str(collection.folder), profile=str(profile_file), aggregator=str(tmp_path)))
    with pytest.raises(ValueError, match="there is no queryset"):
        build(ServeArgs(target=str(collection.folder), profile=str(profile_file), warm=str(tmp_path)))
    with pytest.raises(ValueError, match="Extra inputs"):
        build({"target": "x", "targets": "y"})


def test_a_query_set_of_other_images_than_are_asked_for_is_told(
    collection: Collection, profile_file: Path, tmp_path: Path, serve_log: pytest.LogCaptureFixture
) -> None:
    vlm, vision = np.eye(1, 4, dtype=np.float32), [np.eye(4, 6, dtype=np.float32)]
    manifest = collection.index.manifest
    made_by = manifest.models | {"generator": manifest.models["vision"]}
    queries = write_queries(tmp_path / "queries", vlm, vision, labels=[None], records=made_by)
    given = {"target": str(collection.folder), "profile": str(profile_file), "store": "memory:"}
    build(given | {"warm": queries.uri})
    [said] = serve_log.messages
    assert "made with images 4, templates ['{}']" in said
    assert "ask for images 2, templates ['{}', 'a photo of a {}']" in said
