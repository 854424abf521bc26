"""A free port for a service that runs for a while: in the demo, in benchmarks, in tests."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """Return a port that is free, below those that the kernel gives to connections.

    Ray opens a hundred of these before a service listens on the port that it was given.
    """
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
