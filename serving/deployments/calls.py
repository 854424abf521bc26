"""Calls from one deployment to another: each is bounded in time, and its errors become a word and a sentence."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Any, Literal

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

log = logging.getLogger("ray.serve")

Trouble = Literal["busy", "down", "late", "failed", "starting"]

_SENTENCES: dict[Trouble, str] = {
    "busy": "{} has as many requests waiting as it may",
    "down": "{} is not running",
    "late": "{} did not answer in time",
    "failed": "{} failed",
    "starting": "{} is still starting",
}


class Unavailable(Exception):
    """A part of the service could not answer; ``trouble`` says why, ``str(error)`` says it in a sentence."""

    def __init__(self, part: str, trouble: Trouble) -> None:
        super().__init__(_SENTENCES[trouble].format(part))
        self.part = part
        self.trouble = trouble

    def __reduce__(self) -> tuple[type[Unavailable], tuple[str, Trouble]]:
        return type(self), (self.part, self.trouble)


class Deadline:
    """The moment by which an answer is due, on the monotonic clock, which no change of the time of day moves."""

    def __init__(self, seconds: float) -> None:
        self.started = time.monotonic()
        self.due = self.started + seconds

    @property
    def left(self) -> float:
        """Seconds until then; 0 when it has passed."""
        return max(0.0, self.due - time.monotonic())

    @property
    def spent_ms(self) -> float:
        return (time.monotonic() - self.started) * 1000


async def call(
    part: str,
    method: Any,
    *args: Any,
    seconds: float,
    retry: bool = True,
    refusals: tuple[type[Exception], ...] = (),
) -> Any:
    """Return what ``method``, a method of a deployment handle, answers.

    Args:
        part: what to call it in messages, such as "the generator".
        seconds: after which the call is cancelled, there as well.
        retry: call a second time if the replica dies meanwhile; Serve itself does not.
        refusals: exceptions by which the method refuses what the client gave, in words for the client. Every other
            exception is a fault of the service: even a ``UserError``, for it is about our own files and settings.

    Raises:
        Unavailable: no answer. A fault of the service is logged with its traceback, and only named here.
        Exception: one of ``refusals``, as the method raised it.
    """
    deadline = Deadline(seconds)
    response = method.remote(*args)
    try:
        return await asyncio.wait_for(response, seconds)
    except asyncio.CancelledError:
        response.cancel()  # or the work would continue although nobody waits for it
        raise
    except Exception as error:
        if isinstance(error, TimeoutError):
            response.cancel()
        if retry and deadline.left and isinstance(error, RayActorError):  # the replica died with the request in it
            return await call(part, method, *args, seconds=deadline.left, retry=False, refusals=refusals)
        raise _fault(part, error, refusals) from error


async def call_every_replica(
    part: str, handle: Any, method: str, *args: Any, seconds: float, refusals: tuple[type[Exception], ...] = ()
) -> None:
    """Call a method of every replica of a deployment; arguments and errors are those of ``call``."""
    await bounded(part, handle.broadcast(method, *args).results_async(), seconds=seconds, refusals=refusals)


async def bounded(
    part: str, work: Awaitable[Any], *, seconds: float, refusals: tuple[type[Exception], ...] = ()
) -> Any:
    """Return what comes of ``work`` within so many seconds; other arguments and errors are those of ``call``."""
    try:
        return await asyncio.wait_for(work, seconds)
    except Exception as error:
        raise _fault(part, error, refusals) from error


def _fault(part: str, error: Exception, refusals: tuple[type[Exception], ...]) -> Exception:
    """What a call that ended in ``error`` means to its caller. A fault of the service is logged."""
    cause: Exception = error
    while isinstance(cause, RayTaskError):  # whose own message is a coloured traceback
        cause = cause.cause
    if isinstance(cause, (Unavailable, *refusals)):
        return cause
    if isinstance(error, (TimeoutError, RequestCancelledError)):  # the second if cancelling was quicker than the clock
        return Unavailable(part, "late")
    if isinstance(error, BackPressureError):
        return Unavailable(part, "busy")
    if isinstance(error, (RayActorError, DeploymentUnavailableError)):
        return Unavailable(part, "down")
    log.error("%s failed", part, exc_info=error)  # of a task of Ray, its message has the replica's traceback
    return Unavailable(part, "failed")
