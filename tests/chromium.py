"""A real browser for tests: headless Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the page is tested in a browser, driven by Playwright: make install"
)


def path_of_chromium() -> str:
    """The path of a Chromium; skips where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium is installed: apt-get install chromium (or put one of its names on the PATH)")


@contextmanager
def launched(chromium: str) -> Iterator[Any]:
    """A running browser. Its event loop is that of the thread from here on: start services before it."""
    with playwright.sync_playwright() as driver:
        # Root may not use Chromium's sandbox, and containers give little shared memory.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        started = driver.chromium.launch(executable_path=chromium, args=arguments, timeout=40_000)
        yield started
        started.close()
