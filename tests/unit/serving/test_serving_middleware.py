"""What guards the service, against a real server on the loopback: bodies, keys, rates, ids, headers, faults."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn
from errors import refused
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp

from serving.guards import keys as keys_module
from serving.guards.keys import Keys, check_exposure, read_keys
from serving.guards.limits import BodyLimit, RateLimit
from serving.guards.middleware import CALLER, LastResort, RequestId, SecurityHeaders, request_id
from serving.memory.redis import PASSWORD

KEY, OTHER, EXPIRED, ENDING = (
    "first-key-0123456789",
    "other-key-0123456789",
    "expired-key-01234567",
    "ending-key-012345678",
)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def fault(self) -> dict[str, Any]:
        content = json.loads(self.body)
        assert set(content) == {"error", "request_id"}
        return content["error"]


class Server(NamedTuple):
    port: int

    def ask(self, path: str = "/", method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            found = [(name.lower(), value) for name, value in response.getheaders()]
            assert len(dict(found)) == len(found), f"a header is there twice: {found}"
            return Answer(response.status, dict(found), response.read())
        finally:
            connection.close()

    def send(self, *pieces: bytes, pause: float = 0.0) -> bytes:
        """Send bytes as they are, piece by piece; return all that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause)
            except OSError:
                pass  # the server has heard enough
            received = b""
            with suppress(ConnectionResetError):  # what it did not read resets the connection
                while piece := connection.recv(65536):
                    received += piece
            return received


@contextmanager
def served(app: ASGIApp) -> Iterator[Server]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Server(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


Seen = list[dict[str, Any]]


@pytest.fixture
def seen() -> Seen:
    """What has reached the application."""
    return []


@pytest.fixture
def app(seen: Seen) -> ASGIApp:
    async def echo(request: Request) -> Response:
        body = await request.body()
        seen.append({"bytes": len(body), "caller": request.scope.get(CALLER), "request_id": request_id.get()})
        return JSONResponse(seen[-1])

    async def broken(request: Request) -> Response:
        raise RuntimeError("the password is hunter2")

    async def breaks_off(request: Request) -> Response:
        async def pieces() -> Any:
            yield b"half"
            raise RuntimeError("the password is hunter2")

        return StreamingResponse(pieces())

    async def framed(request: Request) -> Response:
        return Response(headers={"X-Frame-Options": "SAMEORIGIN"})

    methods = ["GET", "POST", "PUT"]
    return Router(
        routes=[
            Route("/broken", broken),
            Route("/breaks-off", breaks_off),
            Route("/framed", framed),
            Route("/{rest:path}", echo, methods=methods),
        ]
    )


# Bodies


@pytest.fixture
def bounded(app: ASGIApp) -> Iterator[Server]:
    with served(BodyLimit(app, max_bytes=1000, seconds=30)) as server:
        yield server


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


CHUNKED = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"


def test_bodies_up_to_the_limit_arrive_whole(bounded: Server, seen: Seen) -> None:
    for size in (0, 1, 999, 1000):
        assert json.loads(bounded.ask("/", "POST", b"x" * size).body)["bytes"] == size
    assert bounded.ask().status == 200
    whole = bounded.send(CHUNKED, *[chunk(b"x" * 100)] * 10, b"0\r\n\r\n", pause=0.01)
    assert whole.startswith(b"HTTP/1.1 200")
    assert seen[-1]["bytes"] == 1000


def test_a_declared_length_over_the_limit_is_refused_before_a_byte_is_read(bounded: Server, seen: Seen) -> None:
    for declared in (1001, 10 * 2**30):
        begun = time.monotonic()
        answer = bounded.send(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % declared)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in answer.lower()
        assert time.monotonic() - begun < 15  # it has not waited for a body
    answer_ = bounded.ask("/", "POST", b"x" * 1001)
    assert (answer_.status, answer_.fault["code"]) == (413, "body-too-large")
    assert "1,000 bytes" in answer_.fault["message"]
    assert not seen


def test_a_chunked_body_is_counted_while_it_comes(bounded: Server, seen: Seen) -> None:
    begun = time.monotonic()
    endless = bounded.send(CHUNKED, *[chunk(b"x" * 100)] * 1000)
    assert endless.startswith(b"HTTP/1.1 413")
    assert time.monotonic() - begun < 15
    assert not seen


def test_a_slow_body_is_given_up(app: ASGIApp, seen: Seen) -> None:
    with served(BodyLimit(app, max_bytes=1000, seconds=0.5)) as server:
        for head in (CHUNKED, b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 900\r\n\r\n"):
            slow = server.send(head, *[chunk(b"x")] * 12, pause=0.1)
            assert slow.startswith(b"HTTP/1.1 408")
            assert b'"body-too-slow"' in slow
    assert not seen


def test_who_hangs_up_amid_a_body_reaches_nobody(app: ASGIApp, seen: Seen) -> None:
    bounded, over = BodyLimit(app, max_bytes=1000, seconds=30), threading.Event()

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        await bounded(scope, receive, send)
        over.set()

    with served(watched) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 900\r\n\r\nxxx")
        assert over.wait(20)  # and not by the limit of time
        assert not seen


def test_the_application_still_hears_that_a_client_left(app: ASGIApp) -> None:
    heard = threading.Event()

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"xxx"
        assert (await receive())["type"] == "http.disconnect"
        heard.set()

    with served(BodyLimit(waiting, max_bytes=1000, seconds=0.5)) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\n\r\nxxx")
            assert not heard.wait(0.7)  # neither does the time for the body run on
        assert heard.wait(60)


# Keys


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    soon = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    lines = ["# who has which", "", KEY, f"  {OTHER}   # the other one", f"{EXPIRED} 2026-01-31", f"{ENDING} {soon}"]
    file = tmp_path / "keys"
    file.write_text("\n".join(lines))
    return file


@pytest.fixture
def locked(app: ASGIApp, keys_file: Path) -> Iterator[Server]:
    with served(Keys(app, read_keys(keys_file), open_paths=["/healthz", "/", "/page/*"])) as server:
        yield server


def test_a_key_opens_by_either_header(locked: Server, seen: Seen) -> None:
    assert locked.ask("/v1/search", Authorization=f"Bearer {KEY}").status == 200
    assert locked.ask("/v1/search", Authorization=f"bearer   {KEY}").status == 200
    assert locked.ask("/v1/search", X_API_Key=KEY).status == 200
    assert locked.ask("/v1/search", X_API_Key=OTHER).status == 200
    assert locked.ask("/v1/search", X_API_Key=ENDING).status == 200
    callers = [one["caller"] for one in seen]
    assert len(set(callers)) == 3
    assert len(set(callers[:3])) == 1
    assert not any(part in str(callers) for part in ("first", "other", "ending"))


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "key-missing"),
        ({"Authorization": f"Basic {KEY}"}, "key-missing"),
        ({"Authorization": "Bearer "}, "key-missing"),
        ({"Authorization": f"Bearer {KEY}x"}, "key-unknown"),
        ({"Authorization": f"Bearer {KEY[:-1]}"}, "key-unknown"),
        ({"Authorization": f"Bearer {KEY.upper()}"}, "key-unknown"),
        ({"X_API_Key": "k\u00e4se"}, "key-unknown"),
        ({"X_API_Key": "x" * 10_000}, "key-unknown"),
        ({"X_API_Key": EXPIRED}, "key-expired"),
    ],
)
def test_without_a_right_key_it_stays_shut(locked: Server, seen: Seen, headers: dict[str, str], code: str) -> None:
    answer = locked.ask("/v1/search", **headers)
    assert (answer.status, answer.fault["code"], answer.headers["www-authenticate"]) == (401, code, "Bearer")
    assert KEY not in answer.body.decode()
    assert not seen


def test_open_paths_are_these_and_no_others(locked: Server) -> None:
    for path in ("/", "/healthz", "/page/style.css", "/page/", "/?q=1"):
        assert locked.ask(path).status == 200
    for path in (
        "/healthz/",
        "/healthz/x",
        "/page",
        "/pages",
        "//",
        "/v1/search?x=/page/",
        "/v1/../page/x",
        "/%2fhealthz",
    ):
        assert locked.ask(path).status == 401


def test_what_changes_the_service_wants_an_admin_key(app: ASGIApp, tmp_path: Path, seen: Seen) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n{OTHER} admin\n{EXPIRED} admin 2026-01-31\n")
    with served(Keys(app, read_keys(file), admin_paths=["/v1/index"])) as server:
        assert server.ask("/v1/search", X_API_Key=KEY).status == 200
        answer = server.ask("/v1/index", X_API_Key=KEY)
        assert (answer.status, answer.fault["code"]) == (403, "admin-needed")
        assert server.ask("/v1/index", X_API_Key=EXPIRED).fault["code"] == "key-expired"
        assert len(seen) == 1
        assert server.ask("/v1/index", X_API_Key=OTHER).status == 200


def test_each_key_is_compared_in_constant_time(app: ASGIApp, keys_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = keys_module.hmac.compare_digest
    monkeypatch.setattr(keys_module.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    guard = Keys(app, read_keys(keys_file))
    for given in (KEY, ENDING, "wrong", ""):
        compared.clear()
        guard._matching(given)
        assert len(compared) == 4
        assert {len(value) for pair in compared for value in pair} == {32}


def test_a_keys_file_that_is_wrong_is_said_without_the_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with refused("unreadable", "serve.keys_file"):
        read_keys(file)
    for content, code, line in (
        ("# nothing\n\n", "no-keys", ""),
        (f"{KEY}\nhidden\n", "bad-key", "line 2"),
        ("sssssssssé-hidden", "bad-key", "line 1"),
        (f"{KEY} hidden", "bad-expiry", "line 1"),
        (f"{KEY} 2026-13-45", "bad-expiry", "line 1"),
        (f"{KEY} 2026-01-01 12:00", "bad-expiry", "line 1"),
        (f"{KEY} admin hidden", "bad-expiry", "line 1"),
    ):
        file.write_text(content)
        with refused(code, "serve.keys_file") as caught:
            read_keys(file)
        assert line in str(caught.value)
        assert "hidden" not in str(caught.value)
        assert "first-key" not in str(caught.value)


def test_only_the_loopback_may_go_without_keys(keys_file: Path) -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        check_exposure(host, [])
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "", "localhost.example.org"):
        with refused("keys-needed", "host"):
            check_exposure(host, [])
        check_exposure(host, read_keys(keys_file))


# Rates


def test_more_than_so_many_a_minute_are_refused_key_by_key(app: ASGIApp, keys_file: Path, seen: Seen) -> None:
    limited = Keys(RateLimit(app, per_minute=3, free_paths=["/healthz"]), read_keys(keys_file), open_paths=["/healthz"])
    with served(limited) as server:
        statuses = [server.ask("/v1/search", X_API_Key=KEY).status for _ in range(3)]
        refused = server.ask("/v1/search", X_API_Key=KEY)
        assert [*statuses, refused.status] == [200, 200, 200, 429]
        assert refused.fault["code"] == "too-many-requests"
        assert 50 <= int(refused.headers["retry-after"]) <= 60
        assert server.ask("/v1/search", X_API_Key=OTHER).status == 200
        assert server.ask("/v1/search", X_API_Key="wrong").status == 401
        assert all(server.ask("/healthz").status == 200 for _ in range(5))


def test_what_is_counted_apart_does_not_use_up_the_rest(app: ASGIApp) -> None:
    pictures = RateLimit(app, per_minute=1, counted="pictures", paths=["/pictures/*"])
    with served(RateLimit(pictures, per_minute=2, free_paths=["/pictures/*"])) as server:
        asked = [server.ask(path) for path in ("/pictures/1", "/pictures/2", "/1", "/2", "/3")]
        assert [answer.status for answer in asked] == [200, 429, 200, 200, 429]
        assert "at most 1 pictures a minute" in asked[1].fault["message"]


def test_without_keys_each_address_is_counted(app: ASGIApp) -> None:
    with served(RateLimit(app, per_minute=2)) as server:
        assert [server.ask(f"/{i}").status for i in range(3)] == [200, 200, 429]


def test_a_caller_is_answered_again_when_the_minute_is_over(app: ASGIApp, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(RateLimit(app, per_minute=1)) as server:
        assert [server.ask().status for _ in range(2)] == [200, 429]
        real, wait = time.time, int(server.ask().headers["retry-after"])
        monkeypatch.setattr(time, "time", lambda: real() + wait)
        assert server.ask().status == 200


def test_replicas_count_together_in_redis_and_refuse_nobody_without_it(
    app: ASGIApp, redis_url: str, serve_log: pytest.LogCaptureFixture
) -> None:
    if not (shutil.which("redis-server") or shutil.which("valkey-server")):
        pytest.skip("fakeredis' server drops the answer of the limits package's script; apt install redis-server")
    one, two = (RateLimit(app, per_minute=3, store=redis_url) for _ in range(2))
    with served(one) as first, served(two) as second:
        assert [server.ask().status for server in (first, second, first, second)] == [200, 200, 200, 429]
    with served(RateLimit(app, per_minute=1, store="redis://user:secret@127.0.0.1:9/0")) as alone:
        assert [alone.ask().status for _ in range(3)] == [200, 200, 200]
    assert serve_log.text.count("requests are not counted for 5 s") == 1
    assert "secret" not in serve_log.text


def test_requests_are_counted_in_a_redis_whose_password_is_in_the_environment(
    app: ASGIApp, locked_redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, "secret")
    with served(RateLimit(app, per_minute=1, store=f"{locked_redis_url[:-1]}1")) as server:
        assert [server.ask().status for _ in range(2)] == [200, 429]


# Ids, headers, faults


@pytest.fixture
def guarded(app: ASGIApp) -> Iterator[Server]:
    with served(RequestId(SecurityHeaders(LastResort(app)))) as server:
        yield server


def test_a_sane_request_id_is_kept_and_any_other_replaced(guarded: Server, seen: Seen) -> None:
    for given in ("abc-123_X.y", "x" * 64):
        assert guarded.ask(X_Request_Id=given).headers["x-request-id"] == given == seen[-1]["request_id"]
    for given in ("", "x" * 65, "a b", "<script>", "a\tb", "\u00e9", "{}"):
        made = guarded.ask(X_Request_Id=given).headers["x-request-id"]
        assert made == seen[-1]["request_id"] != given
        assert RequestId.SANE.fullmatch(made)
    assert len({one["request_id"] for one in seen}) == len(seen)
    assert request_id.get() == ""


def test_behind_a_proxy_that_echoes_the_id_it_is_not_there_twice(app: ASGIApp, seen: Seen) -> None:
    with served(RequestId(app, echo=False)) as server:
        assert "x-request-id" not in server.ask(X_Request_Id="abc").headers
    assert seen[-1]["request_id"] == "abc"


@pytest.mark.parametrize("path", ["/", "/broken", "/framed"])
def test_every_answer_has_the_security_headers(guarded: Server, path: str) -> None:
    headers = guarded.ask(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == ("SAMEORIGIN" if path == "/framed" else "DENY")
    policy = headers["content-security-policy"].split("; ")
    assert {"default-src 'self'", "frame-ancestors 'none'"} <= set(policy)
    assert "unsafe" not in str(policy)
    assert "access-control-allow-origin" not in headers


def test_a_failure_is_logged_and_not_told(guarded: Server, serve_log: pytest.LogCaptureFixture) -> None:
    answer = guarded.ask("/broken", X_Request_Id="abc")
    assert (answer.status, answer.fault["code"], json.loads(answer.body)["request_id"]) == (500, "internal", "abc")
    assert b"hunter2" not in answer.body
    assert b"Traceback" not in answer.body
    assert "request abc to /broken failed" in serve_log.text
    assert "hunter2" in serve_log.text


def test_an_answer_that_fails_half_way_does_not_look_whole(guarded: Server) -> None:
    with pytest.raises(http.client.IncompleteRead):
        guarded.ask("/breaks-off")


def test_the_whole_chain_refuses_in_the_same_form(app: ASGIApp, keys_file: Path) -> None:
    chain = [
        Middleware(RequestId),
        Middleware(SecurityHeaders),
        Middleware(LastResort),
        Middleware(Keys, read_keys(keys_file), open_paths=["/healthz"]),
        Middleware(RateLimit, per_minute=2),
        Middleware(BodyLimit, max_bytes=10, seconds=1),
    ]
    with served(Starlette(routes=[Mount("/", app)], middleware=chain)) as server:
        asked: list[Callable[[], Answer]] = [
            lambda: server.ask("/x"),
            lambda: server.ask("/x", "POST", b"x" * 11, X_API_Key=KEY),
            lambda: server.ask("/broken", X_API_Key=KEY),
            lambda: server.ask("/x", X_API_Key=KEY),
        ]
        for expected, ask in zip((401, 413, 500, 429), asked, strict=True):
            answer = ask()
            assert answer.status == expected
            assert answer.fault["message"]
            assert json.loads(answer.body)["request_id"] == answer.headers["x-request-id"]
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_what_is_not_http_passes(app: ASGIApp) -> None:
    import asyncio

    passed: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["type"])

    guard = RequestId(SecurityHeaders(LastResort(BodyLimit(inner, max_bytes=1, seconds=1))))
    asyncio.run(guard({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert passed == ["lifespan"]
