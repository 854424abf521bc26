"""Following a job of a cluster: each line once, whatever breaks off, and the exit code of the job."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from errors import refused
from ray.job_submission import JobStatus

from cluster import jobs as module
from cluster.jobs import Jobs, exit_code

RAYS = [
    "2026-11-27 22:48:41,227\tINFO job_manager.py:581 -- Runtime env is setting up.\n",
    "Running entrypoint for job raysubmit_x: mindseye index a b\n",
]
LOG = [*RAYS, "one\n", "two\nRunning entrypoint for", " job is a line of ours\n", "three"]


def details(status: JobStatus, code: int | None = None, message: str = "") -> Any:
    return SimpleNamespace(status=status, driver_exit_code=code, message=message)


class Dashboard:
    """The client of a dashboard: each connection gets so many pieces of the log; None is the end, as of a job's."""

    def __init__(self, pieces: list[int | None], *states: Any) -> None:
        self.pieces, self.states = pieces, list(states)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        count = self.pieces.pop(0)
        for piece in LOG[:count]:
            yield piece
        if count is not None:
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job: str) -> Any:
        state = self.states.pop(0)
        if isinstance(state, Exception):
            raise state
        return state


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0)

    def follow(dashboard: Dashboard) -> tuple[Any, str]:
        connected, written = Jobs.__new__(Jobs), []
        connected.url, connected._client = "http://head:8265", dashboard
        return connected.follow("raysubmit_x", written.append), "".join(written)

    return follow


def test_a_log_is_passed_on_without_ray_s_own_lines(followed: Any) -> None:
    ended, text = followed(Dashboard([None], details(JobStatus.SUCCEEDED, 0)))
    assert text == "one\ntwo\nRunning entrypoint for job is a line of ours\nthree"
    assert ended.driver_exit_code == 0


def test_a_connection_that_breaks_off_goes_on_where_it_was(followed: Any) -> None:
    running = details(JobStatus.RUNNING)
    states = [running, ConnectionError("the dashboard starts again"), running, details(JobStatus.FAILED, 3)]
    ended, text = followed(Dashboard([3, 1, 4, None], *states))
    assert text == "one\ntwo\nRunning entrypoint for job is a line of ours\nthree"
    assert ended.driver_exit_code == 3


def test_a_log_that_cannot_be_had_does_not_hide_that_the_job_has_ended(followed: Any) -> None:
    failed = details(JobStatus.FAILED, None, "its node died")
    ended, text = followed(Dashboard([3] * module.LOG_TRIES, *[failed] * module.LOG_TRIES))
    assert (text, exit_code(ended)) == ("one\n", (1, "its node died"))


def test_a_dashboard_that_stays_away_is_given_up(followed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOST_SECONDS", -1)
    with refused("unreachable", "address"):
        followed(Dashboard([1], ConnectionError("refused")))


@pytest.mark.parametrize(
    ("ended", "code", "said"),
    [
        (details(JobStatus.SUCCEEDED, 0), 0, ""),
        (details(JobStatus.SUCCEEDED), 0, ""),
        (details(JobStatus.FAILED, 2), 2, ""),
        (details(JobStatus.FAILED, -9), 137, "signal 9"),
        (details(JobStatus.FAILED, 127), 127, "PATH"),
        (details(JobStatus.FAILED, None, "no room"), 1, "no room"),
        (details(JobStatus.STOPPED), 143, "stopped"),
    ],
)
def test_the_exit_code_is_that_of_the_job(ended: Any, code: int, said: str) -> None:
    found, why = exit_code(ended)
    assert found == code
    assert said in why


@pytest.mark.parametrize(
    ("given", "url", "place"),
    [
        ("head", "http://head:8265", ("head", 8265)),
        ("head:80", "http://head:80", ("head", 80)),
        ("http://head:8265/", "http://head:8265", ("head", 8265)),
        ("http://proxy/cluster", "http://proxy/cluster", ("proxy", 80)),
        ("https://ray.example.org/cluster/", "https://ray.example.org/cluster", ("ray.example.org", 443)),
        ("https://ray.example.org:8443", "https://ray.example.org:8443", ("ray.example.org", 8443)),
        ("[::1]:8265", "http://[::1]:8265", ("::1", 8265)),
    ],
)
def test_an_address_is_a_url_or_a_host(given: str, url: str, place: tuple[str, int]) -> None:
    assert module._url(given) == url
    assert module._host_and_port(url) == place


@pytest.mark.parametrize(
    ("given", "code"), [(None, "missing"), ("ray://head:10001", "malformed"), ("http://", "malformed")]
)
def test_what_is_no_address_of_a_dashboard(given: str | None, code: str) -> None:
    with refused(code, "address"):
        module._url(given)
