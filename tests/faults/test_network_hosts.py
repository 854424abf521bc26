"""The three jobs and the service on several hosts that share no disk: see ``network_hosts``.

The head of the cluster has no CPU, so that whatever works does so on other hosts. The gallery, and all that is made of
it, lies in an object store; remembered queries in a Redis. Authentication is on.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import yaml
from network_hosts import ROOT, Host, Network, Process, network, started, wait_until_listening
from waiting import wait_until

from cluster.profile import Profile
from demo.grammar import categories
from demo.world import render
from pipelines import job
from retrieval.artifacts import Gallery, Index, QuerySet, TrainedAggregator
from retrieval.folder import Folder
from serving.client import info, search, switch_index

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

IMAGES, LABELS, SHARDS = 160, 8, 4
RAY_PORT, S3_PORT, REDIS_PORT, HTTP_PORT = 6379, 5000, 6380, 8000
KEY = "k" * 32
CUT_SECONDS, DEADLINE_SECONDS, RECOVERY_SECONDS = 20, 3, 60


class Hosts(NamedTuple):
    net: Network
    head: Host
    one: Host
    two: Host
    s3: str
    """Options of URIs of the bucket ``bucket``."""
    redis: str
    logs: Path

    def mindseye(self, *arguments: object) -> str:
        """Run a command on the head."""
        said = self.head.run(sys.executable, ROOT / "mindseye.py", *arguments, **self.environment)
        print(said)
        return said

    @property
    def environment(self) -> dict[str, str]:
        return {"RAY_ADDRESS": f"{self.head.address}:{RAY_PORT}"}

    def uri(self, name: str) -> str:
        return f"s3://bucket/{name}?{self.s3}"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A head and two more nodes of Ray, and a host of the stores."""
    pytest.importorskip("flask")
    if not (redis := shutil.which("redis-server") or shutil.which("valkey-server")):
        pytest.skip("neither redis-server nor valkey-server is installed")
    logs = tmp_path_factory.mktemp("logs")
    try:
        made = network()
        net = made.__enter__()
    except OSError as error:  # no root, no namespaces, no ip
        pytest.skip(f"this machine gives us no network hosts: {error}")
    try:
        stores, head, one, two = (net.host(name) for name in ("stores", "head", "one", "two"))
        stores.start(sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", S3_PORT)
        stores.start(redis, "--port", REDIS_PORT, "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "")
        options = ["--object-store-memory", 150 * 2**20, "--temp-dir", net.disk / "ray", "--disable-usage-stats"]
        ray = [Path(sys.executable).with_name("ray"), "start"]
        address = f"--node-ip-address={head.address}"
        main = ["--head", address, "--port", RAY_PORT, "--num-cpus", 0, "--include-dashboard=true"]
        print(head.run(*ray, *main, *options))
        for node in (one, two):
            join = [f"--address={head.address}:{RAY_PORT}", f"--node-ip-address={node.address}", "--num-cpus", 3]
            print(node.run(*ray, *join, *options))
        wait_until_listening(stores, S3_PORT)
        wait_until_listening(stores, REDIS_PORT)
        s3 = f"endpoint_override={stores.address}:{S3_PORT}&scheme=http&region=us-east-1"
        Folder(f"s3://bucket?{s3}&allow_bucket_creation=true").create()
        yield Hosts(net, head, one, two, s3, f"redis://{stores.address}:{REDIS_PORT}/0", logs)
    finally:
        made.__exit__(None, None, None)


@pytest.fixture(scope="module")
def profile_on_head(hosts: Hosts, models_folder: Path, profile_settings: dict[str, Any]) -> Path:
    """A profile that lies on the disk of the head alone. The models are installed on every host."""
    settings = deepcopy(profile_settings)
    for role in ("vlm", "vision"):
        settings["models"][role] = f"local-dir:{models_folder / role}"
    settings["models"]["generator"]["uri"] = str(models_folder / "generator")
    # Two of a host's three CPUs, so that the second is on the other host.
    settings["embed"] |= {"cpus": 2, "min_actors": 2, "max_actors": 2}
    settings["imagine"] |= {"cpus": 2, "min_actors": 2, "max_actors": 2, "batch": 2}
    settings["index"] = {"rows_per_shard": IMAGES // SHARDS}
    settings["train"] |= {"cpus": 2, "min_workers": 2, "max_workers": 2}
    small = {"cpus": 0.1, "max_replicas": 1}
    twice = {"cpus": 0.1, "min_replicas": 2, "max_replicas": 2}
    settings["serve"] = {
        "keys_file": str(hosts.net.disk / "keys"),
        "local_index_bytes": 0,
        "watch_seconds": 1,
        "shard_timeout_ms": 1_000,
        "deadline_ms": 10_000,
        "limits": {"requests_per_minute": 1_000_000, "pictures_per_minute": 1_000_000},
        **{name: {**twice, "ongoing": 64} for name in ("ingress", "vlm", "ranker")},
        **{name: {**small, "ongoing": 16} for name in ("vision", "generator", "shards")},
    }
    settings["serve"]["generator"]["queued"] = 8
    for host in (hosts.head, hosts.one, hosts.two):  # as a secret that is mounted
        host.path("keys").write_text(f"{KEY} admin\n")
    hosts.head.path("work/profile.yaml").write_text(yaml.safe_dump(settings))
    return hosts.net.disk / "work/profile.yaml"


@pytest.fixture(scope="module")
def source(hosts: Hosts) -> str:
    """URI of a folder of images."""
    source = Folder(hosts.uri("images"))
    for i in range(IMAGES):
        data = BytesIO()
        render(categories()[i % LABELS], i).save(data, "PNG")
        source.write_bytes(f"{categories()[i % LABELS].name}/{i:03d}.png", data.getvalue())
    return source.uri


def test_index_and_queries_and_train(hosts: Hosts, source: str, profile_on_head: Path) -> None:
    target, query_set, aggregator = (hosts.uri(name) for name in ("target", "queries", "aggregator"))
    hosts.mindseye("index", source, target, "--profile", "profile.yaml")
    gallery, index = Gallery.open(Folder(target) / "gallery"), Index.open(Folder(target) / "index")
    assert (gallery.manifest.rows, index.manifest.rows, len(index.manifest.shards)) == (IMAGES, IMAGES, SHARDS)
    # A vocabulary and a profile that lie on the head alone.
    lines = ["name,label", *(f"{category.name},{category.name}" for category in categories()[:LABELS])]
    hosts.head.path("work/vocabulary.csv").write_text("\n".join(lines))
    hosts.mindseye("queries", "vocabulary.csv", query_set, "--profile", "profile.yaml")
    assert QuerySet.open(query_set).manifest.queries == LABELS
    hosts.mindseye("train", gallery.uri, query_set, aggregator, "--profile", "profile.yaml")
    assert TrainedAggregator.open(aggregator).manifest.weight > 0
    hosts.mindseye("index", "verify", target, "--profile", "profile.yaml")


@pytest.fixture(scope="module")
def indexed(hosts: Hosts, source: str, profile: Profile) -> str:
    """URI of a target, indexed by this process."""
    target = hosts.uri("served")
    job.index(source, target, profile, shards=SHARDS, address="none")
    return target


class Service(NamedTuple):
    process: Process
    urls: list[str]
    """Of the proxies of the hosts ``one`` and ``two``."""
    target: str


@pytest.fixture(scope="module")
def service(hosts: Hosts, profile_on_head: Path, indexed: str) -> Iterator[Service]:
    """The service, started by a command on the head."""
    log = hosts.logs / "serve.log"
    command = [sys.executable, ROOT / "mindseye.py", "serve", indexed, "--profile", profile_on_head]
    more = ["--host", "0.0.0.0", "--port", HTTP_PORT, "--store", hosts.redis]
    process = started(hosts.head, log, *command, *more, **hosts.environment)
    try:
        while "serving " not in log.read_text():
            assert process.running, log.read_text()
            time.sleep(0.2)
        yield Service(process, [f"http://{host.address}:{HTTP_PORT}" for host in (hosts.one, hosts.two)], indexed)
    finally:
        process.signal(signal.SIGTERM)
        code = process.wait(120)
    assert code == 0, log.read_text()


class Outcome(NamedTuple):
    """What came of one search that was sent ``at`` seconds on the monotonic clock and took so many."""

    at: float
    seconds: float
    said: str
    """The stage of a whole answer; ``partial``; or what went wrong."""
    version: str


class Load:
    """Searches that follow one another on several connections, until the block ends."""

    def __init__(self, url: str, *, connections: int = 4, **request: Any) -> None:
        self.outcomes: list[Outcome] = []
        self._url, self._connections, self._request = url, connections, request
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()))

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def said(self, since: float, until: float = math.inf) -> Counter[str]:
        """What was said to searches that were sent in a time."""
        return Counter(outcome.said for outcome in self.outcomes if since <= outcome.at < until)

    async def _ask(self) -> None:
        headers = {"X-API-Key": KEY}
        timeout = aiohttp.ClientTimeout(total=15)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            await asyncio.gather(*(self._one(session, n) for n in range(self._connections)))

    async def _one(self, session: aiohttp.ClientSession, number: int) -> None:
        for count in itertools.count():
            if self._over.is_set():
                return
            at = time.monotonic()
            body = {"query": f"red star {number} {count}", "k": 5, **self._request}
            version = ""
            try:
                async with session.post(f"{self._url}/v1/search", json=body) as response:
                    answer = await response.json()
                    if response.status != 200:
                        said = f"{response.status} {answer['error']['code']}"
                    else:
                        version = answer["index_version"]
                        whole = answer["shards"]["answered"] == answer["shards"]["total"]
                        said = answer["stage"] if whole else "partial"
            except (aiohttp.ClientError, TimeoutError) as error:
                said = type(error).__name__
            self.outcomes.append(Outcome(at, time.monotonic() - at, said, version))
            await asyncio.sleep(0.05)


def test_replicas_on_two_hosts_remember_together(hosts: Hosts, service: Service) -> None:
    for host in (hosts.one, hosts.two):
        assert "ServeReplica:mindseye:Ranker" in host.run("ps", "axww")
    answers = [search(url, "blue ring", key=KEY, k=5) for url in service.urls]
    for answer in answers:
        assert (answer.stage, answer.shards.answered, answer.degraded) == ("fused", SHARDS, None)
    assert [answer.memory for answer in answers] == ["miss", "hit"]
    assert answers[0].results == answers[1].results


def test_what_listens_where(hosts: Hosts, service: Service) -> None:
    """The table in docs/security.md: what more than the host itself can reach."""
    found = {host: listening(host) for host in (hosts.head, hosts.one, hosts.two)}
    for host, where in found.items():
        print(host.name, *(f"{name}: {sorted(kinds)}" for name, kinds in sorted(where.items())), sep="\n  ")
    for where in found.values():
        outward = [name for name, kinds in where.items() if not all(kind.startswith("loopback") for kind in kinds)]
        assert all(name.startswith(("gcs_server", "raylet", "python", "ray::")) for name in outward), outward
        # The dashboard and the Jobs API behind it are the head's own.
        assert not {"all 8265", "own 8265"} & set().union(*where.values())
        assert f"all {HTTP_PORT}" in set().union(*where.values())


def listening(host: Host) -> dict[str, set[str]]:
    """By the name of the process, what it listens at: all interfaces, the host's address, or its loopback."""
    found: dict[str, set[str]] = {}
    for line in host.run("ss", "-ltnpH").splitlines():
        local, name = line.split()[3], re.findall(r'\(\("([^"]*)"', line)
        ip, _, port = local.rpartition(":")
        kind = {"127.0.0.1": "loopback", "[::1]": "loopback", host.address: "own"}.get(ip, "all")
        kind += f" {port}" if int(port) in (RAY_PORT, HTTP_PORT, 8265, 52365, 10001) else ""
        found.setdefault(name[0] if name else "?", set()).add(kind)
    return found


def test_an_index_switch_under_load(hosts: Hosts, service: Service) -> None:
    before = info(service.urls[0], key=KEY).index_version
    with Load(service.urls[0], mode="text") as load:
        hosts.mindseye("index", "remove", service.target, "--label", categories()[0].name, "--address", "none")
        after = Index.open(Folder(service.target) / "index").version
        wait_until(lambda: len(load.outcomes) > 20 and {one.version for one in load.outcomes[-20:]} == {after})
    print(load.said(0))
    assert set(load.said(0)) == {"text"}
    assert {one.version for one in load.outcomes} == {before, after}
    switch_index(service.urls[1], f"{Folder(service.target).uri.partition('?')[0]}/index/{before}?{hosts.s3}", key=KEY)
    for url in service.urls:
        assert search(url, "red star", key=KEY, mode="text").index_version == before


def test_a_link_that_is_cut(hosts: Hosts, service: Service) -> None:
    with Load(service.urls[0], mode="text", deadline_ms=1000 * DEADLINE_SECONDS) as load:
        wait_until(lambda: len(load.outcomes) > 10)
        cut = time.monotonic()
        hosts.net.cut(hosts.two)
        time.sleep(CUT_SECONDS)
        mended = time.monotonic()
        hosts.net.mend(hosts.two)
        wait_until(lambda: {one.said for one in load.outcomes[-40:]} == {"text"} and load.outcomes[-40].at > mended)
        end = time.monotonic()
    for begin in range(0, int(end - cut) + 1, 2):
        print(f"{begin:3} s after the cut:", dict(load.said(cut + begin, cut + begin + 2)))
    last = max(one.at + one.seconds for one in load.outcomes if one.said != "text")
    print(f"last answer that was not whole: {last - mended:.1f} s after the link was mended")
    # Before the cut, and after it, all are answered; while it lasts, those that were not on the host that is away.
    assert set(load.said(0, cut - DEADLINE_SECONDS)) <= {"text"}
    meanwhile = load.said(cut, mended)
    assert meanwhile["partial"] > 0.7 * meanwhile.total()
    assert last - mended < RECOVERY_SECONDS
    for url in service.urls:
        answer = search(url, "a text of after", key=KEY, k=5)
        assert (answer.stage, answer.shards.answered) == ("fused", SHARDS)
