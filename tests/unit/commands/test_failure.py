"""How a command ends that cannot go on: a message and 2 for the person's mistake, a traceback and 1 for ours."""

from __future__ import annotations

import errno
from urllib.error import URLError

import pytest
from command_line import Run, one_line_error

from commands.app import app
from commands.failure import FAULT, MISTAKE, is_mistake
from retrieval.errors import UserError


@app.command(show=False)
def break_down(kind: str) -> None:
    """End as a command would that raises an exception of this kind."""
    raise {
        "user": UserError("give a number", code="no-number", field="k"),
        "file": FileNotFoundError(errno.ENOENT, "No such file or directory", "names.txt"),
        "value": ValueError("shapes (3,) and (4,) do not match"),
        "key": KeyError("id"),
    }[kind]


def test_a_mistake_is_its_message_alone(run: Run) -> None:
    said = run("break-down", "user")
    assert said == (MISTAKE, "", "mindseye: give a number\n")
    one_line_error(run("break-down", "file"), "names.txt")


@pytest.mark.parametrize(("kind", "shown"), [("value", "ValueError: shapes (3,)"), ("key", "KeyError: 'id'")])
def test_an_unexpected_error_is_a_traceback_and_says_where_to_report_it(run: Run, kind: str, shown: str) -> None:
    said = run("break-down", kind)
    assert (said.code, said.out) == (FAULT, "")
    assert "Traceback (most recent call last)" in said.err
    assert "in break_down" in said.err
    *_, message, last = said.err.strip().splitlines()
    assert message.startswith(shown)
    assert "issue tracker" in last
    for program in ("mindseye ", "ray ", "torch ", "Python "):
        assert program in last


@pytest.mark.parametrize(
    ("error", "mistake"),
    [
        (UserError("x"), True),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.csv"), True),
        (PermissionError(errno.EACCES, "Permission denied", "/root"), True),
        (FileExistsError(errno.EEXIST, "Cannot create directory '/report'"), True),
        (NotADirectoryError(errno.ENOTDIR, "Cannot list directory '/a.csv'"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), True),
        (URLError("no such host"), True),
        (TimeoutError("timed out"), True),
        (OSError("When reading key 'a' in bucket 'b': AWS Error ACCESS_DENIED"), True),
        (OSError(), False),
        (OSError(errno.EBADF, "Bad file descriptor"), False),
        (ValueError("x"), False),
        (RuntimeError("x"), False),
        (AssertionError(), False),
    ],
    ids=repr,
)
def test_what_passes_for_a_mistake(error: Exception, mistake: bool) -> None:
    assert is_mistake(error) == mistake
