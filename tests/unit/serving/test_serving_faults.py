"""Exceptions that nobody expected, in each deployment: they are logged with their traceback, and cost no more than they
must. A client sees a word and a neutral sentence, never ours as its own mistake, and no path of this machine.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from event_stream import events
from starlette.testclient import TestClient
from tiny_artifacts import Collection

import serving.deployments.ranker
import serving.deployments.shards
from retrieval.errors import DamagedError, UserError
from retrieval.index.shard import Shard
from retrieval.models.generator import Generator
from retrieval.models.vision import VisionEncoder
from retrieval.models.vlm import VLM
from retrieval.sources.lookup import ImageLookup
from serving.ingress import Service
from serving.protocol import FaultAnswer, ImaginedEvent, SearchAnswer

SECRET = "/srv/secret/place"
ERRORS = [
    ValueError(f"a fault at {SECRET}"),
    pa.ArrowInvalid(f"a fault at {SECRET}"),
    KeyError(SECRET),
    UserError(f"a fault at {SECRET}", code="wrong", field="k"),  # about our own settings: no client's
    DamagedError(f"{SECRET} is damaged"),
]


@pytest.fixture(params=ERRORS, ids=lambda error: type(error).__name__)
def error(request: pytest.FixtureRequest) -> Exception:
    return request.param


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Callable[..., None]:
    """Have a function of a class or module raise the error, where its arguments are ``so``."""

    def put(place: Any, name: str, so: Callable[..., bool] = lambda *_, **__: True) -> None:
        real = getattr(place, name)

        def broken(*given: Any, **named: Any) -> Any:
            if so(*given, **named):
                raise copy(error)  # a raised one keeps its traceback
            return real(*given, **named)

        monkeypatch.setattr(place, name, broken)

    return put


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    search = service.search()
    api = service.api(search, behind_serve=False)
    with TestClient(api, "http://127.0.0.1", raise_server_exceptions=False) as client:
        assert client.portal
        client.portal.call(search.warm_up)
        yield client


@pytest.fixture
def picture(collection: Collection) -> dict[str, Any]:
    """What a search by picture sends."""
    file = next((collection.folder / "images").rglob("*.png"))
    return {"content": file.read_bytes(), "headers": {"Content-Type": "image/png"}}


def failed(response: Any, message: str) -> None:
    assert response.status_code == 500, response.text
    told = FaultAnswer.model_validate_json(response.content)
    assert (told.error.code, told.error.message, told.error.field) == ("failed", message, None)
    silent(response.text)


def by_text(response: Any, degraded: str) -> SearchAnswer:
    """The answer that a text still gets."""
    assert response.status_code == 200, response.text
    answer = SearchAnswer.model_validate_json(response.content)
    assert (answer.stage, answer.weight, answer.degraded) == ("text", 0.0, degraded)
    assert answer.results
    silent(response.text)
    return answer


def by_nearest(response: Any, degraded: str) -> None:
    """The answer by the text and the real images that are nearest to it, in the place of imagined ones."""
    assert response.status_code == 200, response.text
    answer = SearchAnswer.model_validate_json(response.content)
    assert (answer.stage, answer.visual, answer.degraded) == ("fused", "nearest", degraded)
    assert answer.results
    silent(response.text)


def silent(text: str) -> None:
    for leak in ("secret", "Traceback", "\x1b[", ".py"):
        assert leak not in text


def logged(serve_log: pytest.LogCaptureFixture, part: str) -> None:
    """The part is logged as having failed, with the traceback to where it did."""
    records = [record for record in serve_log.records if record.getMessage() == f"{part} failed"]
    assert records
    for record in records:
        assert record.levelname == "ERROR"
        assert record.exc_info
        text = "".join(traceback.format_exception(*record.exc_info))
        assert "in broken" in text
        assert "secret" in text


def test_the_text_tower(client: TestClient, breaks: Callable[..., None], serve_log: pytest.LogCaptureFixture) -> None:
    breaks(VLM, "encode_text")
    for mode in ("text", "fused"):
        failed(client.post("/v1/search", json={"query": "a red star", "mode": mode}), "the text encoder failed")
    failed(client.post("/v1/search/stream", json={"query": "a red star"}), "the text encoder failed")
    logged(serve_log, "the text encoder")


def test_the_image_tower(
    client: TestClient, breaks: Callable[..., None], picture: dict[str, Any], serve_log: pytest.LogCaptureFixture
) -> None:
    breaks(VLM, "encode_images")
    failed(client.post("/v1/search/image", **picture), "the image encoder failed")
    logged(serve_log, "the image encoder")


def test_the_vision_encoder(
    client: TestClient, breaks: Callable[..., None], picture: dict[str, Any], serve_log: pytest.LogCaptureFixture
) -> None:
    breaks(VisionEncoder, "encode_images")
    failed(client.post("/v1/search/image", **picture), "the vision encoder failed")
    by_nearest(client.post("/v1/search", json={"query": "a star that is not seen"}), "the vision encoder failed")
    logged(serve_log, "the vision encoder")


def test_the_generator(client: TestClient, breaks: Callable[..., None], serve_log: pytest.LogCaptureFixture) -> None:
    breaks(Generator, "imagine")
    by_nearest(client.post("/v1/search", json={"query": "a star that is not imagined"}), "the generator failed")
    streamed = client.post("/v1/search/stream", json={"query": "a star that is not imagined"})
    assert [name for name, _ in events(streamed.text)] == ["text", "fused", "done"]
    silent(streamed.text)
    logged(serve_log, "the generator")


def test_the_ranker(client: TestClient, breaks: Callable[..., None], serve_log: pytest.LogCaptureFixture) -> None:
    breaks(serving.deployments.ranker, "compiled", lambda encoded, weight: weight > 0)
    by_text(client.post("/v1/search", json={"query": "a star that is not fused"}), "the ranker failed")
    failed(client.post("/v1/search", json={"query": "a star that is not fused"}), "the ranker failed")  # remembered
    told = events(client.post("/v1/search/stream", json={"query": "a star that is not fused"}).text)
    assert [name for name, _ in told] == ["text", "imagined", "fused", "done"]
    logged(serve_log, "the ranker")


def test_one_shard(client: TestClient, breaks: Callable[..., None], serve_log: pytest.LogCaptureFixture) -> None:
    breaks(Shard, "search", lambda shard, *_: "id-001" in shard.rows["id"].to_pylist())
    response = client.post("/v1/search", json={"query": "a red star", "mode": "text", "k": 24})
    answer = by_text(response, "1 of 2 shards of the index did not answer")
    assert (answer.shards.answered, answer.shards.total, len(answer.results)) == (1, 2, 12)
    fused = client.post("/v1/search", json={"query": "a red star", "k": 24}).json()
    assert (fused["stage"], fused["shards"]) == ("fused", {"answered": 1, "total": 2})
    logged(serve_log, "shard 1")


def test_every_shard(client: TestClient, breaks: Callable[..., None]) -> None:
    breaks(Shard, "search")
    failed(client.post("/v1/search", json={"query": "a red star"}), "every shard of the index failed")


def test_the_shard_that_may_have_a_picture(
    client: TestClient, breaks: Callable[..., None], serve_log: pytest.LogCaptureFixture
) -> None:
    breaks(serving.deployments.shards.Opened, "path", lambda opened, _: 1 in opened.shards)  # that of id-001
    assert client.get("/v1/images/id-000").status_code == 200
    failed(client.get("/v1/images/id-001"), "shard 1 failed")  # and not: there is none
    logged(serve_log, "shard 1")


def test_the_pictures(client: TestClient, breaks: Callable[..., None], serve_log: pytest.LogCaptureFixture) -> None:
    breaks(ImageLookup, "bytes_of")
    for size in ("full", "thumbnail"):
        failed(client.get("/v1/images/id-002", params={"size": size}), "the source of the pictures failed")
    [record, _] = [record for record in serve_log.records if "cannot be read" in record.getMessage()]
    assert record.exc_info
    assert "in broken" in "".join(traceback.format_exception(*record.exc_info))


@pytest.mark.parametrize("error", ERRORS[:3], ids=lambda error: type(error).__name__)
def test_the_ingress_itself(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception, serve_log: pytest.LogCaptureFixture
) -> None:
    search = service.search()

    async def answer(*_: Any, **__: Any) -> Any:
        raise error

    async def broken_off(*_: Any, **__: Any) -> Any:
        yield "imagined", ImaginedEvent(imagined=[], memory="miss")
        raise error

    monkeypatch.setattr(search, "answer", answer)
    monkeypatch.setattr(search, "stages", broken_off)
    with TestClient(
        service.api(search, behind_serve=False), "http://127.0.0.1", raise_server_exceptions=False
    ) as client:
        response = client.post("/v1/search", json={"query": "x"})
        assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")
        streamed = client.post("/v1/search/stream", json={"query": "x"})
    [(_, _), (name, body)] = events(streamed.text)
    assert (name, body["error"]["code"]) == ("error", "internal")
    for text in (response.text, streamed.text):
        silent(text)
    assert sum(bool(record.exc_info) for record in serve_log.records) == 2


def test_a_switch_to_an_index_with_a_damaged_shard(
    client: TestClient, breaks: Callable[..., None], error: Exception, collection: Collection
) -> None:
    """Of a file that is damaged the one who named the index is told, in our words; anything else is a failure."""
    breaks(serving.deployments.shards.Index, "shard")
    other = Path(shutil.copytree(collection.index.uri, collection.folder / "index" / "000009"))
    try:
        response = client.put("/v1/index", json={"index": str(other)})
    finally:
        shutil.rmtree(other)
    silent(response.text)
    expected = (422, "damaged") if isinstance(error, UserError) else (500, "failed")
    assert (response.status_code, response.json()["error"]["code"]) == expected
    assert client.post("/v1/search", json={"query": "a red star", "mode": "text"}).json()["degraded"] is None
