"""``mindseye submit``: another command of mindseye, on a cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Lock, Thread
from typing import Annotated, TypeVar

from cyclopts import App, CycloptsError, Parameter

from commands.console import INTERRUPTED, err, out
from retrieval.errors import UserError

T = TypeVar("T")

SENT = frozenset({"classes", "descriptions", "image", "profile", "rates", "templates", "vocabulary"})
"""Parameters of commands whose files are sent along, since they are small, and read once, by the command itself."""
PLACES = frozenset(
    {
        "aggregator",
        "composer",
        "evaluation",
        "file",
        "folder",
        "gallery",
        "index",
        "queries",
        "query_set",
        "report",
        "root",
        "sheet",
        "source",
        "target",
        "targets",
        "uri",
        "warm",
        "words",
    }
)
"""Parameters that name what the cluster itself must have."""
SENT_BYTES = 50 * 2**20


def delimited(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of mindseye such that all that follows the command to submit belongs to that command."""
    if list(arguments[:1]) != ["submit"]:
        return list(arguments)
    position = 1
    while position < len(arguments) and arguments[position].startswith("-"):
        if arguments[position] == "--":
            return list(arguments)
        position += 2 if arguments[position] == "--address" else 1
    rest = arguments[position:]
    return [*arguments[:position], "--", *rest] if rest else list(arguments)


def submitting(app: App) -> Callable[..., None]:
    """Return the command that submits those of ``app``."""

    def submit(
        *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
        address: str | None = None,
        no_wait: Annotated[bool, Parameter(negative="")] = False,
    ) -> None:
        """Run a command on a cluster, from a machine that need not be part of it; its log and exit code are this one's.

        Options of submit stand before COMMAND. Ctrl-C leaves the job running.

        Parameters
        ----------
        command
            Command of mindseye and all that it takes. The files of a profile, of rates, of pictures to search by and of
            a vocabulary are sent along; all else it names are URIs, or absolute paths that every node has.
        address
            Dashboard of the cluster's head, such as http://head:8265; by default RAY_API_SERVER_ADDRESS.
        no_wait
            End as soon as the cluster has the job, and print its id.
        """
        if {"--help", "-h"} & set(command):
            return app(list(command))
        words, files = prepared(app, command)
        from cluster.jobs import Jobs, exit_code

        jobs = Jobs(address)
        job = jobs.send(words, files)
        following = f"ray job logs --follow --address {jobs.url} {job}"
        stopping = f"ray job stop --address {jobs.url} {job}"
        if no_wait:
            out.print(job)
            err.print(f"follow it: {following}\nstop it: {stopping}", soft_wrap=True)
            return None
        log = _Log()
        try:
            err.print(f"{job} at {jobs.url}: {' '.join(words)}", soft_wrap=True)
            code, why = exit_code(_in_a_thread(lambda: jobs.follow(job, log.pass_on)))
        except KeyboardInterrupt:
            log.end()
            err.print(f"\n{job} goes on.\nfollow it: {following}\nstop it: {stopping}", soft_wrap=True)
            sys.exit(INTERRUPTED)
        if code:
            err.print(f"{job} has failed with exit code {code}{f': {why}' if why else ''}", soft_wrap=True)
        sys.exit(code)

    return submit


def prepared(app: App, command: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    """Check a command before it is sent; return it as the cluster runs it, and the files that go with it, by name.

    Raises:
        UserError: it is no command (``not-a-command``), names a path that the cluster cannot have (``relative-path``),
            or a file that cannot be sent (``missing``, ``too-large``).
    """
    files: dict[str, Path] = {}
    names: dict[str, str] = {}
    for name, value in _given(app, command):
        if "://" in value:
            continue
        if name in PLACES and not Path(value).is_absolute():
            raise UserError(
                f"{name.upper().replace('_', '-')} is {value!r}, a path from here, which the cluster does not have:"
                " give a URI, such as s3://bucket/work, or an absolute path that every node has",
                code="relative-path",
                field=name,
            )
        if name in SENT and value not in names and (file := _file(name, value)):
            names[value] = _unused(file.name, files)
            files[names[value]] = file
    return ["mindseye", *(_replaced(word, names) for word in command)], files


def _given(app: App, command: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the paths and words that a command is given, by the names of its parameters, defaults included."""
    try:
        _, bound, _ = app.parse_args(list(command), print_error=False, exit_on_error=False)
    except CycloptsError as error:
        message = f"{' '.join(command) or 'nothing'} is no command of mindseye: {error}"
        raise UserError(message, code="not-a-command", field="command") from error
    if not command or command[0] == "submit":
        raise UserError("give a command to submit, such as: doctor", code="not-a-command", field="command")
    bound.apply_defaults()
    for name, value in bound.arguments.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, str | Path):
                yield name, str(each)


def _file(name: str, value: str) -> Path | None:
    """Return the file of this machine that is sent for a parameter; None for what the cluster has."""
    from cluster.profile import PROFILES, relative_paths

    file = Path(value).expanduser()
    if name == "profile" and (PROFILES / f"{value}.yaml").is_file():
        return None
    if not file.is_file():
        if file.is_absolute():
            return None
        raise UserError(f"{name.upper()} is {value!r}, and there is no such file", code="missing", field=name)
    if name == "profile" and (wrong := relative_paths(file)):
        raise UserError(
            f"{file} names paths from where it lies, which the cluster does not have: {', '.join(wrong)}. Give absolute"
            " paths that every node has, or URIs",
            code="relative-path",
            field="profile",
        )
    if (size := file.stat().st_size) > SENT_BYTES:
        raise UserError(
            f"{file} has {size:,} bytes, and {SENT_BYTES:,} are the most that are sent: put it where every node can"
            " read it, and give its URI or absolute path",
            code="too-large",
            field=name,
        )
    return file


def _unused(name: str, files: dict[str, Path]) -> str:
    number = 2
    unused = name
    while unused in files:
        unused = f"{Path(name).stem}-{number}{Path(name).suffix}"
        number += 1
    return unused


def _replaced(word: str, names: dict[str, str]) -> str:
    if word in names:
        return names[word]
    option, equals, given = word.partition("=")
    return f"{option}={names[given]}" if equals and option.startswith("--") and given in names else word


class _Log:
    """The log of a job on its way to standard output, until its end."""

    def __init__(self) -> None:
        self._lock, self._ended = Lock(), False

    def pass_on(self, text: str) -> None:
        with self._lock:
            if not self._ended:
                sys.stdout.write(text)
                sys.stdout.flush()

    def end(self) -> None:
        """Write no more: a thread that does while the interpreter ends would end it with an error."""
        with self._lock:
            self._ended = True


def _in_a_thread(function: Callable[[], T]) -> T:
    """Return what a function returns that runs an event loop: Ctrl-C in the midst of a loop can end in a traceback, or
    be raised as something else.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()
    return answer.result()
