"""The second stage by an assistant, in one process: pictures of what was found are read from the gallery's source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from retrieval.assistant import grid
from retrieval.assistant.blocking import talked
from retrieval.assistant.endpoint import Assistant
from retrieval.assistant.judge import SIDE
from retrieval.assistant.material import Wanted, small_jpeg
from retrieval.assistant.rerank import Reranked, Way, check_can_judge, reranked
from retrieval.evidence import Evidence, Text
from retrieval.sources.lookup import ImageLookup


@dataclass(frozen=True)
class Judging:
    """A second stage to come: who judges, how, and by which words."""

    assistant: Assistant
    way: Way
    wanted: Wanted

    @classmethod
    def of(cls, assistant: Assistant | None, way: Way, evidence: Sequence[Evidence]) -> Judging:
        """Return what is to judge by the texts of evidence.

        Raises:
            UserError: as ``check_can_judge``.
        """
        wanted = Wanted.of((piece.text, piece.weight) for piece in evidence if isinstance(piece, Text))
        return cls(check_can_judge(assistant, wanted), way, wanted)

    def reranked(self, rows: Sequence[Mapping[str, Any]], sources: Mapping[str, str]) -> Reranked:
        """Order rows of an index anew, as ``rerank.reranked``, which never fails.

        Args:
            rows: best first; ``batch`` and ``path`` say where the picture is.
            sources: of the batches, of the index's manifest.
        """
        side = SIDE if self.way == "judge" else grid.TILE
        pictures = [_picture(sources[row["batch"]], row["path"], side) for row in rows]
        return talked(self.assistant, lambda talk: reranked(talk, self.way, self.wanted, pictures))


def _picture(source: str, path: str, side: int) -> bytes | None:
    try:
        data = _lookup(source).bytes_of(path)
    except OSError:  # the source is away: the row keeps its place
        return None
    return small_jpeg(data, side) if data else None


@lru_cache(maxsize=8)
def _lookup(source: str) -> ImageLookup:
    return ImageLookup(source)
