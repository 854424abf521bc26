"""What several test files share: tiny random models, a profile that names them, a gallery and index, one local Ray."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

# Before anything imports ray: authentication as a local Ray has it, by a token of this run's own (else Ray would write
# one to the home directory), no usage report, no cluster that happens to run.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex()
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
os.environ.pop("RAY_ADDRESS", None)
# As in cluster.ray_env: workers that have started are kept for the next job.
os.environ["RAY_idle_worker_killing_time_threshold_ms"] = "30000"  # noqa: SIM112, so Ray spells it
# Workers of Ray are given these as they start. No test may reach a real store.
os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "x"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ.pop("AWS_SESSION_TOKEN", None)
os.environ.pop("AWS_PROFILE", None)
# Shards of buckets that tests make are no business of the cache of whoever runs them.
os.environ["MINDSEYE_SHARD_CACHE"] = tempfile.mkdtemp(prefix="mindseye-tests-")
# Models come from folders here; a test that would ask a hub fails at once instead of waiting for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
# A busy machine is no fault: what Ray would give up after some seconds gets a minute and more, and its workers, which
# it starts with a niceness of 15, get as much of the processors as the tests.
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"
os.environ["RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"] = "60"
os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "240"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112, so Ray spells it
# Tests share the processors with each other and with Ray's workers. Threads of OpenMP, one a processor by default in
# each process, would spend most of the time waiting for each other: measured, 6 times the CPU time and more of minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Run, Said

from cluster.ports import free_port

HERE = Path(__file__).parent
DATA = Path(os.environ.get("MINDSEYE_DATA") or HERE.parents[1] / "shared" / "data")
SIZES = ("ray", "service", "faults", "gpu")
"""Folders whose tests need the machine or its GPU for themselves; each gives its tests the mark of its name."""


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["MINDSEYE_SHARD_CACHE"], ignore_errors=True)


def pytest_itemcollected(item: pytest.Item) -> None:
    size = item.path.relative_to(HERE).parts[0]
    if size in SIZES:
        item.add_marker(size)
    elif "ray_session" in getattr(item, "fixturenames", ()):
        item.add_marker("ray")


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Give the path of a real data file, or skip the test where it is not at hand (``MINDSEYE_DATA`` says where)."""

    def find(name: str) -> Path:
        if not (DATA / name).exists():
            pytest.skip(f"{name} is not at hand: set MINDSEYE_DATA to the folder that holds it")
        return DATA / name

    return find


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three tiny random models: ``vlm``, ``vision`` and ``generator``."""
    from tiny_models import write_generator, write_vision, write_vlm

    folder = tmp_path_factory.mktemp("tiny") / "models"
    write_vlm(folder / "vlm")
    write_vision(folder / "vision")
    write_generator(folder / "generator")
    return folder


@pytest.fixture(scope="session")
def profile_settings() -> dict[str, Any]:
    """The content of a valid profile whose models lie in ``models/`` beside its file. Copy it before changing it."""
    stage = {"cpus": 1, "max_actors": 1, "batch": 8}
    return {
        "models": {
            "vlm": "local-dir:models/vlm",
            "vision": "local-dir:models/vision",
            "generator": {"uri": "models/generator", "steps": 2, "guidance": 4.0, "batch": 8},
            "device": "cpu",
            "dtype": "float32",
        },
        "embed": dict(stage),
        "imagine": dict(stage),
        "queries": {"images": 2, "templates": ["{}", "a photo of a {}"]},
        "index": {"rows_per_shard": 1000},
        "train": {"min_workers": 0, "max_workers": 0, "batch": 8, "steps": 6, "validate_every": 3},
        # Graphs in this process outlive their tests, and are to let the store of theirs alone.
        "serve": {"shard_timeout_ms": 30_000, "watch_seconds": 3600},
    }


@pytest.fixture(scope="session")
def profile_file(models_folder: Path, profile_settings: dict[str, Any]) -> Path:
    """The YAML file of a profile of the tiny models."""
    file = models_folder.parent / "test.yaml"
    file.write_text(yaml.safe_dump(profile_settings))
    return file


@pytest.fixture(scope="session")
def profile(profile_file: Path) -> Any:
    """The ``cluster.profile.Profile`` of the tiny models."""
    from cluster.profile import load_profile

    return load_profile(profile_file)


@pytest.fixture(scope="session")
def query_encoder(profile: Any) -> Any:
    """The ``retrieval.query.QueryEncoder`` of the tiny models."""
    from cluster.loading import load_query_encoder

    return load_query_encoder(profile)


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory, query_encoder: Any) -> Any:
    """A few rendered images, their gallery and their index of two shards (``tiny_artifacts.Collection``)."""
    from tiny_artifacts import write_collection

    return write_collection(tmp_path_factory.mktemp("collection"), query_encoder.vlm, query_encoder.vision)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``mindseye`` with arguments; a traceback would fail the test."""

    def main(*arguments: object) -> Said:
        import mindseye

        monkeypatch.setattr(sys, "argv", ["mindseye", *map(str, arguments)])
        code: Any = 0
        try:
            mindseye.main()
        except SystemExit as end:
            code = end.code or 0
        return Said(code, *capsys.readouterr())

    return main


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """The one Ray of the test run: local, of two CPUs. Tests that use it are never run in parallel."""
    import ray

    from cluster.session import data_defaults

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=300 * 2**20,
    )
    data_defaults()
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def bucket() -> Any:
    """Options for URIs of the bucket ``bucket`` on a real S3 server of this machine."""
    pytest.importorskip("flask")
    from retrieval.folder import Folder

    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    Folder(f"s3://bucket?{options}&allow_bucket_creation=true").create()
    yield options
    server.stop()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis on this machine: a real server where one is installed (apt install redis-server), else fakeredis'."""
    pytest.importorskip("redis", reason="Redis is an optional extra: pip install 'mindseye[redis]'")
    port = free_port()
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program:
        folder = str(tmp_path_factory.mktemp("redis"))
        options = ("--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "no")
        process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)

        def stop() -> None:
            process.terminate()
            process.wait(30)

    else:
        fake = pytest.importorskip("fakeredis", reason="neither redis-server nor fakeredis is installed")
        server = fake.TcpFakeServer(("127.0.0.1", port), server_type="redis")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stop = server.shutdown
    while True:  # until it answers, or the test's time is over
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.05)
    yield f"redis://127.0.0.1:{port}/0"
    stop()


@pytest.fixture
def locked_redis_url(redis_url: str) -> Iterator[str]:
    """The Redis of ``redis_url``, which asks for the password ``secret`` meanwhile."""
    import redis

    if not (shutil.which("redis-server") or shutil.which("valkey-server")):
        pytest.skip("fakeredis asks for no password; apt install redis-server")
    redis.Redis.from_url(redis_url).config_set("requirepass", "secret")
    yield redis_url
    redis.Redis.from_url(redis_url, password="secret").config_set("requirepass", "")


@pytest.fixture
def serve_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged to Serve's logger, which passes nothing on once Serve has run in this process."""
    logger = logging.getLogger("ray.serve")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
