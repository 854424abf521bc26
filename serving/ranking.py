"""Rankings as the ranker is asked for them: by texts alone, by all halves, by the nearest images in the meantime."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from ray.serve.handle import DeploymentHandle

from cluster.profile import ServeSettings
from retrieval.assistant.endpoint import Assistant
from retrieval.errors import UserError
from serving import metrics
from serving.asked import Asked
from serving.deployments.calls import Deadline, Unavailable, call
from serving.deployments.gathering import Gathering
from serving.deployments.messages import AS_EVER, SHARE_OF_SHARDS, Piece, Question, Ranking, RowPiece, Way
from serving.pictures import Places


class Asking(NamedTuple):
    """What the ranker is to be asked: a ``Question`` whose time is not known until it is sent."""

    deadline: Deadline
    pieces: list[Piece | RowPiece]
    weight: float
    k: int
    version: str | None
    way: Way


class Rankings:
    """Asks the ranker; searches that wait at the same time, together. For one event loop.

    Args:
        ranker: its deployment.
        settings: of the service.
        places: are told where the rows lie that were found.
        assistant: that judges what was found, if there is one.
    """

    def __init__(
        self, ranker: DeploymentHandle, settings: ServeSettings, places: Places, assistant: Assistant | None
    ) -> None:
        self._ranker = ranker
        self._asking: Gathering[Asking, Ranking] = Gathering.of("the ranker", self._rank_each, settings.ranker)
        self._shard_seconds = settings.shard_timeout_ms / 1000
        self._places = places
        self._assistant = assistant

    async def of(self, asked: Asked, stage: str, *, visual: bool, last: bool = False) -> Ranking:
        """Return the ranking as asked, or by the VLM's halves alone; by one index version throughout a search. What is
        shown until the ``last`` ranking comes has no second stage, which takes its time.

        Args:
            stage: to count its time under.

        Raises:
            Unavailable: it could not be ranked.
            UserError: the evidence is at fault.
        """
        weight, request = asked.weight if visual else 0.0, asked.request
        second = (request.fuse, request.rerank, request.depth) if last else AS_EVER[:3]
        way, k = Way(*second, request.focus, tuple(request.ignore), refine=last), request.k
        if self._assistant and way.rerank in ("judge", "list"):  # by who asks the ranker, once the answer is known
            way, k = way._replace(rerank="none", refine=False), max(k, min(request.depth, self._assistant.depth))
        asking = Asking(asked.deadline, asked.pieces(visual=visual), weight, k, asked.version, way)
        with asked.timed(stage), metrics.waiting.one(part="ranker"):
            if SHARE_OF_SHARDS * asked.deadline.left < self._shard_seconds:
                ranking = await self._rank_alone(asking)  # beside others it would wait for a hung shard as they may
            else:
                ranking = await self._asking.ask(asking, seconds=asked.deadline.left)
        asked.version = ranking.version
        self._places.keep(ranking.rows, ranking.version)
        return ranking

    async def standing_in(self, asked: Asked) -> Ranking | None:
        """Return the ranking by the nearest real images of the texts that have no images yet, if there can be one."""
        with suppress(Unavailable, UserError):
            return await self.of(asked, "nearest_rank", visual=True, last=True)
        return None

    async def refinements(self, asked: Asked, ranking: Ranking) -> list[str]:
        """Return the words that split rows best, whatever put them in order; none if they are not to be had."""
        method, left = self._ranker.refinements, asked.deadline.left
        with suppress(Unavailable):
            return await call("the ranker", method, ranking.rows, ranking.version, left, seconds=left)
        return []

    async def _rank_alone(self, asking: Asking) -> Ranking:
        [ranking] = await self._rank_each([asking], asking.deadline.left)
        if isinstance(ranking, Exception):
            raise ranking
        return ranking

    async def _rank_each(self, asking: list[Asking], seconds: float) -> list[Ranking | Exception]:
        questions = [Question(*one[1:-1], one.deadline.left, one.way) for one in asking]
        return await call("the ranker", self._ranker.rank_each, questions, seconds=seconds)
