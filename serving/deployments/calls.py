"""Calls from one deployment to another: each is bounded in time, and what went wrong is said in words."""

from __future__ import annotations

import asyncio
import logging
import time
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
        self.begun = time.monotonic()
        self.due = self.begun + seconds

    @property
    def left(self) -> float:
        """Seconds until then; 0 when it has passed."""
        return max(0.0, self.due - time.monotonic())

    @property
    def spent_ms(self) -> float:
        return (time.monotonic() - self.begun) * 1000


async def call(part: str, method: Any, *args: Any, seconds: float, again: bool = True) -> Any:
    """Return what ``method``, a method of a deployment handle, answers.

    Args:
        part: what to call it in messages, such as "the generator".
        seconds: after which the call is cancelled, there as well.
        again: call a second time when the replica dies meanwhile; Serve itself does not.

    Raises:
        Unavailable: no answer.
        ValueError: the method refused its arguments, in its own words.
    """
    deadline = Deadline(seconds)
    response = method.remote(*args)
    try:
        return await asyncio.wait_for(response, seconds)
    except asyncio.CancelledError:
        response.cancel()  # who stops waiting has not yet stopped the work
        raise
    except (TimeoutError, RequestCancelledError):  # the second where cancelling was quicker than the clock
        response.cancel()
        raise Unavailable(part, "late") from None
    except BackPressureError:
        raise Unavailable(part, "busy") from None
    except RayActorError as error:  # the replica died with the request in it
        if again and deadline.left:
            return await call(part, method, *args, seconds=deadline.left, again=False)
        raise Unavailable(part, "down") from error
    except DeploymentUnavailableError as error:
        raise Unavailable(part, "down") from error
    except Exception as error:
        raise _own_words(part, error) from error


def _own_words(part: str, error: BaseException) -> Exception:
    """What the replica raised, without Ray's wrapping, whose message is a coloured traceback."""
    while isinstance(error, RayTaskError):
        error = error.cause
    if isinstance(error, (ValueError, Unavailable)):
        return error
    log.error("%s failed", part, exc_info=error)
    return Unavailable(part, "failed")
