"""Commands that a cluster runs as jobs of Ray, from a machine that need not be one of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import ClientError
from ray.dashboard.modules.dashboard_sdk import SubmissionClient
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from requests import RequestException

from cluster.reach import check_listening, check_token, token_asked_for
from retrieval.errors import UserError

DASHBOARD_PORT = 8265
ADDRESS = "RAY_API_SERVER_ADDRESS"
"""What Ray's own job commands read."""
LOST_SECONDS = 120
"""How long a dashboard that does not answer is asked again for the log of a job."""
PAUSE_SECONDS = 1
LOG_TRIES = 3
"""How many times the log of a job that has ended is asked for."""
_OF_RAY = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+\tINFO job_manager\.py|Running entrypoint for job ")
"""How the lines begin that Ray puts before the log of a job."""
_AWAY = (ConnectionError, RequestException, ClientError, RuntimeError)
"""What the client raises when its dashboard does not answer, or breaks off."""


class _Client(JobSubmissionClient):
    """Ray's client, for the dashboard that it is given: Ray's own takes RAY_ADDRESS, where that is set, before it."""

    def __init__(self, url: str) -> None:
        SubmissionClient.__init__(self, url)
        self._check_connection_and_version(min_version="2.0")


class Jobs:
    """The jobs of one cluster, through its dashboard.

    Attributes:
        url: of the dashboard.
    """

    def __init__(self, address: str | None = None) -> None:
        """Connect to a dashboard.

        Args:
            address: its URL, or HOST or HOST:PORT; by default ``RAY_API_SERVER_ADDRESS``.

        Raises:
            UserError: no address is given (``missing``), it is none (``malformed``), no dashboard answers there
                (``unreachable``), or it asks for a token that this process does not have (``not-authenticated``).
        """
        self.url = _url(address or os.environ.get(ADDRESS))
        remedy = "give the address of the head's dashboard, and see that it can be reached"
        check_listening(self.url, *_host_and_port(self.url), remedy)
        for name in ("job.sdk", "dashboard_sdk"):  # they say what they upload, and that a log has come to its end
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        try:
            with token_asked_for(self.url):
                check_token()
                self._client = _Client(self.url)
        except (ConnectionError, RequestException, RuntimeError) as error:
            raise UserError(
                f"what answers at {self.url} is no dashboard of Ray ({error}): give the one of the head, such as"
                f" http://head:{DASHBOARD_PORT}",
                code="unreachable",
                field="address",
            ) from error

    def send(self, command: Sequence[str], files: Mapping[str, Path]) -> str:
        """Have the head run a command; return the id of its job.

        Args:
            command: and its arguments. Its environment has ``RAY_ADDRESS``, so that it uses this cluster.
            files: of this machine, by the names that they have in the directory that it runs in.

        Raises:
            UserError: the dashboard does not take it (``not-accepted``).
        """
        with tempfile.TemporaryDirectory(prefix="mindseye-submit-") as folder:
            for name, file in files.items():
                shutil.copyfile(file, Path(folder) / name)
            environment = {"working_dir": folder} if files else {}
            try:
                return self._client.submit_job(entrypoint=shlex.join(command), runtime_env=environment)
            except _AWAY as error:
                raise UserError(
                    f"the dashboard at {self.url} does not take the job: {error}", code="not-accepted", field="address"
                ) from error

    def follow(self, job: str, write: Callable[[str], None]) -> JobDetails:
        """Pass on what a job prints, as it does, until it has ended; return what is known of it then.

        A connection that breaks off is opened again, and goes on where it was.

        Raises:
            UserError: the dashboard has not answered for two minutes (``unreachable``).
        """
        seen = _Seen(write)
        silent_since: float | None = None
        tries = 0
        while True:
            try:
                whole = self._passed_on(job, seen)
                details = self._client.get_job_info(job)
                silent_since = None
                tries += details.status.is_terminal()
                if tries and (whole or tries == LOG_TRIES):
                    return details
            except _AWAY as error:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > LOST_SECONDS:
                    raise UserError(
                        f"{self.url} has not answered for {LOST_SECONDS} s ({error}); if the cluster still runs, so"
                        f" does {job}",
                        code="unreachable",
                        field="address",
                    ) from error
            time.sleep(PAUSE_SECONDS)

    def _passed_on(self, job: str, seen: _Seen) -> bool:
        """Pass on a log until the job has ended; False where the connection breaks off before."""
        try:
            asyncio.run(self._tail(job, seen))
        except _AWAY:
            return False
        return True

    async def _tail(self, job: str, seen: _Seen) -> None:
        seen.from_the_start()
        async for text in self._client.tail_job_logs(job):
            seen.add(text)


def exit_code(details: JobDetails) -> tuple[int, str]:
    """Return the exit code of a job that has ended, as a shell gives it, and what there is to say beside its log."""
    code = details.driver_exit_code
    if details.status == JobStatus.STOPPED:
        return 143, "it was stopped"
    if code is None:
        return (0, "") if details.status == JobStatus.SUCCEEDED else (1, details.message or "Ray does not say why")
    if code == 127:
        return code, "the shell of the head finds no such command: Ray must be started there with mindseye on its PATH"
    if code < 0:
        return 128 - code, f"it was ended by signal {-code}"
    return code, ""


class _Seen:
    """The text of a log that was passed on, so that it is passed on once, and without Ray's own first lines."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._passed, self._at, self._line = write, 0, 0, ""

    def from_the_start(self) -> None:
        self._at = 0

    def add(self, text: str) -> None:
        start, self._at = self._at, self._at + len(text)
        new = text[max(self._passed - start, 0) :]
        self._passed = max(self._passed, self._at)
        kept = []
        for line in new.splitlines(keepends=True):
            if self._line or not _OF_RAY.match(line):
                kept.append(line)
                self._line = "" if line.endswith("\n") else line
        if kept:
            self._write("".join(kept))


def _url(address: str | None) -> str:
    if not address:
        raise UserError(
            f"give the address of the cluster's dashboard, such as http://head:{DASHBOARD_PORT}, or in {ADDRESS}",
            code="missing",
            field="address",
        )
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("http", "https"):
        raise UserError(
            f"{address!r} is no address of a dashboard: give one such as http://head:{DASHBOARD_PORT}",
            code="malformed",
            field="address",
        )
    if port is None and parts.scheme == "http" and not parts.path.strip("/"):
        return f"{url.rstrip('/')}:{DASHBOARD_PORT}"
    return url.rstrip("/")


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
