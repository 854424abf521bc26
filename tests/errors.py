"""What a test says of an input that is refused: the code and the field of the error, not its sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from retrieval.errors import UserError


@contextmanager
def refused(code: str, field: str | None = None) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Expect a UserError with this code and, if one is given, this field; yields pytest's record of it."""
    with pytest.raises(UserError) as error:
        yield error
    assert error.value.code == code, f"code {error.value.code!r}: {error.value}"
    assert field is None or error.value.field == field, f"field {error.value.field!r}: {error.value}"
