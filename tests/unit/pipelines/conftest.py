"""Pipelines are tested in this process: that Ray makes the same of them is tested in tests/ray."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest


@pytest.fixture(scope="module")
def in_process() -> Iterator[None]:
    """Run jobs in this process, whatever Ray the test run has started; and in one thread of FAISS, since on a busy
    machine the threads of small indexes wait for each other.
    """
    from cluster.session import session
    from pipelines.local_executor import LocalExecutor

    with session("none"), patch.object(LocalExecutor, "shared_among", lambda self, calls, place: place.resized(1)):
        yield
