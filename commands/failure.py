"""How a command ends that cannot go on: the person's mistake is a message, ours is a traceback."""

from __future__ import annotations

import errno
import platform
import traceback
from importlib.metadata import PackageNotFoundError, version
from urllib.error import URLError

from commands.console import err
from retrieval.errors import UserError

MISTAKE = 2
"""Exit code for what the person who gave the command can put right."""
FAULT = 1
"""Exit code for what only we can."""
MAKERS = {
    "gallery": "mindseye index",
    "index": "mindseye index",
    "queryset": "mindseye queries",
    "aggregator": "mindseye train",
    "composer": "mindseye train-composer",
}
"""The command that makes an artifact."""
HINTS = {
    "dashboard": "mindseye submit takes that address.",
    "ray-client": "mindseye submit hands a command over from any machine.",
    "locked": "With --take-over this command breaks its lock.",
    "lock-lost": "mindseye index status says which job runs there.",
    "incomplete": "mindseye dataset check names all of it, and --partial prepares what there is.",
    "no-room": "A cluster is named by --address.",
}
"""What the command line has for a mistake, by its code."""
_OF_A_FILE = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
_OF_THE_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.EADDRINUSE, errno.EADDRNOTAVAIL}


def is_mistake(error: Exception) -> bool:
    """Return whether the message alone tells a person what to put right.

    So it is of a ``UserError``, and of an ``OSError`` that is about a file, a full or read-only disk, or an address.
    Arrow's name the file in the message alone; those of an object store have no number either. Any other exception, a
    ``ValueError`` included, is a fault of mindseye's.
    """
    if isinstance(error, UserError | ConnectionError | TimeoutError | URLError):
        return True
    if not isinstance(error, OSError) or not str(error):
        return False
    if isinstance(error, _OF_A_FILE):
        return True
    return error.filename is not None or error.errno is None or error.errno in _OF_THE_PLACE


def say_mistake(error: Exception) -> None:
    """Print the message on standard error, and what the command line has for such a mistake: an option, or the command
    that makes the artifact that is missing.
    """
    hint = None
    if isinstance(error, UserError):
        maker = MAKERS.get(error.field) if error.code == "missing" else None
        hint = f"{maker} makes one." if maker else HINTS.get(error.code)
    err.print(f"mindseye: {error}{f' {hint}' if hint else ''}", soft_wrap=True)


def report_fault(error: Exception) -> None:
    """Print the traceback on standard error, and below it what to do with it."""
    err.print("".join(traceback.format_exception(error)), soft_wrap=True, end="")
    versions = ", ".join(f"{name} {_version(name)}" for name in ("mindseye", "ray", "torch"))
    err.print(
        "mindseye: this is a fault of mindseye and not of what you gave it. Please report it to the project's issue"
        f" tracker with the text above and these versions: {versions}, Python {platform.python_version()}.",
        soft_wrap=True,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
