"""One person with a browser, alone and beside many programs, at a real service with the places that ``tiny`` gives it:
nothing that the page asks for is refused.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from chromium import launched, path_of_chromium, playwright
from tiny_artifacts import write_collection
from waiting import wait_until

from cluster.ports import free_port
from cluster.profile import PROFILES
from retrieval.query import QueryEncoder

expect, Page = playwright.expect, playwright.Page

pytestmark = pytest.mark.long

SOON = 60_000
QUERIES = [f"{colour} {shape}" for colour in ("red", "blue") for shape in ("star", "fish", "house", "moon", "badge")]
PROGRAMS = 32


@pytest.fixture(scope="module")
def url(
    ray_session: None,
    models_folder: Path,
    profile_settings: dict[str, Any],
    query_encoder: QueryEncoder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    path_of_chromium()  # without it none of this is needed
    from ray import serve

    from serving.app import LOGGING, ServeArgs, build

    settings = deepcopy(profile_settings)
    settings["serve"] = yaml.safe_load((PROFILES / "tiny.yaml").read_text())["serve"]
    # The programs come from the browser's own address.
    settings["serve"]["limits"] = {"requests_per_minute": 1_000_000}
    profile = models_folder.parent / "browser.yaml"
    profile.write_text(yaml.safe_dump(settings))
    folder = tmp_path_factory.mktemp("browser")
    made = write_collection(folder, query_encoder.vlm, query_encoder.vision, categories=12, each=4)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"}, logging_config=LOGGING)
    serve.run(build(ServeArgs(target=str(made.folder), profile=str(profile), store=f"sqlite:{folder / 'store'}")))
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: httpx2.get(f"{url}/readyz", timeout=60).status_code == 200)
    yield url
    serve.shutdown()


@pytest.fixture(scope="module")
def browser(url: str) -> Iterator[Any]:
    with launched(path_of_chromium()) as started:
        yield started


Visit = Callable[[], Page]


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Visit]:
    """Open the page in a browser that has nothing of it yet. What it asks for and is refused fails the test."""
    contexts, faults = [], []

    def open_page() -> Page:
        context = browser.new_context(base_url=url)
        context.set_default_timeout(SOON)
        contexts.append(context)
        page = context.new_page()
        page.on("response", lambda answer: faults.append((answer.status, answer.url)) if answer.status >= 400 else None)
        page.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto("/")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def type_in(page: Page, query: str) -> None:
    """Search, and look at the answer until all pictures that can be seen are there."""
    page.get_by_role("searchbox").fill(query)
    page.keyboard.press("Enter")
    expect(page.locator("h1:visible")).to_have_text(query)
    expect(page.locator("#found")).to_have_attribute("aria-busy", "false", timeout=SOON)
    assert page.get_by_role("alert").count() == 0
    assert page.locator("#results li").count() == 24
    for picture in (page.locator("#results img").first, page.locator("#imagined img").first):
        expect(picture).to_have_js_property("complete", True, timeout=SOON)
        assert picture.evaluate("image => image.naturalWidth") > 0


@contextmanager
def programs(url: str) -> Iterator[Counter[int]]:
    """Programs that search without pause, meanwhile; how often each status was the answer."""
    seen: Counter[int] = Counter()
    ended = threading.Event()

    async def search() -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=200) as http:
            while not ended.is_set():
                seen[(await http.post("/v1/search", json={"query": "a green bird", "mode": "text"})).status_code] += 1

    async def searches() -> None:
        await asyncio.gather(*(search() for _ in range(PROGRAMS)))

    thread = threading.Thread(target=lambda: asyncio.run(searches()))
    thread.start()
    try:
        wait_until(lambda: seen.total() >= PROGRAMS)
        yield seen
    finally:
        ended.set()
        thread.join()


def test_ten_queries_in_a_row_new_and_remembered(visit: Visit) -> None:
    for _ in range(2):
        page = visit()
        for query in QUERIES:
            type_in(page, query)


def test_the_same_beside_programs_that_search_without_pause(visit: Visit, url: str) -> None:
    with programs(url) as seen:
        for words in ("a {} at night", "{}"):
            page = visit()
            for query in QUERIES:
                type_in(page, words.format(query))
    assert set(seen) <= {200, 503}
    assert seen[200] > PROGRAMS
