"""The folder of an aggregator to be: one job at a time, and none where there is an aggregator already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.hold import hold
from retrieval.artifacts import MANIFEST
from retrieval.errors import UserError
from retrieval.folder import Folder


def check_new(target: Folder) -> None:
    """Refuse a folder that holds an aggregator.

    Raises:
        UserError: it does (``target-exists``).
    """
    if target.exists(MANIFEST):
        raise UserError(
            f"{target.uri} already holds an aggregator; give another target, or delete it first",
            code="target-exists",
            field="target",
        )


@contextmanager
def locked(target: Folder, job: str, *, take_over: bool) -> Iterator[None]:
    """Keep other jobs from writing to ``target`` until the block ends.

    Args:
        target: as ``check_new`` wants it.
        job, take_over: as ``cluster.hold.hold``.

    Raises:
        UserError: another job has locked it (``locked``), or has published there (``target-exists``).
    """
    with hold(target, job, take_over=take_over):
        check_new(target)  # another job may have published meanwhile
        yield
