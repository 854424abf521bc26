"""What a benchmark gives: queries, each with the paths of the images that are relevant."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from retrieval.folder import Folder
from retrieval.prompts import Kind


@dataclass(frozen=True)
class BenchmarkQuery:
    """One query: a text, a picture, or a picture and what should be different of it.

    Attributes:
        id: as the benchmark numbers it.
        relevant: paths of the images that it should find, as the benchmark writes them.
        text: its words, if it has any.
        picture: path of its picture below the benchmark's folder, if it has one.
        box: (left, top, right, bottom) of the part of the picture that is meant, in pixels.
        junk: paths of images that are left out of the ranking.
        excluded: the same of images that the protocol has removed from the gallery; nothing is missing without them.
        kind: of the text.
    """

    id: str
    relevant: tuple[str, ...]
    text: str | None = None
    picture: str | None = None
    box: tuple[float, float, float, float] | None = None
    junk: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    kind: Kind = "description"


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is read.

    Attributes:
        name: as the command line has it.
        parts: its splits or protocols, the default first.
        measures: which columns of an evaluation its authors report.
        read: yields the queries of one part from the benchmark's folder.
        any_part: other parts than those named are read, too.
    """

    name: str
    parts: tuple[str, ...]
    measures: tuple[str, ...]
    read: Callable[[Folder, str], Iterable[BenchmarkQuery]]
    any_part: bool = False
