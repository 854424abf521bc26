"""What Ray's own metrics endpoint says, as Prometheus would read it."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress


def scraped(enough: Callable[[str], bool]) -> str:
    """Read the endpoint of this node once a second until it says enough; the test's own time limit ends it."""
    import ray

    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    while True:
        with suppress(OSError), urllib.request.urlopen(url, timeout=10) as page:
            seen = page.read().decode()
            if enough(seen):
                return seen
        time.sleep(1)
