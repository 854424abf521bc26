"""Environment variables that Ray, Serve and Train read: ``node.env`` lists them, with the reason for each.

Ray reads most of them as it is imported or started, and its processes inherit them. On a cluster they belong into the
environment of its nodes. In a process of ours they are set when this module is imported, which each of the packages
that use Ray does first; there each is a default: what is set already stays.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

NODE_ENV = Path(__file__).with_name("node.env")


def _read(text: str) -> dict[str, str]:
    lines = (line.strip() for line in text.splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


NODE = _read(NODE_ENV.read_text(encoding="utf-8"))
"""What the environment of every node must hold."""

DEFAULTS = {name: value for name, value in NODE.items() if name != "RAY_AUTH_MODE"}
"""What a process of ours sets where it is not set. Whether Ray asks for its token is for Ray to decide where it is one
machine's own (docs/security.md), and for who starts the nodes elsewhere."""

for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)


def differing(environ: Mapping[str, str]) -> dict[str, tuple[str | None, str]]:
    """Return the variables of ``node.env`` that an environment lacks or has otherwise: what it has, what it should.

    Args:
        environ: that a process was started with; ``os.environ`` has what importing this module has filled in.
    """
    found = {name: environ.get(name) for name in NODE}
    return {name: (found[name], value) for name, value in NODE.items() if found[name] != value}
