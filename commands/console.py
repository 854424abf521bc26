"""What commands share: where they print, options that many have, and the lines that they end with."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

# Markup is off because paths and labels may have brackets. A log has no width of its own, and tables should not wrap.
out = Console(highlight=False, markup=False)
if not out.is_terminal:
    out = Console(highlight=False, markup=False, width=120)
err = Console(stderr=True, highlight=False, markup=False)

INTERRUPTED = 130
"""Exit code of what Ctrl-C has ended."""
Profile = Annotated[str, Parameter(help="A shipped profile (tiny, fast, paper) or a YAML file: models and resources.")]
Cluster = Annotated[
    str | None,
    Parameter(
        help="Ray cluster to use, such as head:6379; by default RAY_ADDRESS, else a local Ray; none runs a job in this"
        " process."
    ),
]
TakeOver = Annotated[bool, Parameter(help="Break the lock of another job. Be sure that it is dead.", negative="")]


def listed(figures: Mapping[str, object]) -> str:
    """Return figures as ``name: value, name: value``."""
    return ", ".join(f"{key}: {value}" for key, value in figures.items())


def say_made(*places: str) -> None:
    """Print what a command has made."""
    out.print("made:")
    for place in places:
        out.print(f"  {place}", soft_wrap=True)


def with_profile(command: str, profile: str) -> str:
    """Return a command as it must be given for the models of another profile than the default."""
    return command if profile == "tiny" else f"{command} --profile {shlex.quote(profile)}"


def quoted(place: object, inside: str = "") -> str:
    """Return a path or URI, or what lies inside it, as a shell takes it for one word; a URI's options stay its end."""
    start, mark, options = str(place).partition("?") if "://" in str(place) else (str(place), "", "")
    return shlex.quote((f"{start.rstrip('/')}/{inside}" if inside else start) + mark + options)


def say_next(*commands: str) -> None:
    """Print what one would do next, at the end of a command."""
    out.print("next:")
    for command in commands:
        out.print(f"  {command}", soft_wrap=True)
