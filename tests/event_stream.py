"""A stream of server-sent events, read whole."""

from __future__ import annotations

import json
from typing import Any


def events(body: str) -> list[tuple[str, Any]]:
    """The events of a stream, whole."""
    found = []
    for block in body.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found
