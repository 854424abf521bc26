"""Which executor runs the pipelines of the open session."""

from __future__ import annotations

from cluster.session import in_process
from pipelines.executor import Executor
from pipelines.local_executor import LocalExecutor
from pipelines.ray_executor import RayExecutor


def current_executor() -> Executor:
    """Return the executor of the open session (``cluster.session.session``); without one, that of this process."""
    return LocalExecutor() if in_process() else RayExecutor()
