"""Jobs and a service on six nodes of one machine with labels and pretended GPUs, as a program: see test_placement.

    python labelled_nodes.py placed|jobs|service FOLDER PROFILE TARGET

In ``placed`` nothing is lost; in ``jobs`` a node for models is, in each of them; in ``service`` that of a shard of the
index in TARGET, which the jobs else make. It writes FOLDER/report.json. What is defined here lies in ``__main__``,
so workers are sent it whole.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray._private.state import actors
from ray.cluster_utils import Cluster

import mindseye
import pipelines.running
import training.loop
import training.workers
from cluster.nodes import POOL
from cluster.ports import free_port
from cluster.profile import Profile, load_profile
from cluster.room import Demand, check_room
from cluster.session import session
from demo.grammar import categories
from demo.world import render
from pipelines.executor import Workers
from pipelines.ray_executor import RayExecutor
from retrieval.errors import UserError
from serving.app import ServeArgs, front, plan
from serving.client import ServiceFault, search
from serving.launch import Prepared, running

MODE, FOLDER, PROFILE, TARGET = sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
NOTES = str(FOLDER / "notes")
IMAGES, CLASSES = 120, 12
MEMORY = {"object_store_memory": 80 * 2**20}


def note(what: str) -> None:
    context = ray.get_runtime_context()
    with Path(NOTES).open("a") as notes:
        notes.write(f"{what} {context.get_node_labels()[POOL]} {context.get_node_id()}\n")


def notes(what: str) -> list[tuple[str, str]]:
    """Return pools and ids of the nodes where this was noted."""
    lines = [line.split() for line in Path(NOTES).read_text().splitlines()] if Path(NOTES).exists() else []
    return [(pool, node) for name, pool, node in lines if name == what]


def noting(function: Callable[..., Any]) -> Callable[..., Any]:
    name = getattr(function, "__name__", type(function).__name__)

    def call(*arguments: Any) -> Any:
        note(name)
        return function(*arguments)

    return call


class Noted:
    """A worker that notes where it is, and takes its time for each table."""

    def __init__(self, make: Any, *arguments: Any) -> None:
        self.name, self.worker = make.__name__, make(*arguments)

    def __call__(self, table: Any) -> Any:
        note(self.name)
        if MODE == "jobs":
            time.sleep(0.5)
        return self.worker(table)


class Noting(RayExecutor):
    def run(self, function: Any, *arguments: Any, **place: Any) -> Any:
        return super().run(noting(function), *arguments, **place)

    def map(self, function: Any, items: Any, **place: Any) -> Any:
        return super().map(noting(function), items, **place)

    def as_completed(self, function: Any, items: Any, **place: Any) -> Any:
        return super().as_completed(noting(function), items, **place)

    def write(self, source: Any, *stages: Any, **how: Any) -> None:
        super().write(source, *map(self._noted, stages), **how)

    @staticmethod
    def _noted(stage: Any) -> Any:
        if isinstance(stage, Workers):
            return stage._replace(make=Noted, arguments=(stage.make, *stage.arguments))
        return stage


def noted_work(config: dict[str, Any]) -> Any:
    note("worker")
    return training.loop.train_loop(ray.get(config["run"]), Slow() if MODE == "jobs" else training.workers.OnRay())


class Slow(training.workers.OnRay):
    """A worker of Ray Train that takes its time for each validation."""

    def keep(self, line: Any, state: Any) -> None:
        super().keep(line, state)
        note("validated")
        time.sleep(1)


class Nodes:
    """The cluster: a head, where the driver is, a node for the ingress, and two each for models and for shards."""

    def __init__(self) -> None:
        head = {"num_cpus": 2, "include_dashboard": False, "labels": {POOL: "head"}, **MEMORY}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: dict[str, Any] = {}
        for pool in ("cpu", "gpu", "gpu", "index", "index"):
            self.add(pool)
        self.cluster.wait_for_nodes(timeout=120)

    def add(self, pool: str) -> None:
        node = self.cluster.add_node(num_cpus=2, num_gpus=2 * (pool == "gpu"), labels={POOL: pool}, **MEMORY)
        self.nodes[node.node_id] = node

    def kill(self, node: str) -> None:
        """End a node as a power cut would."""
        self.cluster.remove_node(self.nodes.pop(node), allow_graceful=False)

    def lose(self, when: Callable[[], str | None], job: str) -> threading.Thread:
        """Kill the node that is named as soon as one is."""

        def watch() -> None:
            while not (node := when()):
                time.sleep(0.02)
            lost[job] = time.monotonic()
            self.kill(node)

        thread = threading.Thread(target=watch)
        thread.start()
        return thread


lost: dict[str, float] = {}


def placed_profile() -> Profile:
    """The profile of the test, each stage on its own pool and nowhere else."""
    profile = load_profile(PROFILE)

    def at(pool: str, stage: Any, **more: Any) -> Any:
        return stage.model_copy(update={"labels": {POOL: pool}, "fallback": [], **more})

    gpu = {"cpus": 0.5, "gpus": 1}
    small = {"cpus": 0.2, "max_replicas": 1}
    settings = profile.serve
    return profile.model_copy(
        update={
            "embed": at("gpu", profile.embed, **gpu, max_actors=2, batch=8),
            "imagine": at("gpu", profile.imagine, **gpu, max_actors=2, batch=2),
            "index": at("index", profile.index, cpus=1),
            "train": at("gpu", profile.train, cpus=0.5, min_workers=1, max_workers=1, steps=24, validate_every=2),
            "serve": settings.model_copy(
                update={
                    "local_index_bytes": 0,
                    "ingress": at("cpu", settings.ingress, **small),
                    "ranker": at("cpu", settings.ranker, **small),
                    "vlm": at("gpu", settings.vlm, **small, gpus=0.5),
                    "vision": at("gpu", settings.vision, **small, gpus=0.5),
                    "generator": at("gpu", settings.generator, **small, gpus=0.5),
                    "shards": at("index", settings.shards, **small),
                    "shard_timeout_ms": 2_000,
                }
            ),
        }
    )


def write_images() -> Path:
    folder = FOLDER / "images"
    for i in range(IMAGES):
        file = folder / f"class {i % CLASSES}" / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        render(categories()[i % CLASSES], i).save(file)
    return folder


def write_classes() -> Path:
    file = FOLDER / "classes.csv"
    file.write_text("name\n" + "".join(f"class {i}\n" for i in range(CLASSES)))
    return file


@contextmanager
def service(profile: Profile) -> Iterator[str]:
    """A service of the index in ``TARGET``; only the head listens, for all nodes have one address."""
    args = ServeArgs(target=str(TARGET), profile=profile, store=f"sqlite:{FOLDER}/store.sqlite")
    planned = plan(args)
    made = Prepared(front(planned), profile.serve, planned.shards, "sqlite:", "127.0.0.1", free_port(), "mindseye")
    try:
        with running(made) as url:
            yield url
    finally:
        serve.shutdown()


def replicas() -> dict[str, list[str]]:
    """Return the nodes of the replicas that run, by deployment."""
    found = defaultdict(list)
    for actor in actors().values():
        if actor["State"] == "ALIVE" and "SERVE_REPLICA::mindseye#" in actor["Name"]:
            found[actor["Name"].split("#")[1]].append(actor["Address"]["NodeID"])
    return dict(found)


def index(profile: Profile) -> None:
    mindseye.index(write_images(), TARGET, profile, shards=2, factory="IVF2,Flat")


def queries(profile: Profile) -> None:
    mindseye.imagine(write_classes(), FOLDER / "queries", profile)


def train(profile: Profile) -> None:
    mindseye.train(TARGET / "gallery", FOLDER / "queries", FOLDER / "aggregator", profile)


JOBS = {"index": index, "queries": queries, "train": train}


def placed(profile: Profile, nodes: Nodes) -> dict[str, Any]:
    """Report the pools where each part of the jobs ran, the nodes of the replicas, and what is said of no room."""
    took = {}
    for name, job in JOBS.items():
        begun = time.monotonic()
        job(profile)
        took[name] = time.monotonic() - begun
    pools = defaultdict(set)
    for line in Path(NOTES).read_text().splitlines():
        what, pool, _ = line.split()
        pools[what].add(pool)
    with service(profile) as url:
        where = replicas()
        answer = search(url, "class 3", k=5, images=1)
    labels = {node["NodeID"]: node["Labels"][POOL] for node in ray.nodes()}
    asked = profile.embed.model_copy(update={"labels": {POOL: "tpu"}})
    begun = time.monotonic()
    try:
        check_room(Demand("an embedder", "embed", asked))
        said = ""
    except UserError as error:
        said = str(error)
    return {
        "pools": {what: sorted(found) for what, found in pools.items()},
        "served": {name: [labels[node] for node in found] for name, found in where.items()},
        "shards": [where[f"Shard{i}"] for i in range(2)],
        "shards_answered": [answer.shards.answered, answer.shards.total],
        "said": said,
        "said_after": time.monotonic() - begun,
        "took": took,
    }


def lose_nodes(profile: Profile, nodes: Nodes) -> dict[str, Any]:
    """Kill a node for models in each job; report what each took, and how long after the loss it ended."""
    took, since = {}, {}

    def embedding() -> str | None:
        """The second node that embeds, once it has worked."""
        return next((node for _, node in notes("Embedder")[8:]), None)

    def imagining() -> str | None:
        return next((node for _, node in notes("Imaginer")[3:]), None)

    def trained() -> str | None:
        return next((node for _, node in notes("validated")[3:]), None)

    for job, when in (("index", embedding), ("queries", imagining), ("train", trained)):
        killer, started = nodes.lose(when, job), time.monotonic()
        JOBS[job](profile)
        killer.join()
        nodes.add("gpu")  # Ray starts none in another thread
        took[job], since[job] = time.monotonic() - started, time.monotonic() - lost[job]
    return {"took": took, "after_loss": since, "attempts": len(notes("worker"))}


def lose_a_shard(profile: Profile, nodes: Nodes) -> dict[str, Any]:
    """Ask for texts without a pause while the node of a shard is lost; report what was answered, and when."""
    asked: list[tuple[float, float, str]] = []
    ended = threading.Event()

    def ask(number: int, url: str) -> None:
        while not ended.is_set():
            begun = time.monotonic()
            try:
                answer = search(url, f"class {number}", k=5, mode="text")
                said = f"{answer.shards.answered} of {answer.shards.total}"
            except (ServiceFault, OSError) as error:
                said = f"{type(error).__name__} {error}"
            asked.append((begun, time.monotonic(), said))
            time.sleep(0.05)

    with service(profile) as url, ThreadPoolExecutor(4) as pool:
        for number in range(4):
            pool.submit(ask, number, url)
        try:
            wait(lambda: sum(said == "2 of 2" for *_, said in asked) > 40)
            where = replicas()
            [shard] = where["Shard0"]
            at = time.monotonic()
            nodes.kill(shard)
            wait(lambda: any(begun > at and said == "1 of 2" for begun, _, said in asked))
            wait(lambda: replicas().get("Shard0", [shard]) != [shard])
            wait(lambda: [said for *_, said in asked[-20:]] == ["2 of 2"] * 20)
        finally:
            ended.set()
    whole = [begun for begun, _, said in asked if begun > at and said == "2 of 2"]
    partial = [begun for begun, _, said in asked if begun > at and said == "1 of 2"]
    slowest = max(end - begun for begun, end, _ in asked if begun > at)
    last = max(partial, default=at)
    return {
        "before": sum(begun < at for begun, *_ in asked),
        "partial": len(partial),
        "whole_again_after": min(begun for begun in whole if begun > last) - at,
        "in_flight": [said for begun, end, said in asked if begun <= at < end],
        "failed_later": [said for begun, _, said in asked if begun > at and said not in ("1 of 2", "2 of 2")],
        "slowest": slowest,
        "apart": where["Shard0"] != where["Shard1"],
    }


def wait(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.1)


if __name__ == "__main__":
    pipelines.running.RayExecutor = Noting  # type: ignore[misc]
    training.workers._work = noted_work
    there = Nodes()
    os.environ["RAY_ADDRESS"] = there.cluster.address
    try:
        with session(there.cluster.address):
            run = {"placed": placed, "jobs": lose_nodes, "service": lose_a_shard}[MODE]
            (FOLDER / "report.json").write_text(json.dumps(run(placed_profile(), there), indent=1))
    finally:
        ray.shutdown()
        there.cluster.shutdown()
