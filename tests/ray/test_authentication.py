"""Who is let in by a Ray as mindseye starts it: processes with its token alone. See docs/security.md."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from cluster.ports import free_port

ROOT = Path(__file__).parents[2]
CLIENT = """
import sys
from cluster.session import session
from retrieval.errors import UserError
try:
    with session(sys.argv[1]):
        print("let in")
except UserError as error:
    print(error.code, error.field)
"""
HEAD = """
import sys
import cluster.session, ray
ray.init(address="local", num_cpus=1, include_dashboard=True, dashboard_port=int(sys.argv[1]), log_to_driver=False)
print("up", flush=True)
sys.stdin.read()
"""
ANOTHER = "0" * 64


def environment(home: Path, **more: str) -> dict[str, str]:
    """That of a process that has neither this run's token nor one in its home directory."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    return own | {"HOME": str(home), "PYTHONPATH": str(ROOT)} | more


CALLERS: dict[str, tuple[dict[str, str], bool]] = {
    "nothing": ({}, False),
    "authentication is off": ({"RAY_AUTH_MODE": "disabled"}, False),
    "no token": ({"RAY_AUTH_MODE": "token"}, False),
    "another token": ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ANOTHER}, False),
    "the token": ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}, True),
}
"""What a process is given, and whether it is let in."""


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Processes that connect to this run's Ray, at once."""
    import ray

    command = [sys.executable, "-c", CLIENT, ray.get_runtime_context().gcs_address]
    started = {}
    for name, (given, _) in CALLERS.items():
        own = environment(tmp_path_factory.mktemp("caller"), **given)
        pipe = subprocess.PIPE
        started[name] = subprocess.Popen(command, env=own, stdout=pipe, stderr=pipe, text=True)
    yield started
    for process in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", CALLERS)
def test_a_process_is_let_in_with_the_token_alone(name: str, callers: dict[str, subprocess.Popen[str]]) -> None:
    printed, errors = callers[name].communicate(timeout=300)
    said = printed + errors
    expected = "let in" if CALLERS[name][1] else "not-authenticated address"
    assert printed.splitlines()[-1:] == [expected], said
    assert os.environ["RAY_AUTH_TOKEN"] not in said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def dashboard(home: Path) -> Iterator[str]:
    """The URL of a Ray's dashboard, which a cluster has; nothing is said of authentication where it is started."""
    port = free_port()
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD, str(port)],
        env=environment(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert head.stdout
    try:
        assert any(line == "up\n" for line in head.stdout)
        yield f"http://127.0.0.1:{port}"
    finally:
        head.communicate(timeout=120)


@pytest.mark.slow
def test_the_dashboard_and_the_jobs_behind_it_ask_for_the_token(dashboard: str, home: Path) -> None:
    token = (home / ".ray/auth_token").read_text()

    def status(path: str, token: str | None, body: bytes | None = None) -> int:
        request = Request(dashboard + path, data=body, headers={"Authorization": f"Bearer {token}"} if token else {})
        try:
            with urlopen(request, timeout=60) as response:
                return int(response.status)
        except HTTPError as error:
            return error.code

    job = b'{"entrypoint": "true"}'
    for path, body in (("/api/jobs/", None), ("/api/jobs/", job), ("/api/serve/applications/", None)):
        assert (status(path, None, body), status(path, ANOTHER, body)) == (401, 403)
    assert status("/api/jobs/", token) == 200
