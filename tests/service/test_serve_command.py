"""One whole run of ``mindseye serve``: it starts, answers, switches, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_artifacts import Collection

from cluster.ports import free_port
from serving.client import ServiceFault, search, switch_index

ROOT = Path(__file__).parents[2]
# Authentication as Ray has it for a person who has set nothing.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def command(*arguments: str, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "mindseye.py"), "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"HOME": str(home), "XDG_CACHE_HOME": str(home)},
    )


def test_it_starts_answers_and_leaves_nothing_behind(
    collection: Collection, profile_file: Path, tmp_path: Path
) -> None:
    port = free_port()
    arguments = (str(collection.folder), "--profile", str(profile_file), "--port", str(port))
    process = command(*arguments, home=tmp_path)
    assert process.stdout
    begun = time.monotonic()
    own: list[psutil.Process] = []
    try:
        # Ray has notices of its own to give.
        assert any(f"http://127.0.0.1:{port}" in line for line in process.stdout)
        assert process.stdout.readline() == "next:\n"
        assert re.search(r"curl http\S+/v1/search ", process.stdout.readline())
        print(f"up after {time.monotonic() - begun:.0f} s")
        url = f"http://127.0.0.1:{port}"
        assert search(url, "a red star", images=1).stage == "fused"
        with pytest.raises(ServiceFault) as fault:
            switch_index(url, str(tmp_path))
        assert fault.value.status == 422
        other = command("--index", str(collection.index.uri), "--port", str(port), home=tmp_path)
        assert "serves version 000001" in other.communicate(timeout=300)[0]
        own = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            _, errors = process.communicate(timeout=200)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert [line for line in errors.splitlines() if "(raylet)" not in line] == []
    assert len(own) > 5
    _, alive = psutil.wait_procs(own, timeout=60)
    assert alive == []
    assert list((tmp_path / "mindseye").glob("queries.sqlite"))
    token = (tmp_path / ".ray/auth_token").read_text()  # of Ray's own making
    assert len(token) == 64
    assert token not in errors
