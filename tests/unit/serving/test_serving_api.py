"""The HTTP API in front of a graph in this process: what is answered, and how every wrong request is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import pytest
from event_stream import events
from PIL import Image
from starlette.testclient import TestClient
from tiny_artifacts import Collection

from cluster.profile import Limits
from demo.world import split
from retrieval.finder import Finder
from retrieval.query import QueryEncoder
from serving.deployments.calls import Unavailable
from serving.ingress import Service
from serving.memory.store import StoreError
from serving.protocol import FaultAnswer, ImaginedEvent, Info, SearchAnswer, UploadedPicture

LIMITS = Limits(query_characters=200, k=50, images=4, body_bytes=300_000, requests_per_minute=100_000)


@pytest.fixture(scope="module")
def limited(service: Service) -> Service:
    """The service, of which requests may ask for less than usual."""
    serve = service.profile.serve.model_copy(update={"limits": LIMITS})
    return replace(service, profile=service.profile.model_copy(update={"serve": serve}))


@pytest.fixture(scope="module")
def client(limited: Service) -> Iterator[TestClient]:
    search = limited.search()
    with TestClient(
        limited.api(search, behind_serve=False), "http://127.0.0.1", raise_server_exceptions=False
    ) as client:
        assert client.get("/readyz").status_code == 503
        assert client.portal
        client.portal.call(search.warm_up)
        yield client


def fault(response: Any, status: int, code: str | None = None, field: str | None = None) -> str:
    """Check that a request was refused as it should be, and return the words for it."""
    assert response.status_code == status, response.text
    answer = FaultAnswer.model_validate_json(response.content)
    assert answer.request_id == response.headers["x-request-id"]
    assert answer.error.field == field
    assert code in (None, answer.error.code)
    for leak in ("Traceback", "\x1b[", 'File "', "/site-packages", ".py"):
        assert leak not in response.text
    return answer.error.message


def test_a_search_is_answered(client: TestClient, query_encoder: QueryEncoder, collection: Collection) -> None:
    response = client.post("/v1/search", json={"query": " a red\tstar ", "k": 5}, headers={"X-Request-Id": "mine"})
    answer = SearchAnswer.model_validate_json(response.content)
    assert (answer.query, answer.request_id, answer.stage, answer.degraded) == ("a red star", "mine", "fused", None)
    plain = Finder(query_encoder, collection.index).search("a red star", 5, images=2)
    assert [(found.id, found.score) for found in answer.results] == [(f.row["id"], f.score) for f in plain.results]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in client.get("/v1/info", headers={"Origin": "http://evil"}).headers


def test_stages_are_events(client: TestClient) -> None:
    posted = client.post("/v1/search/stream", json={"query": "a blue moon", "k": 3, "images": 3})
    assert posted.headers["content-type"].startswith("text/event-stream")
    (text, _), (imagined, images), (fused, answer), (done, nothing) = events(posted.text)
    assert (text, imagined, fused, done, nothing) == ("text", "imagined", "fused", "done", {})
    assert len(ImaginedEvent.model_validate(images).imagined) == 3
    got = client.get("/v1/search/stream", params={"query": "a blue moon", "k": 3, "images": 3, "drop": [0, 2]})
    dropped = dict(events(got.text))["fused"]
    assert [image["dropped"] for image in dropped["imagined"]] == [True, False, True]
    assert dropped["memory"] == "hit"
    assert dropped["results"] != answer["results"]
    for options in ({"ignore": ["1", "shape"]}, {"focus": "1"}):  # texts, as they stand there
        fault(client.get("/v1/search/stream", params={"query": "x", **options}), 422, "no-words", next(iter(options)))
    text_only = client.get("/v1/search/stream", params={"query": "a blue moon", "mode": "text"})
    assert [name for name, _ in events(text_only.text)] == ["text", "done"]


def test_a_stream_that_cannot_continue_says_so(client: TestClient) -> None:
    (text, _), (name, body) = events(client.post("/v1/search/stream", json={"query": "a pink moon", "drop": [3]}).text)
    assert (text, name) == ("text", "error")
    assert "[3]" in FaultAnswer.model_validate(body).error.message


def test_pictures(client: TestClient, collection: Collection) -> None:
    found = client.post("/v1/search", json={"query": "a teal house", "k": 24}).json()
    for result in found["results"][:5]:
        picture = client.get(result["url"])
        assert picture.content == (collection.folder / "images" / result["path"]).read_bytes()
        assert picture.headers["content-type"] == "image/png"
        small = client.get(result["thumbnail"])
        assert small.headers["content-type"] == "image/jpeg"
        assert Image.open(BytesIO(small.content)).size == (64, 64)
    imagined = client.get(found["imagined"][1]["url"])
    assert Image.open(BytesIO(imagined.content)).format == "JPEG"


def test_a_picture_of_a_row_that_no_answer_had_is_looked_up(service: Service, collection: Collection) -> None:
    with TestClient(service.api(service.search(), behind_serve=False), "http://127.0.0.1") as client:
        data = client.get("/v1/images/id-013").content
    label = split("unseen")[13 // 4].name
    assert data == (collection.folder / "images" / label / f"{13 % 4}.png").read_bytes()


@pytest.mark.parametrize(
    "id",
    [
        "nothing",
        "../manifest.json",
        "%2e%2e%2fmanifest.json",
        "..%2f..%2fetc%2fpasswd",
        "%2fetc%2fpasswd",
        "a%00b",
        "%ff",
    ],
)
def test_only_rows_have_pictures(client: TestClient, id: str) -> None:
    assert fault(client.get(f"/v1/images/{id}"), 404, "not-found")


@pytest.mark.parametrize("address", ["/v1/imagined/abc/0", "/v1/nothing", "/page/../api.py", "/page/%2e%2e/api.py"])
def test_what_is_not_there_is_not_found(client: TestClient, address: str) -> None:
    fault(client.get(address), 404, "not-found")


def test_a_picture_is_searched_for(client: TestClient, collection: Collection) -> None:
    path = f"{split('unseen')[2].name}/3.png"
    data = (collection.folder / "images" / path).read_bytes()
    response = client.post("/v1/search/image?k=3&mode=visual", content=data, headers={"Content-Type": "image/png"})
    answer = SearchAnswer.model_validate_json(response.content)
    assert answer.results[0].path == path
    assert (answer.stage, answer.query, answer.kind, answer.weight) == ("visual", "", None, 1.0)
    given = client.post("/v1/search/image?weight=0.25", content=data, headers={"Content-Type": "image/png"}).json()
    assert (given["weight"], given["stage"], len(given["results"])) == (0.25, "fused", 10)


@pytest.mark.parametrize(
    ("data", "content_type", "status", "code"),
    [
        (b"", "image/png", 422, "empty"),
        (b"GIF89a and no more", "image/gif", 422, "corrupt"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", 422, "format-not-allowed"),
        (b"http://169.254.169.254/", "image/png", 422, "not-an-image"),
        (b"\xff\xd8\xff polyglot <script>", "image/jpeg", 422, "corrupt"),
        (b"{}", "application/json", 415, "not-a-picture"),
        (b"x" * 300_001, "image/png", 413, "body-too-large"),
    ],
)
def test_what_is_no_picture_is_refused(
    client: TestClient, data: bytes, content_type: str, status: int, code: str
) -> None:
    for path in ("/v1/search/image", "/v1/pictures"):
        fault(client.post(path, content=data, headers={"Content-Type": content_type}), status, code)


def test_a_picture_that_declares_too_many_pixels_is_refused(client: TestClient) -> None:
    buffer = BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    for path in ("/v1/search/image", "/v1/pictures"):
        response = client.post(path, content=buffer.getvalue(), headers={"Content-Type": "image/png"})
        fault(response, 422, "too-large")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"query": ""}, "query"),
        ({"query": 7}, "query"),
        ({"query": "half a pair \ud800"}, "query"),
        ({"query": "x" * 201}, "query"),
        ({"query": "x", "k": 0}, "k"),
        ({"query": "x", "k": -1}, "k"),
        ({"query": "x", "k": 51}, "k"),
        ({"query": "x", "k": 10**30}, "k"),
        ({"query": "x", "k": "10"}, "k"),
        ({"query": "x", "k": 2.5}, "k"),
        ({"query": "x", "k": True}, "k"),
        ({"query": "x", "images": 0}, "images"),
        ({"query": "x", "images": 5}, "images"),
        ({"query": "x", "weight": 1.01}, "weight"),
        ({"query": "x", "weight": "much"}, "weight"),
        ({"query": "x", "seed": -1}, "seed"),
        ({"query": "x", "seed": 2**63}, "seed"),
        ({"query": "x", "deadline_ms": 0}, "deadline_ms"),
        ({"query": "x", "mode": "both"}, "mode"),
        ({"query": "x", "kind": "caption"}, "kind"),
        ({"query": "x", "drop": [0] * 5}, "drop"),
        ({"query": "x", "drop": "0"}, "drop"),
        ({"query": "x", "url": "http://127.0.0.1"}, "url"),
    ],
)
def test_a_wrong_field_is_named(client: TestClient, body: dict[str, Any], field: str) -> None:
    for path in ("/v1/search", "/v1/search/stream"):
        response = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert field in fault(response, 422, field=field)
    numbers = {name: value for name, value in body.items() if isinstance(value, int | float) and name != "query"}
    if numbers:
        parameters = {"query": "x", **{name: json.dumps(value) for name, value in numbers.items()}}
        fault(client.get("/v1/search/stream", params=parameters), 422, field=field)


ABSENT = "0" * 64


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "empty", "evidence"),
        ({"query": None, "evidence": []}, "empty", "evidence"),
        ({"evidence": [{"text": "red", "weight": -1}, {"row": "id-000", "weight": -2}]}, "nothing-wanted", "evidence"),
        ({"query": "x", "evidence": [{"text": "y"}] * 17}, None, "evidence"),
        ({"query": "x", "evidence": [{"text": "y"}] * 16}, "too-many", "evidence"),
        ({"query": "x", "evidence": [{"text": "y"}, {}]}, "empty", "evidence.1"),
        ({"query": "x", "evidence": [{"text": "y", "row": "id-000"}]}, "ambiguous", "evidence.0"),
        ({"query": "x", "evidence": [{"text": "y", "weight": 0}]}, "out-of-range", "evidence.0.weight"),
        ({"query": "x", "evidence": [{"text": "y", "weight": 1e9}]}, None, "evidence.0.weight"),
        ({"query": "x", "evidence": [{"text": "y", "weight": float("nan")}]}, None, "evidence.0.weight"),
        ({"query": "x", "evidence": [{"text": "y", "weight": -float("inf")}]}, None, "evidence.0.weight"),
        ({"query": "x", "evidence": [{"text": "y" * 201}]}, "over-the-limit", "evidence.0.text"),
        ({"query": "x", "evidence": [{"text": "  "}]}, "blank", "evidence.0.text"),
        ({"query": "  "}, "blank", "query"),
        ({"query": "x", "evidence": [{"text": "y", "box": [0, 0, 1, 1]}]}, "no-picture", "evidence.0.box"),
        ({"evidence": [{"row": "id-000", "box": [0, 0, 1, 1.2]}]}, None, "evidence.0.box.3"),
        ({"evidence": [{"row": "id-000", "box": [-0.1, 0, 1, 1]}]}, None, "evidence.0.box.0"),
        ({"evidence": [{"row": "id-000", "box": [0, float("nan"), 1, 1]}]}, None, "evidence.0.box.1"),
        ({"evidence": [{"row": "id-000", "box": [0.5, 0, 0.5, 1]}]}, "out-of-range", "evidence.0.box"),
        ({"evidence": [{"row": "id-000", "box": [0.5, 0, 1]}]}, None, "evidence.0.box.3"),
        ({"evidence": [{"row": "nothing"}]}, "missing", "evidence.0.row"),
        ({"query": "x", "evidence": [{"text": "y"}, {"row": "nothing"}]}, "missing", "evidence.1.row"),
        ({"evidence": [{"row": "nothing", "box": [0, 0, 1, 0.5]}]}, "missing", "evidence.0.row"),
        ({"evidence": [{"upload": ABSENT}]}, "missing", "evidence.0.upload"),
        ({"evidence": [{"upload": ABSENT, "box": [0, 0, 1, 0.5]}]}, "missing", "evidence.0.upload"),
        ({"evidence": [{"upload": "../x"}]}, None, "evidence.0.upload"),
        ({"evidence": [{"imagined": f"{ABSENT}/0"}]}, "missing", "evidence.0.imagined"),
        ({"evidence": [{"imagined": "picture:x/0"}]}, None, "evidence.0.imagined"),
        ({"evidence": [{"row": "id-001"}], "drop": [0]}, "no-such-image", "drop"),
        ({"evidence": [{"row": "id-001"}, {"row": "id-001", "weight": -1}]}, "no-direction", "evidence"),
        ({"evidence": [{"text": "x", "url": "http://127.0.0.1"}]}, None, "evidence.0.url"),
    ],
)
def test_evidence_that_cannot_be_searched_by_is_named(
    client: TestClient, body: dict[str, Any], code: str | None, field: str
) -> None:
    body = {"images": 1, **body}
    for path in ("/v1/search", "/v1/search/stream"):
        response = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        fault(response, 422, code, field)
    plain = ("query", "drop")
    parameters = {name: value if name in plain else json.dumps(value) for name, value in body.items() if value}
    fault(client.get("/v1/search/stream", params=parameters), 422, code, field)
    assert client.post("/v1/search", json={"query": "x", "mode": "text"}).json()["degraded"] is None


def test_a_picture_is_sent_once_and_rounds_name_it(client: TestClient, collection: Collection) -> None:
    path = f"{split('unseen')[2].name}/3.png"
    data = (collection.folder / "images" / path).read_bytes()
    picture = UploadedPicture.model_validate_json(
        client.post("/v1/pictures", content=data, headers={"Content-Type": "image/png"}).content
    )
    assert (picture.width, picture.height) == (64, 64)
    shown = client.get(f"/v1/pictures/{picture.upload}")
    assert Image.open(BytesIO(shown.content)).size == (64, 64)
    fault(client.get(f"/v1/pictures/{ABSENT}"), 404, "not-found")
    fault(client.get("/v1/pictures/x"), 404, "not-found")
    fault(client.get(f"/v1/imagined/picture:{picture.upload}/0"), 404, "not-found")
    posted = client.post("/v1/search/image?k=3", content=data, headers={"Content-Type": "image/png"}).json()
    evidence = [{"upload": picture.upload}]
    by_key = client.post("/v1/search", json={"evidence": evidence, "k": 3}).json()
    assert by_key["results"] == posted["results"]
    assert by_key["results"][0]["path"] == path
    assert (by_key["visual"], by_key["kind"], by_key["query"]) == ("given", None, "")
    round_two = [*evidence, {"row": by_key["results"][1]["id"], "weight": -0.5}, {"text": "red", "weight": -0.2}]
    got = client.get("/v1/search/stream", params={"evidence": json.dumps(round_two), "k": 3, "images": 1})
    (text, by_text), (fused, answer), (done, _) = events(got.text)
    assert (text, fused, done) == ("text", "fused", "done")
    for result in (*by_text["results"], *answer["results"]):
        assert len(result["shares"]) == 3
        assert sum(result["shares"]) == pytest.approx(result["score"], abs=1e-5)
    # A box of less than a pixel is one, and an unknown key keeps nothing from being sent again.
    tiny = {"evidence": [{"upload": picture.upload, "box": [0.999, 0.999, 1, 1]}]}
    assert client.post("/v1/search", json=tiny).status_code == 200


def test_while_the_store_is_away_nothing_is_said_to_be_missing(
    limited: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = limited.search()
    with TestClient(limited.api(search, behind_serve=False), "http://127.0.0.1") as client:
        assert client.portal
        client.portal.call(search.warm_up)
        paths = (f"/v1/pictures/{ABSENT}", f"/v1/imagined/{ABSENT}/0")
        pieces: list[dict[str, Any]] = [{"upload": ABSENT}, {"imagined": f"{ABSENT}/0"}]
        for path in paths:
            fault(client.get(path), 404, "not-found")

        def away(*_: Any) -> None:
            raise StoreError("it is away")

        for method in ("get", "claim"):
            monkeypatch.setattr(search.memory.store, method, away)
        for path in paths:
            refusal = client.get(path)
            assert "the query memory is not running" in fault(refusal, 503, "down")
            assert refusal.headers["retry-after"] == "1"
        for piece in pieces:
            fault(client.post("/v1/search", json={"evidence": [piece]}), 503, "down")
        # What this process knows, and what it can make, it answers.
        png = BytesIO()
        Image.new("RGB", (40, 30), "red").save(png, "PNG")
        sent = client.post("/v1/pictures", content=png.getvalue(), headers={"Content-Type": "image/png"})
        upload = sent.json()["upload"]
        assert client.get(f"/v1/pictures/{upload}").status_code == 200
        assert client.post("/v1/search", json={"evidence": [{"upload": upload}]}).status_code == 200


@pytest.mark.parametrize("weight", [b"NaN", b"Infinity", b"-Infinity"])
def test_a_weight_that_is_no_number_is_refused(client: TestClient, weight: bytes) -> None:
    body = b'{"query": "x", "weight": ' + weight + b"}"
    fault(client.post("/v1/search", content=body, headers={"Content-Type": "application/json"}), 422, field="weight")
    fault(client.get("/v1/search/stream", params={"query": "x", "weight": weight}), 422, field="weight")


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"query": "a\x00"}'])
def test_a_body_that_is_no_request_is_refused(client: TestClient, body: bytes) -> None:
    response = client.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    FaultAnswer.model_validate_json(response.content)


def test_a_body_of_another_type_or_size_is_refused(client: TestClient) -> None:
    text = client.post("/v1/search", content=b'{"query": "x"}', headers={"Content-Type": "text/plain"})
    assert text.status_code == 422
    large = client.post("/v1/search", json={"query": "x" * 400_000})
    fault(large, 413, "body-too-large")
    chunked = client.post("/v1/search", content=(b"x" * 10_000 for _ in range(40)))
    fault(chunked, 413, "body-too-large")


@pytest.mark.parametrize(
    "query",
    [
        "x",
        "🦆 duck 🦆",
        "مرحبا بالعالم",
        "{} {name} %s",
        "(duck:1.4) [bird]",
        "\x1b[31m red",
        "null \x00 byte",
        "a\nb\tc",
        "word " * 39,
    ],
)
def test_any_text_is_a_query(client: TestClient, query_encoder: QueryEncoder, query: str) -> None:
    body = json.dumps({"query": query, "images": 1}).encode()
    response = client.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200
    answer = SearchAnswer.model_validate_json(response.content)
    assert answer.results
    assert bool(answer.warnings) == (query_encoder.vlm.token_count(f"a photo of a {answer.query}") > 32)


def test_texts_that_look_alike_are_one_query(client: TestClient) -> None:
    for query, memory in (("a caf\u00e9 star", "miss"), ("a cafe\u0301   star", "hit"), ("A caf\u00e9 star", "miss")):
        assert client.post("/v1/search", json={"query": query, "images": 1}).json()["memory"] == memory


def test_a_deadline_that_cannot_be_kept_is_a_timeout(client: TestClient) -> None:
    response = client.post("/v1/search", json={"query": "x", "mode": "text", "deadline_ms": 1})
    assert response.status_code in (200, 504)  # a quick machine may keep it
    if response.status_code == 504:
        fault(response, 504, "late")


def test_what_is_served_is_told_without_paths(client: TestClient, collection: Collection) -> None:
    response = client.get("/v1/info")
    info = Info.model_validate_json(response.content)
    assert (info.index, info.index_version, info.rows, info.shards) == ("index", "000001", 24, 2)
    assert info.models == {"vlm": "vlm", "vision": "vision"}
    assert info.limits["k"] == 50
    assert set(info.examples) <= {category.name for category in split("unseen")}
    assert str(collection.folder) not in response.text
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_an_index_that_is_not_there_is_not_switched_to(client: TestClient, service: Service) -> None:
    for index in (f"{service.index}/000099", "\0", "ftp://x/y", "s3://"):
        fault(client.put("/v1/index", json={"index": index}), 422, field="index")
    fault(client.put("/v1/index", json={}), 422, field="index")
    fault(client.post("/v1/index", json={}), 405, "method-not-allowed")


def test_only_the_own_index_and_those_that_the_operator_names_are_switched_to(
    service: Service, collection: Collection, tmp_path: Path
) -> None:
    """Another's manifest may name any folder as the source of its pictures."""
    shutil.copytree(service.index, tmp_path / "elsewhere")
    shutil.copytree(service.index, tmp_path / "allowed" / "index")
    serve = service.profile.serve.model_copy(update={"indexes": [str(tmp_path / "allowed")]})
    allowing = replace(service, profile=service.profile.model_copy(update={"serve": serve}))
    with TestClient(allowing.api(allowing.search(), behind_serve=False), "http://127.0.0.1") as client:
        for index in (
            tmp_path / "elsewhere",
            tmp_path,
            tmp_path / "allowed/../elsewhere",
            f"{service.index}/../x",
            f"{service.index}?a=b",
        ):
            assert "serve.indexes" in fault(client.put("/v1/index", json={"index": str(index)}), 422, field="index")
        assert client.put("/v1/index", json={"index": str(tmp_path / "allowed/index")}).status_code == 200
        assert client.put("/v1/index", json={"index": service.index}).status_code == 200


def test_the_api_describes_itself(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["components"]["schemas"]["SearchRequest"]["examples"]
    stream = document["paths"]["/v1/search/stream"]
    assert {parameter["name"] for parameter in stream["get"]["parameters"]} >= {"query", "k", "drop", "evidence"}
    assert set(document["components"]["schemas"]) >= {"EvidencePiece", "UploadedPicture", "QuestionAnswer"}
    question = document["paths"]["/v1/question"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert question == {"$ref": "#/components/schemas/SearchRequest"}
    assert "text/event-stream" in stream["post"]["responses"]["200"]["content"]
    assert client.get("/docs").status_code == 404  # its page would load scripts from elsewhere


def test_the_page_is_there(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/page/page.js").status_code == 200


def test_an_error_of_our_own_is_a_plain_500(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    search = service.search()

    async def broken(*_: Any, **__: Any) -> None:
        raise KeyError("/secret/path")

    monkeypatch.setattr(search, "answer", broken)
    with TestClient(
        service.api(search, behind_serve=False), "http://127.0.0.1", raise_server_exceptions=False
    ) as client:
        response = client.post("/v1/search", json={"query": "x"})
    assert "secret" not in response.text
    fault(response, 500, "internal")


def test_keys_guard_all_but_health_and_page(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("0123456789abcdef-key\n0123456789abcdef-boss admin 2999-01-01\n")
    serve = service.profile.serve.model_copy(update={"keys_file": str(file)})
    guarded = replace(service, profile=service.profile.model_copy(update={"serve": serve}))
    with TestClient(guarded.api(guarded.search(), behind_serve=False)) as client:
        for path in ("/v1/info", "/v1/images/id-001", "/v1/imagined/a/0", f"/v1/pictures/{ABSENT}"):
            fault(client.get(path), 401, "key-missing")
        fault(client.post("/v1/pictures", content=b"x", headers={"Content-Type": "image/png"}), 401, "key-missing")
        fault(client.put("/v1/index", json={"index": "x"}), 401, "key-missing")
        for path in ("/", "/page/page.js", "/healthz", "/openapi.json"):
            assert client.get(path).status_code == 200
        client.headers["Authorization"] = "Bearer 0123456789abcdef-key"
        assert client.get("/v1/info").status_code == 200
        # Back to a version that has rows that were removed since.
        fault(client.put("/v1/index", json={"index": service.index}), 403, "admin-needed")
        client.headers["Authorization"] = "Bearer 0123456789abcdef-boss"
        assert client.get("/v1/info").status_code == 200
        # Nor does a key open other places than the index that is served.
        elsewhere = ("/etc", f"{service.index}/../x", f"{service.index}?a=b", "s3://x/y?endpoint_override=here")
        for index in elsewhere:
            said = fault(client.put("/v1/index", json={"index": index}), 422, field="index")
            assert "none of this service's own" in said
        assert "there is no" in fault(
            client.put("/v1/index", json={"index": f"{service.index}/000099"}), 422, field="index"
        )


def test_pictures_have_a_limit_of_their_own(service: Service) -> None:
    limits = Limits(requests_per_minute=2, pictures_per_minute=3)
    serve = service.profile.serve.model_copy(update={"limits": limits})
    limited = replace(service, profile=service.profile.model_copy(update={"serve": serve}))
    with TestClient(limited.api(limited.search(), behind_serve=False), "http://127.0.0.1") as client:
        for path, status in (("images/id-001", 200), ("images/nothing", 404), ("imagined/a/0", 404)):
            assert client.get(f"/v1/{path}").status_code == status
        for path in ("images/id-001", "images/unheard-of", "imagined/a/0"):
            assert "at most 3 pictures a minute" in fault(client.get(f"/v1/{path}"), 429, "too-many-requests")
        assert [client.get("/v1/info").status_code for _ in range(3)] == [200, 200, 429]
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/search"), ("GET", "/v1/search/stream"), ("POST", "/v1/search/image"), ("POST", "/v1/question")],
)
def test_a_search_without_a_place_is_refused_before_anything_of_it_is_read(
    service: Service, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    """Behind Serve, all that an answer waits for is a call to the proxy, for the body or for the client's leaving."""
    search = service.search()
    monkeypatch.setattr(search.admission, "coming", lambda party: nullcontext(party != "127.0.0.1 page"))
    api = service.api(search, behind_serve=True)
    sent: list[Any] = []

    async def receive() -> Any:
        pytest.fail("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"sec-fetch-site", b"same-origin"), (b"content-length", b"9")]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": ("127.0.0.1", 1)}
    with pytest.raises(StopIteration):  # it ended without having waited for anything
        api({**scope, "query_string": b"", "root_path": ""}, receive, send).send(None)
    start, body = sent
    assert (start["status"], dict(start["headers"])[b"retry-after"]) == (503, b"1")
    assert FaultAnswer.model_validate_json(body["body"]).error.code == "busy"
    with TestClient(api, "http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        page = {"Sec-Fetch-Site": "same-origin"}
        assert client.get("/", headers=page).status_code == 200  # it needs no place
        assert client.post("/v1/search", json={"query": ""}).status_code == 422  # another party has one


def test_a_page_competes_for_places_apart_from_the_programs_of_its_caller(
    service: Service, monkeypatch: pytest.MonkeyPatch, collection: Collection
) -> None:
    search = service.search()
    callers: list[str] = []

    async def answer(*_: Any, caller: str, **__: Any) -> None:
        callers.append(caller)
        raise Unavailable("the service", "busy")

    def stages(*_: Any, caller: str, **__: Any) -> Any:
        async def none() -> Any:
            await answer(caller=caller)
            yield

        return none()

    for name, fake in (("answer", answer), ("by_picture", answer), ("stages", stages)):
        monkeypatch.setattr(search, name, fake)
    with TestClient(service.api(search, behind_serve=False), "http://127.0.0.1", client=("127.0.0.1", 5000)) as client:
        for headers in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-origin"}):
            image = {**headers, "Content-Type": "image/png"}
            for response in (
                client.post("/v1/search", json={"query": "x"}, headers=headers),
                client.post("/v1/search/stream", json={"query": "x"}, headers=headers),
                client.get("/v1/search/stream?query=x", headers=headers),
                client.post("/v1/search/image", content=b"x", headers=image),
            ):
                assert "as many requests waiting as it may" in fault(response, 503, "busy")
                assert response.headers["retry-after"] == "1"
    assert callers == ["127.0.0.1"] * 8 + ["127.0.0.1 page"] * 4


@pytest.mark.parametrize("leaves", ["while it waits", "while it is sent to"])
def test_a_client_that_goes_ends_its_search(service: Service, monkeypatch: pytest.MonkeyPatch, leaves: str) -> None:
    """A stream that is hung up on is closed, not left to the garbage collector."""
    search = service.search()
    closed = []

    async def stages(*_: Any, **__: Any) -> Any:
        try:
            yield "imagined", ImaginedEvent(imagined=[], memory="miss")
            await anyio.sleep(60)
        finally:
            closed.append(True)

    monkeypatch.setattr(search, "stages", stages)
    api = service.api(search, behind_serve=False)

    async def hang_up() -> None:
        received = anyio.Event()
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/v1/search/stream",
            "query_string": b"query=x",
            "headers": [(b"host", b"127.0.0.1")],
            "root_path": "",
        }

        async def receive() -> dict[str, Any]:
            await received.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message.get("body"):
                received.set()
                if leaves == "while it is sent to":
                    await anyio.sleep(60)

        with anyio.fail_after(10):
            await api(scope, receive, send)

    anyio.run(hang_up)
    assert closed == [True]


@pytest.mark.parametrize("host", ["localhost:8000", "[::1]:8000", "127.0.0.1"])
def test_without_keys_this_machines_names_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/v1/info", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["rebound.example", "127.0.0.1.rebound.example:80", "", "["])
def test_without_keys_a_name_that_was_pointed_here_is_not(client: TestClient, host: str) -> None:
    answer = client.get("/v1/info", headers={"Host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (421, "host-unknown")


def test_without_keys_other_machines_are_not_answered_whatever_they_say_they_asked(service: Service) -> None:
    app = service.api(service.search(), behind_serve=False)
    for client, status in (("192.0.2.7", 403), ("127.0.0.1", 200), ("::1", 200)):
        with TestClient(app, "http://127.0.0.1", client=(client, 50_000)) as asking:
            assert asking.get("/healthz").status_code == status
    with TestClient(app, "http://127.0.0.1", client=("192.0.2.7", 50_000)) as asking:
        assert "only requests from this machine" in fault(asking.get("/healthz"), 403, "key-missing")
