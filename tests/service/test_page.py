"""The page, used in a real browser against the service's own app: headless Chromium, driven by Playwright."""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import uvicorn
from chromium import launched, path_of_chromium, playwright
from serving_graph import local_service
from tiny_artifacts import write_collection

from retrieval.query import QueryEncoder

expect, Page, Route = playwright.expect, playwright.Page, playwright.Route

SOON = 20_000  # milliseconds for what takes a model

expect.set_options(timeout=SOON)

QUERY = "yellow dotted fish"
MIXED = "&w=0.5&e=1*row*id-003&e=-0.4*text*a+long+description+of+what+nobody+ever+wants+to+see"
ATTACK = "<img src=x onerror='window.attacked = true'>.jpg"


@pytest.fixture(scope="module")
def chromium() -> str:
    return path_of_chromium()


@pytest.fixture(scope="module")
def address(
    chromium: str, tmp_path_factory: pytest.TempPathFactory, query_encoder: QueryEncoder, profile_file: Path
) -> Iterator[str]:
    """Where the service runs: its own app and graph, with tiny models and 48 images, in a thread of this process.

    ``chromium`` comes first, for without it none of this is needed.
    """
    made = write_collection(
        tmp_path_factory.mktemp("page"), query_encoder.vlm, query_encoder.vision, categories=12, each=4
    )
    service = local_service(target=str(made.folder), profile=str(profile_file), store="memory:")
    started: queue.SimpleQueue[uvicorn.Server | Exception] = queue.SimpleQueue()

    async def serve() -> None:
        search = service.search()
        await search.warm_up()
        api = service.api(search, behind_serve=False)
        server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=0, log_level="error"))
        running = asyncio.create_task(server.serve())
        while not server.started and not running.done():
            await asyncio.sleep(0.01)
        started.put(server)
        await running

    def run() -> None:
        try:
            asyncio.run(serve())
        except Exception as error:
            started.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    server = started.get(timeout=100)
    if isinstance(server, Exception):
        raise server
    yield "http://{}:{}".format(*server.servers[0].sockets[0].getsockname())
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture(scope="module")
def browser(chromium: str, address: str) -> Iterator[Any]:
    """A running browser; after the service, whose start must not find Playwright's event loop in its thread."""
    with launched(chromium) as started:
        yield started


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Page]]:
    """Open the page at a path of the service, with settings of a browser context.

    An error that it writes to the console or does not catch fails the test, unless it matches ``expected``. With a
    ``question`` the service has an assistant, which asks it.
    """
    contexts, faults = [], []

    def open_page(
        path: str = "/", *, expected: str = "(?!)", question: dict[str, Any] | None = None, **settings: Any
    ) -> Page:
        context = browser.new_context(base_url=address, **settings)
        context.set_default_timeout(SOON)
        page = context.new_page()
        contexts.append(context)

        def note(said: str) -> None:
            if not re.search(expected, said):
                faults.append(said)

        page.on("console", lambda message: note(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: note(str(error)))
        if question:
            info = page.request.get("/v1/info").json() | {"assistant": 16}
            page.route("**/v1/info", lambda route: route.fulfill(json=info))
            page.route("**/v1/question", lambda route: route.fulfill(json=question))
        page.goto(path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def order(page: Page) -> list[str]:
    """The thumbnails' addresses, in the order in which they are on the page."""
    return page.eval_on_selector_all("#results img", "images => images.map(image => image.dataset.url)")


def asked(page: Page, **request: Any) -> list[str]:
    """What the API itself answers, in the form of ``order``."""
    answer = page.request.post("/v1/search", data={"query": QUERY, "k": 24, **request})
    assert answer.ok, answer.text()
    return [result["thumbnail"] for result in answer.json()["results"]]


def shows(page: Page, expected: list[str]) -> None:
    """Wait until the page shows these, in this order."""
    becomes(page, lambda: order(page) == expected)


def becomes(page: Page, condition: Callable[[], bool]) -> None:
    """Ask again and again; ``page.wait_for_function`` does so by an eval that the page's own policy refuses."""
    end = time.monotonic() + SOON / 1000
    while not condition():
        assert time.monotonic() < end, "the page did not become so"
        page.wait_for_timeout(50)


def settled(page: Page) -> None:
    """Wait for the end of the search that is under way."""
    expect(page.locator("#found")).to_have_attribute("aria-busy", "false", timeout=SOON)
    expect(page.locator("#results li").first).to_be_visible(timeout=SOON)


def search(page: Page, text: str = QUERY) -> None:
    page.get_by_role("searchbox").fill(text)
    page.keyboard.press("Enter")
    settled(page)


def event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\r\ndata: {json.dumps(data)}\r\n\r\n"


def streams(page: Page, *events: tuple[str, dict[str, Any]]) -> None:
    """From now on a search is answered by these events, in one piece."""
    body = ": a comment\r\n\r\n" + "".join(event(*one) for one in events)
    page.route("**/v1/search/stream", lambda route: route.fulfill(content_type="text/event-stream", body=body))


def answer_by_text(page: Page, **changes: Any) -> dict[str, Any]:
    """A true answer, ranked by text, changed."""
    return page.request.post("/v1/search", data={"query": QUERY, "k": 24, "mode": "text"}).json() | changes


FAULT = {"error": {"code": "overloaded", "message": "all places are taken", "field": None}, "request_id": "r-17"}


def test_words_first_then_the_fused_order_and_the_way_between_is_seen(visit: Callable[..., Page]) -> None:
    page = visit()
    page.evaluate(
        """() => {
          window.seen = [];
          new MutationObserver(() => window.seen.push({
            status: document.getElementById('status').textContent,
            order: [...document.querySelectorAll('#results img')].map(image => image.dataset.url),
            moving: [...document.querySelectorAll('#results li')].filter(card => card.getAnimations().length).length,
          })).observe(document.getElementById('status'), {childList: true, characterData: true, subtree: true});
        }"""
    )
    search(page)
    by_text, fused = asked(page, mode="text"), asked(page)
    assert by_text != fused
    seen = page.evaluate("window.seen")
    first = next(i for i, moment in enumerate(seen) if moment["order"] == by_text)
    assert "ranked by your words" in seen[first]["status"]
    last = seen[-1]
    assert last["order"] == fused
    assert "imagined picture" in last["status"]
    assert last["moving"] > 0
    assert page.locator("#imagined img").count() == page.request.get("/v1/info").json()["images"]
    assert page.title() == f"{QUERY} – mindseye"
    assert parse_qs(urlsplit(page.url).query) == {"q": [QUERY]}
    for image in page.locator("#imagined img").all():
        expect(image).to_have_js_property("complete", True)
        assert image.evaluate("image => image.naturalWidth") > 0


def test_nothing_moves_for_those_who_do_not_want_it(visit: Callable[..., Page]) -> None:
    page = visit(reduced_motion="reduce")
    page.evaluate(
        """() => {
          window.moving = 0;
          new MutationObserver(() => (window.moving += document.getAnimations().length))
            .observe(document.getElementById('results'), {childList: true, subtree: true, attributes: true});
        }"""
    )
    search(page)
    assert page.evaluate("window.moving") == 0


def test_the_weight_ranks_anew_without_imagining_anew(visit: Callable[..., Page]) -> None:
    page = visit()
    search(page)
    calls: list[tuple[str, Any]] = []
    page.on("request", lambda r: calls.append((urlsplit(r.url).path, r.post_data_json)) if r.method == "POST" else None)
    slider = page.get_by_role("slider", name="Ranked by")
    slider.focus()
    page.keyboard.press("End")
    shows(page, asked(page, weight=1))
    expect(slider).to_have_attribute("aria-valuetext", "words 0%, imagined pictures 100%")
    assert parse_qs(urlsplit(page.url).query)["w"] == ["1.00"]
    page.keyboard.press("ArrowLeft")
    calls.clear()
    slider.evaluate(
        """slider => {
          for (let i = 0; i < 9; i++) { slider.stepDown(); slider.dispatchEvent(new Event('input', {bubbles: true})); }
        }"""
    )
    shows(page, asked(page, weight=0.9))
    # One for where it came to rest, and one at most for where the key had left it.
    assert len(calls) <= 2, "a slider in motion asks for every position"
    page.keyboard.press("Home")
    shows(page, asked(page, mode="text"))
    settled(page)
    assert {path for path, _ in calls} == {"/v1/search"}
    page.get_by_role("button", name="Reset").click()
    shows(page, asked(page))
    assert "w" not in parse_qs(urlsplit(page.url).query)


def test_a_stale_ranking_is_given_up(visit: Callable[..., Page]) -> None:
    page = visit()
    search(page)
    held: list[Route] = []
    gone: list[str] = []
    ranks_anew = re.compile("/v1/search$")
    page.on("requestfailed", lambda r: gone.append(r.failure) if ranks_anew.search(r.url) else None)

    def hold_the_first(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/v1/search", hold_the_first)
    page.get_by_role("slider").focus()
    with page.expect_request("**/v1/search"):
        page.keyboard.press("End")
    page.keyboard.press("Home")
    shows(page, asked(page, mode="text"))
    settled(page)
    assert gone == ["net::ERR_ABORTED"]


def test_the_weight_may_be_moved_while_images_are_being_made(visit: Callable[..., Page]) -> None:
    page = visit(expected="ERR_FAILED")
    held: list[Route] = []
    page.route("**/v1/search/stream", lambda route: held.append(route))
    with page.expect_request("**/v1/search/stream"):
        page.get_by_role("searchbox").fill(QUERY)
        page.keyboard.press("Enter")
    page.get_by_role("slider").focus()
    page.keyboard.press("End")
    page.wait_for_timeout(300)  # longer than the page waits for the slider to rest
    [route] = held
    page.route("**/v1/search", lambda route: route.abort(), times=1)
    route.continue_()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The service cannot be reached")
    expect(page.get_by_role("status")).to_have_text("These are still the pictures of the search before.")
    alert.get_by_role("button", name="Try again").click()
    shows(page, asked(page, weight=1))
    assert len(held) == 1, "what is being imagined was asked for again"


def test_imagined_pictures_are_left_out_and_taken_back(visit: Callable[..., Page]) -> None:
    page = visit()
    search(page)
    pictures = page.locator("#imagined > li > button")
    expect(pictures.first).to_have_attribute("aria-pressed", "true")
    expect(pictures.first).to_have_accessible_name(re.compile(r"^Imagined picture 1 of \d+, used, share \d+%$"))
    pictures.first.click()
    shows(page, asked(page, drop=[0]))
    expect(pictures.first).to_have_attribute("aria-pressed", "false")
    expect(pictures.first).to_contain_text("left out")
    assert parse_qs(urlsplit(page.url).query)["drop"] == ["0"]
    for picture in pictures.all()[1:]:
        picture.click()
    shows(page, asked(page, mode="text"))
    expect(page.get_by_role("status")).to_contain_text("ranked by your words")
    page.get_by_role("button", name="Take back").click()
    shows(page, asked(page))


@pytest.mark.parametrize(("shares", "alike"), [([0.5, 0.5], True), ([0.45, 0.55], True), ([0.3, 0.7], False)])
def test_it_is_said_when_all_imagined_pictures_count_about_the_same(
    visit: Callable[..., Page], shares: list[float], alike: bool
) -> None:
    page = visit()

    def answered(route: Route) -> None:
        answer = route.fetch().json()
        picture = answer["imagined"][0]
        pictures = [picture | {"url": f"{picture['url']}?{i}", "attention": share} for i, share in enumerate(shares)]
        route.fulfill(json=answer | {"imagined": pictures})

    page.route("**/v1/search", answered)
    search(page)  # its answer is in the memory now
    with page.expect_response("**/v1/search"):
        page.get_by_label("Ranked by").press("ArrowRight")
    note = "All count about the same. Leave out" if alike else "Leave out"
    expect(page.locator("#mind-note")).to_have_text(re.compile(f"^{re.escape(note)}"))
    expect(page.locator("#imagined li")).to_have_count(len(shares))


def test_imagining_anew_asks_for_other_images(visit: Callable[..., Page]) -> None:
    page = visit()
    search(page)
    page.get_by_role("button", name="Imagine anew").click()
    page.wait_for_url("**seed=1**")
    shows(page, asked(page, seed=1))


def test_a_shared_address_gives_the_same_ranking_and_back_goes_back(visit: Callable[..., Page]) -> None:
    page = visit("/?q=yellow+dotted+fish&w=0.80&drop=0")
    settled(page)
    shows(page, asked(page, weight=0.8, drop=[0]))
    search(page, "red striped star")
    expect(page.get_by_role("heading", level=1)).to_have_text("red striped star")
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text(QUERY)
    shows(page, asked(page, weight=0.8, drop=[0]))
    page.go_forward()
    expect(page.get_by_role("searchbox")).to_have_value("red striped star")


def test_words_alone_are_a_whole_answer(visit: Callable[..., Page]) -> None:
    page = visit("/?q=yellow+dotted+fish&w=0")
    settled(page)
    shows(page, asked(page, mode="text"))
    expect(page.locator("#mind")).to_contain_text("words alone")
    expect(page.get_by_role("button", name="Show more")).to_be_visible()
    page.get_by_role("button", name="Show more").click()
    shows(page, asked(page, mode="text", k=48))


@pytest.fixture
def picture(visit: Callable[..., Page]) -> dict[str, Any]:
    """A picture of the gallery, as a file for uploading and as the ranking that it gives."""
    page = visit()
    found = page.request.post("/v1/search", data={"query": QUERY, "k": 1, "mode": "text"}).json()["results"][0]
    data = page.request.get(found["url"]).body()
    kind = "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
    sent = page.request.post("/v1/pictures", data=data, headers={"Content-Type": kind})
    key = sent.json()["upload"]
    ranked = asked(page, query=None, evidence=[{"upload": key}])
    assert found["thumbnail"] in ranked
    return {"file": {"name": "mine", "mimeType": kind, "buffer": data}, "ranked": ranked, "key": key}


HAND_OVER = """([name, target, code, kind]) => {
  const bytes = Uint8Array.from(atob(code), letter => letter.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], 'mine', {type: kind}));
  const options = {bubbles: true, cancelable: true};
  const event = name === 'paste'
    ? new ClipboardEvent(name, {...options, clipboardData: carried})
    : new DragEvent(name, {...options, dataTransfer: carried});
  document.querySelector(target).dispatchEvent(event);
}"""


def test_a_picture_is_searched_with_by_button_by_dropping_and_by_pasting(
    visit: Callable[..., Page], picture: dict[str, Any]
) -> None:
    page = visit()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Search with a picture").click()
    chooser.value.set_files(picture["file"])
    settled(page)
    assert order(page) == picture["ranked"]
    expect(page.get_by_role("heading", level=1)).to_have_text("Like your picture")
    page.get_by_role("slider", name="Ranked by").focus()
    page.keyboard.press("Home")
    expect(page.get_by_role("slider", name="Ranked by")).to_have_attribute("aria-valuetext", "meaning 100%, looks 0%")
    page.get_by_role("button", name="Reset").click()
    page.get_by_role("button", name="Remove your picture").click()
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.go_back()
    shows(page, picture["ranked"])
    code = base64.b64encode(picture["file"]["buffer"]).decode()
    for name, target in (("drop", "main"), ("paste", "#query")):
        other = visit()
        if name == "drop":
            other.evaluate(HAND_OVER, ["dragover", target, code, picture["file"]["mimeType"]])
            expect(other.get_by_text("Drop a picture")).to_be_visible()
        other.evaluate(HAND_OVER, [name, target, code, picture["file"]["mimeType"]])
        settled(other)
        assert order(other) == picture["ranked"]
        expect(other.get_by_text("Drop a picture")).to_be_hidden()


def test_what_is_no_picture_is_refused_in_words(visit: Callable[..., Page]) -> None:
    page = visit(expected="status of 4")
    page.locator("#file").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"words"})
    expect(page.get_by_role("alert")).to_contain_text("That is not a picture")
    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"words"})
    expect(page.get_by_role("alert")).to_contain_text("did not take this picture")
    info = page.request.get("/v1/info").json()
    info["limits"]["body_bytes"] = 1000
    page.route("**/v1/info", lambda route: route.fulfill(json=info))
    page.reload()
    expect(page.locator("footer")).to_contain_text("48 pictures")
    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": bytes(1001)})
    expect(page.get_by_role("alert")).to_contain_text("The picture is too large")


def test_a_result_opens_says_why_and_is_searched_with(visit: Callable[..., Page]) -> None:
    page = visit()
    search(page)
    results = page.get_by_role("list", name=QUERY).locator("> li > button")
    expect(results.nth(1)).to_have_accessible_name(
        re.compile(r"^2: .+; score \d\.\d+, of it words −?\d\.\d+, imagined pictures −?\d\.\d+(; .+)?$")
    )
    results.nth(1).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Result 2 of 24")
    expect(dialog.get_by_text("Imagined pictures")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(dialog).to_contain_text("Result 3 of 24")
    name = dialog.get_by_role("heading", level=2).text_content()
    dialog.get_by_role("button", name="Search with this picture").click()
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Like {name}")
    settled(page)
    page.wait_for_url(re.compile(r"/\?e=1\*row\*id-\d+$"))
    page.reload()
    expect(page.get_by_role("status")).to_contain_text("likeness")
    page.go_back()
    shows(page, asked(page))


def test_the_keyboard_is_enough(visit: Callable[..., Page]) -> None:
    page = visit()
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type(QUERY)
    page.keyboard.press("Enter")
    settled(page)
    stops = []
    for _ in range(60):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.closest('section, form, a, footer')?.id"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        if page.evaluate("document.activeElement.matches('#results li:first-child > button')"):
            break
    assert "mind" in stops
    assert stops[-1] == "found"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("Result 2 of")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#results li:nth-child(3) > button")).to_be_focused()
    page.keyboard.press("End")
    expect(page.locator("#results li:last-child > button")).to_be_focused()
    page.keyboard.press("-")
    # The new answer may no longer have that result.
    expect(page).to_have_url(re.compile(r"[?&]e=-0\.4(\*|%2A)row"))
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()


def test_everything_has_a_name_and_a_place(visit: Callable[..., Page]) -> None:
    page = visit(f"/?q=fish{MIXED}")
    settled(page)
    for landmark in ("banner", "main", "search", "contentinfo"):
        expect(page.get_by_role(landmark)).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    assert page.locator("img:not([alt])").count() == 0
    for image in page.locator("#results img, #imagined img").all():
        assert image.get_attribute("alt")
    for control in page.locator("button:visible, input:visible, a:visible").all():
        expect(control).to_have_accessible_name(re.compile(r"\S"))
    assert page.locator("html").get_attribute("lang") == "en"


def evidence(page: Page) -> list[str]:
    """The pieces of evidence that the page's address says."""
    return parse_qs(urlsplit(page.url).query).get("e", [])


def press(page: Page, name: str | re.Pattern[str]) -> None:
    page.get_by_role("button", name=name).click()


def test_rounds_of_evidence_are_undone_by_the_back_button(visit: Callable[..., Page]) -> None:
    page = visit()
    search(page)
    chips = page.get_by_role("list", name="Evidence").get_by_role("listitem")
    rounds: list[tuple[list[str], list[str]]] = [([], order(page))]

    def becomes_round(*pieces: dict[str, Any]) -> None:
        expected = asked(page, evidence=list(pieces)) if pieces else asked(page)
        shows(page, expected)
        expect(chips).to_have_count(len(pieces))
        rounds.append((evidence(page), expected))

    card = page.locator("#results > li").nth(5)
    row = {"row": page.request.post("/v1/search", data={"query": QUERY, "k": 6}).json()["results"][5]["id"]}
    card.get_by_role("button", name="More like").click()
    becomes_round(row)
    assert evidence(page) == [f"1*row*{row['row']}"]
    expect(page.get_by_role("button", name="More like", pressed=True)).to_have_count(1)
    page.get_by_label("More words").fill("red")
    page.keyboard.press("Enter")
    red = {"text": "red", "weight": -0.4}
    becomes_round(row, red)
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(f"^{QUERY}, like .+, without red$"))
    slider = page.get_by_role("slider", name="Weight of red", exact=True)
    expect(slider).to_have_attribute("aria-valuetext", "against, 0.4")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    becomes_round(row, red | {"weight": -0.6})
    expect(slider).to_be_focused()
    press(page, "red: against")
    becomes_round(row, red | {"weight": 1})
    box = page.get_by_role("textbox", name="Words", exact=True)
    box.fill("blue striped")
    page.keyboard.press("Enter")
    becomes_round(row, {"text": "blue striped"})
    page.locator("#imagined > li").nth(1).get_by_role("button", name="Less like").click()
    settled(page)
    images = page.request.post("/v1/search", data={"query": QUERY}).json()["imagined"]
    unlike = {"imagined": "/".join(images[1]["url"].split("/")[-2:]), "weight": -0.4}
    becomes_round(row, {"text": "blue striped"}, unlike)
    press(page, "Remove blue striped")
    becomes_round(row, unlike)
    press(page, "Remove all")
    becomes_round()
    # One step for each round, also for the slider's two.
    for pieces, expected in reversed(rounds[:-1]):
        page.go_back()
        shows(page, expected)
        assert evidence(page) == pieces
    page.go_forward()
    page.go_forward()
    shows(page, rounds[2][1])
    page.reload()
    shows(page, rounds[2][1])
    assert evidence(page) == rounds[2][0]


def test_what_each_piece_brought_is_said_and_drawn(visit: Callable[..., Page]) -> None:
    page = visit("/?q=yellow+dotted+fish&e=-0.4*text*red&e=0.5*row*id-003")
    settled(page)
    expect(page.locator("#status")).to_contain_text("2 more pieces of evidence")
    pieces = [{"text": "red", "weight": -0.4}, {"row": "id-003", "weight": 0.5}]
    first = page.request.post("/v1/search", data={"query": QUERY, "k": 24, "evidence": pieces}).json()["results"][0]
    shares = [f"{share:.3f}".replace("-", "−") for share in first["shares"]]
    card = page.locator("#results > li").first
    becomes(page, lambda: f"by evidence: {QUERY} {shares[0]}, red {shares[1]}, " in spoken(card))
    widths = card.locator(".bar i").evaluate_all("parts => parts.map(part => part.getBoundingClientRect().width)")
    [length] = card.locator(".bar").evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
    counted = [max(0.0, share) for share in first["shares"]]
    results = page.request.post("/v1/search", data={"query": QUERY, "k": 24, "evidence": pieces}).json()["results"]
    full = max(sum(max(0.0, share) for share in result["shares"]) for result in results)
    assert widths == pytest.approx([length * share / full for share in counted], abs=1)
    card.locator("> button").click()
    expect(page.locator("#detail-shares dd")).to_have_text(shares)
    press(page, "Less like this")
    becomes(page, lambda: evidence(page)[-1] == f"-0.4*row*{first['id']}")


def spoken(card: Any) -> str:
    return card.locator("> button").get_attribute("aria-label") or ""


def test_a_part_of_a_picture_is_drawn_or_set_by_keys(visit: Callable[..., Page], picture: dict[str, Any]) -> None:
    page = visit()
    page.locator("#file").set_input_files(picture["file"])
    settled(page)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if "/v1/pictures" in request.url else None)
    press(page, "All of your picture: choose a part")
    stage = page.locator("#part-stage")
    becomes(page, lambda: page.locator("#part-picture").evaluate("image => image.naturalWidth > 0"))
    frame = stage.bounding_box()
    assert frame

    def corner(x: float, y: float) -> tuple[float, float]:
        return frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]

    page.mouse.move(*corner(0.75, 0.8))
    page.mouse.down()
    page.mouse.move(*corner(0.5, 0.5))
    page.mouse.move(*corner(0.25, -0.2))  # beyond the edge is the edge
    page.mouse.up()
    press(page, "Search with this part")
    settled(page)
    [piece] = evidence(page)
    box = [int(edge) / 1000 for edge in piece.split("*")[1].split("-")[1:]]
    assert box == pytest.approx([0.25, 0, 0.75, 0.8], abs=0.01)
    shows(page, asked(page, query=None, evidence=[{"upload": picture["key"], "box": box}]))
    page.get_by_role("button", name="Part of your picture").focus()
    page.keyboard.press("Enter")
    page.get_by_role("slider", name="Left").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(page.get_by_role("slider", name="Left")).to_have_attribute("aria-valuetext", "30%")
    page.get_by_role("slider", name="Top").focus()
    page.keyboard.press("End")  # not beyond the other edge
    expect(page.get_by_role("slider", name="Top")).to_have_attribute("aria-valuetext", "75%")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_hidden()
    settled(page)
    assert evidence(page)[0].startswith("1*upload-300-750-")
    press(page, "Part of your picture")
    press(page, "The whole picture")
    press(page, "Search with this part")
    shows(page, picture["ranked"])
    assert not [url for url in sent if url.endswith("/v1/pictures")], "a picture is sent once"


def test_what_the_service_lacks_is_said_beside_the_chips_and_nothing_is_lost(
    visit: Callable[..., Page], picture: dict[str, Any]
) -> None:
    address = f"/?e=0.7*text*star&e=1*upload*{'0' * 64}"
    page = visit(address, expected="status of 4")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The service no longer has this picture.")
    chips = page.locator("#evidence > li")
    expect(chips).to_have_count(2)
    expect(chips.nth(1)).to_have_class(re.compile("faulty"))
    expect(page.get_by_role("slider", name="Weight of your picture")).to_have_accessible_description(alert.inner_text())
    with page.expect_file_chooser() as chooser:
        press(page, "Choose it again")
    chooser.value.set_files(picture["file"])
    expect(alert).to_be_hidden()
    settled(page)
    shows(page, asked(page, query=None, evidence=[{"text": "star", "weight": 0.7}, {"upload": picture["key"]}]))
    # A service that has lost a picture is sent it again, as long as the page has it.
    missing = {"error": {"code": "missing", "message": "gone", "field": "evidence.1.upload"}, "request_id": "r"}
    page.route("**/v1/search", lambda route: route.fulfill(status=422, json=missing), times=1)
    with page.expect_request("**/v1/pictures"):
        page.get_by_role("slider", name="Weight of star").press("ArrowRight")
    shows(page, asked(page, query=None, evidence=[{"text": "star", "weight": 0.8}, {"upload": picture["key"]}]))
    expect(alert).to_be_hidden()


def test_too_many_pieces_and_none_that_is_wanted(visit: Callable[..., Page]) -> None:
    words = [f"e=0.1*text*star{i}" for i in range(15)]
    page = visit(f"/?q=fish&w=0&{'&'.join(words)}&e=0.1*text*moon", expected="status of 4")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("up to 16 pieces of evidence, not 17")
    press(page, "Remove moon")
    settled(page)
    expect(alert).to_be_hidden()
    before = evidence(page)
    page.locator("#results .more-like").first.click()
    expect(alert).to_contain_text("up to 16 pieces")
    assert evidence(page) == before
    page.goto("/?e=-0.4*text*red&w=0")
    expect(alert).to_contain_text("All evidence is against something")
    press(page, "red: against")
    settled(page)
    shows(page, asked(page, query=None, mode="text", evidence=[{"text": "red"}]))


def test_an_address_that_makes_no_sense_is_read_as_far_as_it_does(visit: Callable[..., Page]) -> None:
    wrong = ["1*star", "0*text*red", "x*row*id-001", "1*row-9-9-1-1*id-001", "1*row-0-0-2000-1*id-001", "1*text* "]
    page = visit(
        "/?w=0&like=id-002&fuse=<b>&" + "&".join(f"e={piece}" for piece in [*wrong, "2*row-100-0-1000-900*id-001"])
    )
    settled(page)
    pieces = [{"row": "id-002"}, {"row": "id-001", "box": [0.1, 0, 1, 0.9], "weight": 2}]
    expected = asked(page, query=None, mode="text", evidence=pieces)
    shows(page, expected)
    expect(page.locator("#evidence > li")).to_have_count(2)


def test_words_that_are_offered_become_evidence(visit: Callable[..., Page]) -> None:
    page = visit()
    answer = answer_by_text(
        page, stage="fused", weight=0.5, visual="nearest", reranked="neighbours", refinements=["striped", ATTACK]
    )
    streams(page, ("text", answer_by_text(page)), ("fused", answer | {"words": ["red star"]}), ("done", {}))
    search(page)
    expect(page.locator("#mind-note")).to_contain_text("nearest to your words stand in")
    expect(page.get_by_role("status")).to_contain_text("the pictures nearest to them")
    expect(page.locator("#words-end")).to_have_text(re.compile("words"))
    expect(page.locator("#pictures-end")).to_contain_text("nearest pictures")
    page.locator("#account summary").click()
    expect(page.locator("#account-list")).to_contain_text("neighbours")
    page.unroute("**/v1/search/stream")
    page.get_by_role("group", name="narrow down").get_by_role("button", name="Without striped").click()
    becomes(page, lambda: evidence(page) == ["-0.4*text*striped"])
    settled(page)
    streams(
        page,
        ("text", answer_by_text(page)),
        ("fused", answer | {"words": ["red star"], "recomposed": ATTACK}),
        ("done", {}),
    )
    page.goto("/?q=yellow+dotted+fish")
    page.get_by_role("group", name="read from the picture").get_by_role("button", name="With red star").click()
    becomes(page, lambda: evidence(page) == ["1*text*red star"])
    words = page.get_by_role("textbox", name="Words", exact=True)
    expect(words).to_have_value("red star")
    expect(words).to_be_editable()


QUESTION = {
    "question": f"Which pattern? {ATTACK}",
    "choices": ["striped", ATTACK],
    "degraded": None,
    "request_id": "r-18",
}


def test_the_assistants_question_is_answered_by_a_word_and_undone(visit: Callable[..., Page]) -> None:
    page = visit()
    search(page)
    expect(page.locator("#foot")).to_contain_text("48 pictures")
    ask = page.get_by_role("button", name="Help me narrow this down")
    expect(ask).to_be_hidden()  # this service has no assistant
    page = visit(f"/?q={QUERY}", question=QUESTION)
    held: list[Route] = []
    page.route("**/v1/question", lambda route: held.append(route), times=1)
    settled(page)
    ask = page.get_by_role("button", name="Help me narrow this down")
    text = page.locator("#question-text")
    expect(text).to_have_attribute("aria-live", "polite")
    ask.focus()
    page.keyboard.press("Enter")
    expect(text).to_have_text("The assistant is thinking of a question…")
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    becomes(page, lambda: bool(held))
    assert held[0].request.post_data_json == {"query": QUERY, "k": 24, "seed": 0, "drop": []}
    held[0].fulfill(json=QUESTION)
    expect(text).to_have_text(QUESTION["question"])
    choices = page.get_by_role("group", name=QUESTION["question"]).get_by_role("button")
    expect(choices).to_have_text([*QUESTION["choices"], "None of these"])
    expect(choices.first).to_be_focused()
    before = order(page)
    page.keyboard.press("Escape")
    expect(text).to_have_text("")
    expect(ask).to_be_focused()
    assert (evidence(page), order(page)) == ([], before)
    page.keyboard.press("Enter")
    expect(choices.first).to_be_focused()
    page.keyboard.press("Enter")
    shows(page, asked(page, evidence=[{"text": "striped"}]))
    settled(page)
    assert evidence(page) == ["1*text*striped"]
    expect(page.get_by_role("textbox", name="Words", exact=True)).to_have_value("striped")
    expect(ask).to_be_focused()
    page.keyboard.press("Enter")
    expect(text).to_have_text(QUESTION["question"])
    page.go_back()
    shows(page, before)
    assert evidence(page) == []
    expect(ask).to_be_visible()  # the question was about other pictures
    assert page.evaluate("window.attacked") is None


def test_why_there_is_no_question_is_told_in_plain_words(visit: Callable[..., Page]) -> None:
    nothing = {"question": None, "choices": [], "degraded": None, "request_id": "r-19"}
    page = visit(f"/?q={QUERY}", expected="status of (422|429|5)", question=nothing)
    settled(page)
    box = page.get_by_role("group", name="The assistant’s question")
    found = page.get_by_role("status").inner_text()
    press(page, "Help me narrow this down")
    expect(box).to_contain_text("There is nothing to ask about these pictures.")
    press(page, "Close")

    def answers(**answer: Any) -> None:
        page.unroute("**/v1/question")
        page.route("**/v1/question", lambda route: route.fulfill(**answer))

    answers(json=nothing | {"degraded": "the assistant did not answer in time"})
    press(page, "Help me narrow this down")
    expect(box).to_contain_text("There is no question just now. The assistant did not answer in time.")
    answers(status=429, headers={"Retry-After": "7"}, json=FAULT)
    press(page, "Ask again")
    expect(box).to_contain_text("Too many searches just now. All places are taken. Try again in 7 seconds.")
    answers(status=503, headers={"Retry-After": "1"}, json=FAULT)
    press(page, "Ask again")
    expect(box).to_contain_text("The service is busy: the question waits for its turn…")
    answers(status=422, json={"error": FAULT["error"] | {"message": "there is no assistant"}, "request_id": "r"})
    expect(box).to_contain_text("The assistant was not asked. There is no assistant.")
    expect(box.get_by_role("button")).to_have_text(["Close"])
    press(page, "Close")
    assert page.get_by_role("status").inner_text() == found
    held: list[Route] = []
    gone: list[str] = []
    page.unroute("**/v1/question")
    page.route("**/v1/question", lambda route: held.append(route))
    page.on("requestfailed", lambda request: gone.append(urlsplit(request.url).path))
    press(page, "Help me narrow this down")
    becomes(page, lambda: bool(held))
    page.get_by_role("slider", name="Ranked by").press("End")
    expect(box.locator("#question-text")).to_have_text("")
    becomes(page, lambda: gone == ["/v1/question"])
    page.goto("/?e=1*row*id-003")
    settled(page)
    expect(page.locator("#foot")).to_contain_text("48 pictures")
    expect(box).to_be_hidden()  # it asks by words, and there are none


def test_what_a_photo_was_read_as_is_seen_and_left_out(visit: Callable[..., Page]) -> None:
    page = visit()
    images = page.request.post("/v1/search", data={"query": QUERY}).json()["imagined"]
    info = page.request.get("/v1/info").json() | {"aspects": ["colour"]}
    page.route("**/v1/info", lambda route: route.fulfill(json=info))
    read = {"query": "", "words": ["red", "star"], "recomposed": "red star", "stage": "fused", "weight": 0.5}
    answer = answer_by_text(page) | read
    fused = answer | {"imagined": images, "visual": "imagined"}
    event = ("imagined", {"imagined": images, "memory": "miss"})
    streams(page, ("text", answer), event, ("fused", fused), ("done", {}))
    asked_for: list[dict[str, Any]] = []

    def ranked_anew(route: Route) -> None:
        asked_for.append(route.request.post_data_json)
        route.fulfill(json=fused)

    page.route("**/v1/search", ranked_anew)
    page.goto("/?e=1*row*id-003&bridge=words")
    settled(page)
    expect(page.locator("#mind-picture")).to_be_visible()
    expect(page.locator("#mind-note")).to_have_text("Imagined as “red star”. Leave out what you do not mean.")
    expect(page.locator("#imagined > li")).to_have_count(len(images))
    page.locator("#imagined > li > button").first.click()
    becomes(page, lambda: bool(asked_for))
    assert (asked_for[-1]["drop"], asked_for[-1]["evidence"]) == ([0], [{"row": "id-003", "weight": 1}])
    settled(page)
    page.get_by_label("More words").fill("blue")
    page.get_by_label("More words").press("Enter")
    # It is read as something else now, and the image that was left out is not among its own.
    becomes(page, lambda: evidence(page) == ["1*row*id-003", "-0.4*text*blue"])
    assert "drop" not in parse_qs(urlsplit(page.url).query)


def test_options_are_offered_as_far_as_the_service_has_them(visit: Callable[..., Page]) -> None:
    page = visit()
    schema = page.request.get("/openapi.json").json()
    fields = schema["components"]["schemas"]["SearchRequest"]["properties"]
    info = page.request.get("/v1/info").json()
    has = {name: fields.pop(name) for name in ("fuse", "rerank", "focus", "ignore", "bridge") if name in fields}
    page.route("**/openapi.json", lambda route: route.fulfill(json=schema))
    page.route("**/v1/info", lambda route: route.fulfill(json=info))
    page.goto("/?q=yellow+dotted+fish&w=0")
    settled(page)
    expect(page.locator("#foot")).to_contain_text("48 pictures")
    expect(page.get_by_text("How to rank")).to_be_hidden()
    fields |= {"rerank": has["rerank"], "focus": {"anyOf": [{"type": "string"}, {"type": "null"}]}}
    info["aspects"] = ["colour", "shape"]
    page.reload()
    settled(page)
    page.get_by_text("How to rank").click()
    expect(page.locator("#options-list label")).to_have_text([re.compile("^Second look"), re.compile("^Look at")])
    page.get_by_label("Second look").select_option("neighbours")
    ranked_again = asked(page, mode="text", rerank="neighbours")
    assert ranked_again != asked(page, mode="text")
    shows(page, ranked_again)
    asked_for: list[dict[str, Any]] = []

    def keep(route: Route) -> None:
        asked_for.append(route.request.post_data_json)
        route.continue_(post_data={name: value for name, value in asked_for[-1].items() if name != "focus"})

    page.route(re.compile("/v1/search"), keep)
    page.get_by_label("Look at").select_option("colour")
    becomes(page, lambda: bool(asked_for) and asked_for[-1].get("focus") == "colour")
    settled(page)
    said = parse_qs(urlsplit(page.url).query)
    assert (said["rerank"], said["focus"]) == (["neighbours"], ["colour"])
    page.get_by_label("Second look").select_option("none")
    becomes(page, lambda: "rerank" not in asked_for[-1])
    looks = page.get_by_label("Second look").locator("option")
    expect(looks).to_have_text(["none", "neighbours"])
    info["assistant"] = 16
    page.reload()
    expect(page.get_by_label("Look at")).to_have_value("colour")
    expect(looks).to_have_text(["none", "neighbours", "assistant, one by one", "assistant, side by side"])


@pytest.mark.parametrize("answer", ["degraded", "shard"])
def test_an_incomplete_answer_says_so(visit: Callable[..., Page], answer: str) -> None:
    page = visit()
    reason = "the generator did not answer in time" if answer == "degraded" else "shard 1 did not answer"
    changes: dict[str, Any] = {"degraded": reason, "warnings": ["the query has 90 tokens and 77 are read"]}
    if answer == "shard":
        changes["shards"] = {"answered": 4, "total": 5}
    given = answer_by_text(page, **changes)
    streams(page, ("text", answer_by_text(page)), ("fused", given), ("done", {}))
    search(page)
    expect(page.locator(".notice").first).to_contain_text(f"{reason[0].upper()}{reason[1:]}.")
    expect(page.locator(".notice").first).to_contain_text("your words alone")
    if answer == "shard":
        expect(page.locator(".notice").first).to_contain_text("Pictures may be missing.")
        expect(page.locator("#account-list")).to_contain_text("4 of 5")
    expect(page.locator(".notice").nth(1)).to_contain_text("The query has 90 tokens and 77 are read.")
    expect(page.locator(".notice").nth(1).locator("xpath=..")).to_have_attribute("aria-live", "polite")
    page.unroute("**/v1/search/stream")
    page.get_by_role("button", name="Try again").click()
    shows(page, asked(page))
    expect(page.locator(".notice")).to_have_count(0)


def test_a_refusal_is_told_in_plain_words(visit: Callable[..., Page]) -> None:
    page = visit(expected="status of 503")
    full = {"status": 503, "headers": {"Retry-After": "30"}, "json": FAULT}
    page.route("**/v1/search/stream", lambda route: route.fulfill(**full))
    page.get_by_role("searchbox").fill(QUERY)
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The service is busy All places are taken. Try again in 30 seconds.")
    expect(alert).to_contain_text("r-17")
    page.unroute("**/v1/search/stream")
    alert.get_by_role("button", name="Try again").click()
    settled(page)
    shows(page, asked(page))


def test_a_way_to_rank_that_the_service_lacks_can_be_given_up(visit: Callable[..., Page]) -> None:
    page = visit(f"/?q={QUERY}&w=0&focus=colour", expected="status of 422")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The service did not take this search")
    alert.get_by_role("button", name="Search without it").click()
    shows(page, asked(page, mode="text"))
    assert "focus" not in parse_qs(urlsplit(page.url).query)
    page.goto(f"/?q={QUERY}&drop=99")  # of a service that imagines more
    expect(alert).to_contain_text("Drop names images [99]")
    alert.get_by_role("button", name="Leave out none").click()
    shows(page, asked(page))
    assert "drop" not in parse_qs(urlsplit(page.url).query)


def test_a_service_that_is_busy_for_a_moment_is_asked_again(visit: Callable[..., Page]) -> None:
    page = visit(expected="status of 503")
    asked_for: list[str] = []

    def busy(route: Route) -> None:
        asked_for.append(route.request.post_data_json["query"])
        if len(asked_for) > 2:
            return route.continue_()
        return route.fulfill(status=503, headers={"Retry-After": "1"}, json=FAULT)

    page.route("**/v1/search/stream", busy)
    page.get_by_role("searchbox").fill(QUERY)
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("The service is busy")
    settled(page)
    shows(page, asked(page))
    assert asked_for == [QUERY] * 3
    expect(page.get_by_role("alert")).to_have_count(0)
    # Who searches for something else meanwhile does not wait for the first.
    asked_for.clear()
    page.get_by_role("searchbox").fill("nothing of this")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("The service is busy")
    search(page)
    assert asked_for[0] == "nothing of this"
    assert set(asked_for[asked_for.index(QUERY) :]) == {QUERY}


def test_an_answer_that_breaks_off_keeps_what_there_is(visit: Callable[..., Page]) -> None:
    page = visit(expected="ERR_FAILED")
    text = ("text", answer_by_text(page))
    streams(page, text)
    search(page)
    expect(page.get_by_role("alert")).to_contain_text("The answer broke off")
    assert order(page) == asked(page, mode="text")
    page.unroute("**/v1/search/stream")
    streams(page, text, ("error", FAULT))
    search(page)
    expect(page.get_by_role("alert")).to_contain_text("All places are taken.")
    page.unroute("**/v1/search/stream")
    page.route("**/v1/search/stream", lambda route: route.abort())
    page.get_by_role("searchbox").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("The service cannot be reached")


def test_names_are_text_and_never_markup(visit: Callable[..., Page]) -> None:
    page = visit()
    given = answer_by_text(page, degraded=ATTACK, warnings=[ATTACK], index_version=ATTACK, request_id=ATTACK)
    for result in given["results"]:
        result |= {"path": f"folder/{ATTACK}", "label": None, "thumbnail": "javascript:window.attacked=true"}
    info = page.request.get("/v1/info").json() | {"examples": [ATTACK], "index_version": ATTACK}
    image = {"index": 0, "seed": 1, "url": "//elsewhere.invalid/a.png", "attention": 1.0, "dropped": False}
    page.route("**/v1/info", lambda route: route.fulfill(json=info))
    streams(
        page,
        ("text", given),
        ("imagined", {"imagined": [image], "memory": "miss"}),
        ("fused", given | {"imagined": [image]}),
        ("error", {"error": {"code": "x", "message": ATTACK, "field": None}, "request_id": ATTACK}),
    )
    asked_for: list[str] = []
    page.on("request", lambda request: asked_for.append(request.url))
    page.reload()
    page.get_by_role("button", name=ATTACK).click()
    settled(page)
    expect(page.get_by_role("heading", level=1)).to_have_text(ATTACK)
    expect(page.locator("#results .name").first).to_have_text(ATTACK)
    expect(page.get_by_role("alert")).to_contain_text(ATTACK)
    page.locator("#account summary").click()
    page.locator("#results button").first.click()
    expect(page.locator("#detail-path")).to_have_text(f"folder/{ATTACK}")
    page.goto(f"/?q={ATTACK}")
    settled(page)
    assert page.evaluate("window.attacked") is None
    assert page.locator("img[onerror], img[src=x]").count() == 0
    assert not [url for url in asked_for if "elsewhere" in url]


def test_a_key_is_asked_for_once_and_sent_with_everything(visit: Callable[..., Page]) -> None:
    page = visit(expected="status of 401")
    keys: list[str | None] = []

    def guard(route: Route) -> None:
        key = route.request.headers.get("authorization")
        keys.append(key)
        if key == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"code": "key", "message": "no key"}, "request_id": "r"})

    page.route("**/v1/**", guard)
    page.goto("/?q=yellow+dotted+fish")
    box = page.get_by_label("API key")
    box.fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("not accepted")
    box.fill("right")
    page.keyboard.press("Enter")
    settled(page)
    expect(page.get_by_role("dialog")).to_be_hidden()
    shows(page, asked(page))
    expect(page.locator("#results img:not([src^='blob:'])")).to_have_count(0)
    seen = "images => images.every(image => image.naturalWidth > 0)"
    becomes(page, lambda: page.eval_on_selector_all("#imagined img", seen))
    keys.clear()
    page.reload()
    settled(page)
    assert set(keys) == {"Bearer right"}


@pytest.mark.parametrize("path", ["/", f"/?q=fish{MIXED}"])
def test_a_narrow_phone_needs_no_sideways_scrolling(visit: Callable[..., Page], path: str) -> None:
    phone: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    unbroken = {"question": f"Which {'o' * 90}?", "choices": ["striped", "x" * 90]}
    page = visit(path, question=QUESTION | unbroken, **phone)
    if "q=" in path:
        settled(page)
    expect(page.get_by_role("button", name="Find", exact=True)).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    if "q=" not in path:
        return
    press(page, "Help me narrow this down")
    expect(page.locator(".choice")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    of_evidence, of_question = ".evidence :is(button, input):visible", "#question button:visible"
    for control in page.locator(f"{of_evidence}, {of_question}, #results .judges button").all()[:30]:
        place = control.bounding_box()
        assert place
        assert min(place["width"], place["height"]) >= 24  # WCAG 2.2, 2.5.8
        assert place["x"] + place["width"] <= 360
    for opens in ("#results > li > button", ".piece .part"):
        page.locator(opens).first.click()
        box = page.get_by_role("dialog").bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert page.evaluate("document.querySelector('dialog[open]').scrollWidth <= 360")
        page.keyboard.press("Escape")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_the_light_and_in_the_dark(visit: Callable[..., Page], scheme: Any) -> None:
    page = visit(f"/?q=fish{MIXED}", color_scheme=scheme)
    settled(page)

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert paper > 0.8 if scheme == "light" else paper < 0.05
    for place in (
        "h1:visible",
        "#status",
        ".name",
        ".score",
        "#anew",
        "#mind-note",
        "footer",
        ".share",
        ".amount",
        ".remove",
    ):
        ink = luminance(page.locator(place).first.evaluate("element => getComputedStyle(element).color"))
        contrast = (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)
        assert contrast >= 4.5, f"{place} in the {scheme}: {contrast:.1f}"  # WCAG 2.2, 1.4.3
