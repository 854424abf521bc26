"""``mindseye serve --address`` on a Ray where Serve runs for others too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from urllib.request import urlopen

import pytest
from errors import refused
from ray import serve
from starlette.requests import Request
from starlette.responses import PlainTextResponse

import serving.launch
from cluster.ports import free_port
from cluster.profile import ServeSettings
from serving.instance import Instance
from serving.launch import Prepared, running


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Small:
    """Answers ``/readyz`` and everything else."""

    async def __call__(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("healthy")


@pytest.fixture
def serve_elsewhere(ray_session: None) -> Iterator[int]:
    """Serve runs at this port, with nothing on it."""
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "EveryNode"})
    yield port
    serve.shutdown()


def prepared(name: str) -> Prepared:
    return Prepared(Small.bind(), ServeSettings(), 1, "memory:", "127.0.0.1", free_port(), name)


def test_only_what_this_command_started_is_deleted(serve_elsewhere: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(prepared("mindseye"), everywhere=True) as url:
        assert url == f"http://127.0.0.1:{serve_elsewhere}"  # where the proxies are, whatever was asked for
        for name, code in (("mindseye", "name-taken"), ("another", "route-taken")):
            with refused(code), running(prepared(name), everywhere=True):
                pass
        with urlopen(url) as response:
            assert response.read() == b"healthy"
    assert names() == set()
    monkeypatch.setattr(serving.launch, "READY_SECONDS", 0)
    with refused("not-ready"), running(prepared("mindseye"), everywhere=True):
        pass
    assert names() == set()
    monkeypatch.undo()
    with suppress(InterruptedError), running(prepared("mindseye"), everywhere=True):
        serve.delete("mindseye")
        serve.run(Small.bind(), name="mindseye")  # somebody else's by now
        raise InterruptedError
    assert names() == {"mindseye"}


def names() -> set[str]:
    instance = Instance.running()
    assert instance
    return set(instance.deployed)
