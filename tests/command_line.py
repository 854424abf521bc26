"""The command line, called in this process as a shell would: see the fixture ``run``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Said(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Said]


def one_line_error(said: Said, *parts: str) -> None:
    """Nothing but one message that holds ``parts``, on standard error, and exit code 2."""
    assert said.code == 2
    assert said.err.startswith("mindseye: ")
    assert "Traceback" not in said.err + said.out
    for part in parts:
        assert part in said.err
