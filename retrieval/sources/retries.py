"""Retries with back-off, where an object store fails and the failure may pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pyarrow import fs

# Beside the retries of the store's own client. The words are in its messages of errors that will not pass.
_ATTEMPTS, _PAUSE_S = 3, 0.2
_PERMANENT = ("ACCESS_DENIED", "NO_SUCH", "NOT_FOUND", "RESOURCE_NOT_FOUND", "INVALID", "SIGNATURE", "PERMISSION")

T = TypeVar("T")


class PermanentError(OSError):
    """An error that will be the same at the next attempt."""


def with_retries(filesystem: fs.FileSystem, read: Callable[[], T]) -> T:
    """Read, and retry with back-off what may pass: a store that is busy, a connection that breaks.

    A local disk is asked once.
    """
    for attempt in range(0 if isinstance(filesystem, fs.LocalFileSystem) else _ATTEMPTS - 1):
        try:
            return read()
        except OSError as error:
            if isinstance(error, FileNotFoundError | PermanentError) or any(w in str(error) for w in _PERMANENT):
                raise
        time.sleep(_PAUSE_S * 2**attempt)
    return read()
