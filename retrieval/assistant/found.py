"""The second stage by an assistant, in one process: pictures of what was found are read from the gallery's source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from retrieval.assistant import grid
from retrieval.assistant.blocking import talked
from retrieval.assistant.endpoint import Assistant
from retrieval.assistant.judge import SIDE
from retrieval.assistant.material import Wanted, small_jpeg
from retrieval.assistant.rerank import Reranked, Way, reranked
from retrieval.sources.lookup import ImageLookup


def reranked_rows(
    assistant: Assistant, way: Way, wanted: Wanted, rows: Sequence[Mapping[str, Any]], sources: Sequence[str]
) -> Reranked:
    """Order the first rows of an answer anew; as ``rerank.reranked``, which never fails.

    Args:
        rows: of the index, best first; ``batch`` and ``path`` say where the picture is.
        sources: of the batches, of the index's manifest.
    """
    side = SIDE if way == "judge" else grid.TILE
    pictures = [_picture(sources[row["batch"]], row["path"], side) for row in rows[: assistant.depth]]
    return talked(assistant, lambda talk: reranked(talk, way, wanted, pictures))


def _picture(source: str, path: str, side: int) -> bytes | None:
    try:
        data = _lookup(source).bytes_of(path)
    except OSError:  # the source is away: the row keeps its place
        return None
    return small_jpeg(data, side) if data else None


@lru_cache(maxsize=8)
def _lookup(source: str) -> ImageLookup:
    return ImageLookup(source)
