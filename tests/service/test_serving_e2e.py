"""The service on real Ray Serve: what goes wrong there, and that answers go on. One service for all tests."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pyarrow as pa
import pytest
import yaml
from prometheus import scraped
from tiny_artifacts import Collection, write_index

from cluster.ports import free_port
from serving.client import info, search, stream, switch_index, upload
from serving.metrics import METRICS
from serving.protocol import SearchAnswer

STEPS = 40
SLOW = {"images": 64, "deadline_ms": 25_000}
"""Takes seconds to be imagined; one image takes a fraction of one."""
HELD, QUEUED, OVER = 64, 128, 100
SHARDS = 3


@pytest.fixture(scope="module")
def versions(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Publish the next version of an index, of SHARDS shards; its ids begin with the given word."""
    folder = tmp_path_factory.mktemp("versions")
    [table] = collection.gallery.tables(["id", "path", "label", "width", "height", "batch"])

    def publish(word: str) -> Any:
        ids = pa.array([f"{word}-{id}" for id in table["id"].to_pylist()])
        renamed = table.set_column(0, "id", ids)
        vectors = collection.vlm_ND1, collection.vision_ND2
        return write_index(folder, collection.gallery, renamed, *vectors, shards=SHARDS)

    return publish


@pytest.fixture(scope="module")
def first(versions: Callable[[str], Any]) -> Any:
    return versions("first")


@pytest.fixture(scope="module")
def url(ray_session: None, first: Any, models_folder: Path, profile_settings: dict[str, Any]) -> Iterator[str]:
    """A service on a port of its own, with a generator that takes its time."""
    from ray import serve

    from serving.app import LOGGING, ServeArgs, build

    settings = deepcopy(profile_settings)
    settings["models"]["generator"] |= {"steps": STEPS}
    small = {"cpus": 0.05, "max_replicas": 1}
    settings["serve"] = {
        "watch_seconds": 0.5,
        "shard_timeout_ms": 10_000,
        "limits": {"requests_per_minute": 1_000_000, "pictures_per_minute": 1_000_000},
        "ingress": {**small, "ongoing": HELD, "queued": QUEUED},
        **{name: {**small, "ongoing": 64} for name in ("vlm", "vision", "ranker", "shards")},
        "generator": {**small, "ongoing": 4, "queued": 4, "batch": 2},
    }
    # No node here has such a label, so each shard goes where there is room.
    settings["serve"]["shards"]["labels"] = {"shard": "{shard}"}
    folder = models_folder.parent
    (folder / "serving.yaml").write_text(yaml.safe_dump(settings))
    port = free_port()
    target = str(Path(first.uri).parent)
    args = ServeArgs(target=target, profile=str(folder / "serving.yaml"), store=f"sqlite:{folder / 'store.sqlite'}")
    serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"}, logging_config=LOGGING)
    serve.run(build(args), name="mindseye")
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: ready(url), seconds=200)
    yield url
    serve.shutdown()


def ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz").status_code == 200
    except httpx2.HTTPError:
        return False


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.2)
    return value


def kill(deployment: str) -> None:
    """End the one replica of a deployment at once, as the kernel would for want of memory."""
    import ray

    [name] = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if f"mindseye#{deployment}#" in actor["name"]
    ]
    ray.kill(ray.get_actor(name, namespace="serve"))


def process_of(deployment: str) -> psutil.Process:
    """The process of the one replica of a deployment; Ray gives it this title."""
    title = f"ray::ServeReplica:mindseye:{deployment}"
    [process] = [
        each for each in psutil.process_iter(["cmdline"]) if " ".join(each.info["cmdline"] or ()).startswith(title)
    ]
    return process


def test_it_answers(url: str) -> None:
    assert info(url).rows == 24
    stages = list(stream(url, "a red star", images=2, k=5))
    assert [getattr(stage, "stage", "imagined") for stage in stages] == ["text", "imagined", "fused"]
    again = search(url, "a red star", images=2, k=5)
    assert (again.memory, again.degraded, again.shards.answered) == ("hit", None, SHARDS)
    assert again.results == stages[-1].results  # type: ignore[union-attr]
    for address in (again.results[0].url, again.results[0].thumbnail, again.imagined[1].url):
        picture = httpx2.get(url + address, timeout=60)
        assert picture.status_code == 200
        assert picture.headers["content-type"] in ("image/png", "image/jpeg")
    sent = upload(url, httpx2.get(url + again.results[0].url, timeout=60).content)
    given = [{"upload": sent.upload}, {"row": again.results[1].id, "weight": 0.5}, {"text": "blue", "weight": -0.2}]
    shown, *_, by_evidence = stream(url, evidence=given, images=2, k=5)
    assert isinstance(by_evidence, SearchAnswer)
    assert (shown.stage, by_evidence.stage, by_evidence.visual) == ("text", "fused", "given")  # type: ignore[union-attr]
    assert all(len(result.shares) == 3 for result in by_evidence.results)
    assert search(url, evidence=given, images=2, k=5).results == by_evidence.results
    refused = httpx2.post(f"{url}/v1/search", json={"query": " "}, headers={"X-Request-Id": "abc"}, timeout=60)
    assert refused.status_code == 422
    assert refused.headers.get_list("x-request-id") == ["abc"]
    assert refused.json()["request_id"] == "abc"


def test_an_operator_is_told_what_is_served(url: str, first: Any) -> None:
    from serving.running import applications

    [application] = applications()
    assert (application.name, application.status, application.url) == ("mindseye", "RUNNING", url)
    assert application.served
    assert (application.served.version, application.served.rows) == (first.uri, first.manifest.rows)
    found = {each.name: (each.wanted, each.replicas) for each in application.deployments}
    assert found.keys() >= {"Ingress", "Ranker", "ImaginingGenerator", *(f"Shard{i}" for i in range(SHARDS))}
    assert set(map(str, found.values())) == {str((1, {"RUNNING": 1}))}


def test_prometheus_sees_every_metric_under_these_names(url: str) -> None:
    search(url, "a red star", images=2, drop=[0, 1])  # degraded
    assert httpx2.get(f"{url}/v1/info", headers={"Host": "elsewhere.example"}, timeout=60).status_code == 421
    here = [metric for metric in METRICS if not metric.name.startswith("mindseye_assistant")]  # it has none
    wanted = {name for metric in here for name in metric.exported}
    seen = scraped(lambda page: all(f"\n{name}{{" in page for name in wanted))
    assert re.search(r'ray_mindseye_answers_total\{.*application="mindseye".*stage="text"', seen)


def test_a_hundred_identical_new_queries_cost_one_generation(url: str) -> None:
    async def ask() -> list[httpx2.Response]:
        body = {"query": "a new query", "images": 8, "deadline_ms": 25_000}
        async with client(url) as http:
            return await asyncio.gather(*(http.post("/v1/search", json=body) for _ in range(100)))

    responses = asyncio.run(ask())
    assert {response.status_code for response in responses} == {200}, {response.text for response in responses}
    answers = [SearchAnswer.model_validate_json(response.content) for response in responses]
    # Of as many generations all but the few that the generator may have waiting would be refused.
    assert {answer.stage for answer in answers} == {"fused"}
    assert len({tuple(image.url for image in answer.imagined) for answer in answers}) == 1


def test_the_index_moves_on_under_load_without_a_failure_and_without_a_mixture(
    url: str, first: Any, versions: Callable[[str], Any]
) -> None:
    answers: list[SearchAnswer] = []
    search(url, "a red star", images=2)  # remembered from here on

    async def ask(http: httpx2.AsyncClient, until: asyncio.Event) -> None:
        bodies = [{"query": "a red star", "images": 2, "k": 24, "mode": mode} for mode in ("text", "fused")]
        while not until.is_set():
            for body in bodies:
                response = await http.post("/v1/search", json=body)
                assert response.status_code == 200, response.text
                answers.append(SearchAnswer.model_validate_json(response.content))

    async def more() -> None:
        """Wait until so many more answers have come."""
        enough = len(answers) + 16
        while len(answers) < enough:
            await asyncio.sleep(0.05)

    async def move() -> None:
        until = asyncio.Event()
        async with client(url) as http:
            asking = [asyncio.create_task(ask(http, until)) for _ in range(4)]
            await more()
            second = await asyncio.to_thread(versions, "second")  # the service follows the folder by itself
            while not answers or answers[-1].index_version != second.version:
                await asyncio.sleep(0.1)
            await more()
            back = await asyncio.to_thread(switch_index, url, first.uri)
            assert back.index_version == first.version
            await more()
            until.set()
            await asyncio.gather(*asking)

    asyncio.run(asyncio.wait_for(move(), 60))
    seen = [(answer.index_version, *{found.id.split("-")[0] for found in answer.results}) for answer in answers]
    assert set(seen) == {("000001", "first"), ("000002", "second")}
    assert all((answer.shards.answered, answer.degraded) == (SHARDS, None) for answer in answers)
    assert seen[-1] == ("000001", "first")


def test_when_the_client_goes_the_generation_stops(url: str) -> None:
    for ask in (open_stream, open_post):
        left = {"query": f"slow, and left alone by {ask.__name__}", **SLOW}
        asyncio.run(ask(url, left))
        # The generator is free again only when it has ended that one, or has stopped it; ended, it would be remembered.
        assert search(url, f"after {ask.__name__}", images=1, deadline_ms=25_000).stage == "fused"
        stages = stream(url, **left)
        assert next(stages).memory == "miss"  # type: ignore[union-attr]
        stages.close()


async def open_stream(url: str, body: dict[str, Any]) -> None:
    """Read the first event of a stream, and hang up."""
    async with client(url) as http, http.stream("POST", "/v1/search/stream", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                assert json.loads(line.removeprefix("data: "))["stage"] == "text"
                await asyncio.sleep(0.3)
                return


async def open_post(url: str, body: dict[str, Any]) -> None:
    """Send a request, and hang up before it is answered."""
    async with client(url) as http:
        with pytest.raises(httpx2.ReadTimeout):
            await http.post("/v1/search", json=body, timeout=1)


def test_what_is_too_much_is_refused_or_answered_and_then_all_is_well(url: str) -> None:
    """How much is refused, and how soon, depends on the machine: ``benchmarks.serve`` measures that."""
    body = {"query": "for very many", "images": 2, "deadline_ms": 25_000}

    async def ask() -> list[httpx2.Response]:
        async with client(url) as http:
            return await asyncio.gather(
                *(http.post("/v1/search", json=body) for _ in range(HELD + QUEUED + OVER)),
            )

    answers = asyncio.run(ask())
    assert {response.status_code for response in answers} <= {200, 503, 504}
    assert all(response.headers["retry-after"] for response in answers if response.status_code == 503)
    assert any(response.status_code == 200 for response in answers)
    assert search(url, "and then all is well", mode="text").degraded is None


def test_while_the_generator_is_full_texts_answer_and_say_so(url: str) -> None:
    async def ask() -> list[SearchAnswer]:
        async with client(url) as http:
            bodies = [{"query": f"slow query {i}", **SLOW, "deadline_ms": 10_000} for i in range(32)]
            answers = await asyncio.gather(*(http.post("/v1/search", json=body) for body in bodies))
        return [SearchAnswer.model_validate_json(response.content) for response in answers]

    answers = asyncio.run(ask())
    reasons = [answer.degraded for answer in answers]
    busy = [answer for answer in answers if answer.degraded == "the generator has as many requests waiting as it may"]
    assert len(busy) >= 4, reasons
    assert all(answer.visual == "nearest" and answer.results and answer.timings_ms["total"] < 8000 for answer in busy)


@pytest.mark.long
def test_a_generator_that_dies_in_the_middle_leaves_the_nearest_and_comes_back(url: str) -> None:
    wait_until(lambda: search(url, "is it idle?", images=1, seed=time.time_ns()).visual == "imagined")
    stages = stream(url, "slow, and to be killed", **SLOW)
    assert next(stages).stage == "text"  # type: ignore[union-attr]
    time.sleep(0.5)
    kill("ImaginingGenerator")
    [last] = stages
    assert isinstance(last, SearchAnswer)
    assert (last.visual, last.degraded) == ("nearest", "the generator is not running")
    # It does not wait for the next replica.
    assert search(url, "a query meanwhile", deadline_ms=20_000).degraded == "the generator is not running"
    wait_until(
        lambda: search(url, "a query afterwards", images=1, deadline_ms=20_000).visual == "imagined", seconds=100
    )


@pytest.mark.parametrize("deployment", ["Ranker", pytest.param("VLMTowers", marks=pytest.mark.long)])
def test_a_part_that_no_answer_can_do_without_is_refused_in_words_and_comes_back(url: str, deployment: str) -> None:
    """Whatever is asked meanwhile is answered, or refused as the API says: nothing hangs, and the service stays up."""
    body = {"query": "a red star", "mode": "text", "deadline_ms": 5000}
    kill(deployment)

    def answered() -> bool:
        response = httpx2.post(f"{url}/v1/search", json=body, timeout=60)
        assert response.status_code in (200, 503, 504), response.text
        assert response.status_code == 200 or response.json()["error"]["message"]
        assert httpx2.get(f"{url}/healthz", timeout=60).status_code == 200
        return response.status_code == 200

    wait_until(answered, seconds=200)
    assert info(url).index_version == "000001"
    assert search(url, "a red star", images=1).stage == "fused"


def test_a_shard_that_hangs_and_then_dies_is_missed_and_comes_back(url: str) -> None:
    assert search(url, "a blue house", mode="text").shards.answered == SHARDS
    # Stopped first: a dead one may be back before anyone misses it, a stopped one cannot answer.
    shard = process_of("Shard1")
    shard.suspend()
    begun = time.monotonic()
    answer = search(url, "a blue house", mode="text", deadline_ms=15_000)
    assert time.monotonic() - begun < 15
    assert (answer.shards.answered, answer.shards.total) == (SHARDS - 1, SHARDS)
    assert answer.degraded == f"1 of {SHARDS} shards of the index did not answer"
    assert answer.results
    shard.kill()
    begun = time.monotonic()
    answer = search(url, "a blue house", mode="text", deadline_ms=20_000)
    assert time.monotonic() - begun < 20
    assert answer.results
    wait_until(lambda: search(url, "a blue house", mode="text").shards.answered == SHARDS)
    assert search(url, "a blue house", mode="text").degraded is None


@asynccontextmanager
async def client(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=200, limits=limits) as http:
        yield http
