"""The stages of one search: which parts of the service are asked for what, in which order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Literal

from serving.answers import answer, imagined_images
from serving.asked import Asked, Shortfall
from serving.assisting import Assisting
from serving.deployments.calls import Unavailable
from serving.deployments.messages import Ranking
from serving.encoding import Encoding
from serving.imaginer import Imaginer
from serving.protocol import ImaginedEvent, ImaginedImage, SearchAnswer
from serving.ranking import Rankings
from serving.reading import PictureReading

Event = tuple[Literal["text", "imagined", "fused"], SearchAnswer | ImaginedEvent]


class Stages:
    """Goes through the stages of searches. For one event loop.

    Args:
        encoding, reading, imaginer, rankings: the parts.
        assisting: puts what was found in order, if there is an assistant.
    """

    def __init__(
        self,
        encoding: Encoding,
        reading: PictureReading,
        imaginer: Imaginer,
        rankings: Rankings,
        assisting: Assisting | None,
    ) -> None:
        self._encoding = encoding
        self._reading = reading
        self._imaginer = imaginer
        self._rankings = rankings
        self._assisting = assisting

    async def of(self, asked: Asked, *, each: bool) -> AsyncGenerator[Event]:
        """Yield the stages of an answer as they come, or the last alone; what they are, and errors, as
        ``Search.stages``.

        Args:
            each: yield ``text`` too where images are remembered, and so the last comes at once.
        """
        if self._reading.due(asked):
            await self._reading.read(asked)
        elif self._reading.composes(asked):
            await self._reading.compose(asked)
        texts = asked.texts
        if asked.weight == 0:
            await self._encoding.encode(asked)
            yield "text", await self._answer(asked, await self._rankings.of(asked, "rank", visual=False, last=True))
            return
        for text in texts:
            self._imaginer.set_key(asked, text)
        await asyncio.gather(*(self._imaginer.recall(asked, text) for text in texts))
        await self._encoding.encode(asked)
        unknown = [text for text in texts if not text.known]
        with_keys = [text for text in unknown if text.key]
        making = asyncio.create_task(self._imaginer.obtain_each(asked, with_keys)) if with_keys else None
        by_text: Ranking | None = None
        standing_in: asyncio.Task[Ranking | None] | None = None
        without: Ranking | None = None
        try:
            if texts and (each or unknown):
                by_text = await self._rankings.of(asked, "text_rank", visual=False)
                yield "text", answer(asked, by_text, last=False)
            if making:
                # Now, since there is no time left for it once the images have not come.
                standing_in = asyncio.create_task(self._rankings.standing_in(asked))
                with asked.timed("imagine"):
                    await making
                if all(text.lacks_images for text in unknown):
                    without = await standing_in
        finally:
            # If the client has gone, and nobody else waits for these images, their making ends.
            for task in (making, standing_in):
                if task:
                    task.cancel()
        images = self._imagined(asked)
        if images:
            yield "imagined", ImaginedEvent(imagined=images, memory=asked.memory)
        yield "fused", await self._by_both(asked, images, by_text, without)

    def _imagined(self, asked: Asked) -> list[ImaginedImage]:
        """What is told of the query's images, after leaving out those that the request drops."""
        query = asked.query
        if not query or not query.key or not query.known:
            return []
        images = imagined_images(query.key, query.known, set(asked.request.drop))
        if images and all(image.dropped for image in images):
            query.shortfall = Shortfall("dropped", "every imagined image was left out")
        query.kept = [place for place, image in enumerate(images) if not image.dropped]
        return images

    async def _by_both(
        self, asked: Asked, images: list[ImaginedImage], by_text: Ranking | None, without: Ranking | None
    ) -> SearchAnswer:
        """The answer by texts and images, which is ``without`` if no image came; by the VLM's halves, if every image
        was dropped, or images cannot be ranked by.
        """
        shortfalls = [text.shortfall for text in asked.texts if text.shortfall]
        if asked.visual:
            counted = asyncio.create_task(self._encoding.count_tokens(asked))
            try:
                ranking = without or await self._rankings.of(asked, "rank", visual=True, last=True)
                await counted
            except Unavailable as error:
                if not by_text:
                    raise
                shortfalls.append(Shortfall.of(error))
            else:
                if asked.query:
                    shares = dict(zip(asked.query.kept, ranking.attention, strict=True))
                    images = [image.model_copy(update={"attention": shares.get(i)}) for i, image in enumerate(images)]
                return await self._answer(asked, ranking, images, shortfalls)
            finally:
                counted.cancel()
        if not by_text or (asked.request.rerank != "none" and not asked.visual):
            by_text = await self._rankings.of(asked, "rank", visual=False, last=True)
            return await self._answer(asked, by_text, images, shortfalls)
        return answer(asked, by_text, images, degraded=shortfalls)

    async def _answer(
        self,
        asked: Asked,
        ranking: Ranking,
        images: Sequence[ImaginedImage] = (),
        shortfalls: Sequence[Shortfall] = (),
    ) -> SearchAnswer:
        """The last answer, put in order by the assistant if that is asked for."""
        way = asked.request.rerank
        if self._assisting and (way == "judge" or way == "list"):
            with asked.timed("assistant"):
                found = await self._assisting.reorder(
                    way,
                    asked.in_words,
                    ranking.rows[: asked.request.depth],
                    ranking.version,
                    seconds=asked.deadline.left,
                )
            rows = [
                replace(ranking.rows[place], rerank_score=share) for place, share in found.places(len(ranking.rows))
            ]
            ranking = replace(ranking, rows=rows[: asked.request.k], reranked=way if found.order else None)
            if self._reading.aspects is not None:
                ranking = replace(ranking, refinements=await self._rankings.refinements(asked, ranking))
            shortfalls = [*shortfalls, *([found.shortfall] if found.shortfall else [])]
        return answer(asked, ranking, images, degraded=shortfalls)
