"""The one class for mistakes of the person who gave the input. Any other exception is a fault of mindseye's."""

from __future__ import annotations


class UserError(ValueError):
    """What somebody gave cannot be used, and they can put it right.

    The command line shows the message alone and exits with 2, and the service answers with 422. Every other exception
    is logged with its traceback and is nobody's fault but ours. Attributes survive pickling, so a worker of Ray may
    raise it.

    Args:
        message: for the person who can put it right: what was given, what was expected, and what to do.
        code: what kind of mistake it is, a short fixed word in kebab case that callers may test for.
        field: the parameter, setting, column or file that the mistake is in; empty if it is in none of them alone.
    """

    def __init__(self, message: str, *, code: str = "invalid", field: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.field = field


class DamagedError(UserError):
    """A file, shard or model is there and cannot be used: cut short, changed, or of another version.

    Whoever opened it can put it right, so on a command line it is a mistake like any other. In a replica or a worker
    nobody opened it: what a client asked is not at fault, and the answer is that of a failure.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message, code="damaged", field=field)
