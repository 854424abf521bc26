"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

import re

from retrieval.errors import UserError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(size: int | str, field: str) -> int:
    """Return the bytes that a size stands for, such as ``500M``, ``1.5 GiB`` or a number.

    Args:
        size: the size.
        field: what it is of, for the error.

    Raises:
        UserError: it is no size (``not-a-size``).
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", str(size).strip(), re.IGNORECASE)
    if not match:
        raise UserError(f"{field} must be a size such as 500M or 2G, not {size!r}", code="not-a-size", field=field)
    return int(float(match[1]) * _UNITS[match[2].upper()])


def format_size(size: float) -> str:
    """Return a size with the unit that suits it, in powers of a thousand."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
