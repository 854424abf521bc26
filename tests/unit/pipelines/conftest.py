"""Pipelines are tested in this process: that Ray makes the same of them is tested in tests/ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def in_process() -> Iterator[None]:
    """Run jobs in this process, whatever Ray the test run has started."""
    from cluster.session import session

    with session("none"):
        yield
