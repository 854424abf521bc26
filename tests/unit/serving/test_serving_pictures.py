"""Where the picture of a row is: asked for once for each version of the index, and known as long as that is served."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any

import pytest
from PIL import Image

from serving.deployments.calls import Unavailable
from serving.deployments.messages import Row, Served
from serving.given import _cut
from serving.pictures import Place, Places


class Ranker:
    """Serves versions of some rows each; counts what it is asked. A handle to itself."""

    def __init__(self, **versions: set[str]) -> None:
        self.versions = versions
        self.current = next(iter(versions))
        self.asked: list[tuple[str, str]] = []
        self.asked_version = 0
        self.error: Exception | None = None

    async def answer_served(self) -> Served:
        self.asked_version += 1
        await asyncio.sleep(0.01)
        if self.error:
            raise self.error
        return Served(self.current, self.current, "gallery", rows=1, shards=1, models={}, weight=0.5)

    async def answer_path(self, id: str, version: str, shard: int | None) -> tuple[str, str] | None:
        self.asked.append((version, id))
        return (f"{id}.png", "images") if id in self.versions[version] else None

    def __getattr__(self, name: str) -> Any:
        method = getattr(type(self), f"answer_{name}")
        return type("Method", (), {"remote": lambda _, *given: asyncio.ensure_future(method(self, *given))})()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def test_a_row_that_was_removed_is_gone_as_soon_as_its_removal_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        ranker = Ranker(v1={"a", "b"}, v2={"b"})
        places = Places(ranker, seconds=10)  # type: ignore[arg-type]
        places.keep([Row("a", 0, "a.png", "images", None, {}, 0.0, 0.0, 0.0)], "v1")
        assert (await places.of("a"), ranker.asked) == (Place("a.png", "images"), [])
        ranker.current = "v2"
        places.switched()
        assert await places.of("a") is None
        assert await places.of("b") == Place("b.png", "images")
        # An answer of the version before, which was under way, brings nothing back.
        places.keep([Row("a", 0, "a.png", "images", None, {}, 0.0, 0.0, 0.0)], "v1")
        assert await places.of("a") is None
        # A switch that nobody tells of is seen by asking.
        monkeypatch.setattr(Places, "VERSION_SECONDS", 0.0)
        ranker.current = "v1"
        assert await places.of("a") == Place("a.png", "images")

    run(check())


def test_each_id_is_asked_for_once_for_each_version_whether_it_is_a_row_or_not() -> None:
    async def check() -> None:
        ranker = Ranker(v1={"a"}, v2={"a"})
        places = Places(ranker, seconds=10)  # type: ignore[arg-type]
        for _ in range(3):
            assert await places.of("a")
            assert await places.of("nothing") is None
        assert ranker.asked == [("v1", "a"), ("v1", "nothing")]
        ranker.versions["v2"].add("nothing")
        ranker.current = "v2"
        places.switched()
        assert await places.of("nothing")

    run(check())


def test_the_pictures_of_a_page_ask_once_together_which_version_is_served() -> None:
    async def check() -> None:
        ranker = Ranker(v1={"a"})
        places = Places(ranker, seconds=10)  # type: ignore[arg-type]
        first = asyncio.create_task(places.of("a"))
        rest = [asyncio.create_task(places.of("a")) for _ in range(20)]
        await asyncio.sleep(0)
        first.cancel()  # the others do not depend on its request
        assert await asyncio.gather(*rest) == [Place("a.png", "images")] * 20
        assert ranker.asked_version == 1
        ranker.error = Unavailable("the ranker", "down")
        places.switched()
        with pytest.raises(Unavailable):
            await places.of("a")

    run(check())


def test_a_part_has_one_pixel_at_least() -> None:
    right, left = 0.1, math.nextafter(0.1, 0)
    assert 50 * left == 50 * right  # to the nearest float
    assert _cut(Image.new("RGB", (50, 50)), (left, left, right, right)).size == (1, 1)
