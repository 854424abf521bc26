"""A benchmark to a file of queries: its paths become ids of a gallery's rows, and what is not there is told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.artifacts import Gallery
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.images import MAX_BYTES, ImageRejected, decode
from retrieval.published.matching import Matched, match
from retrieval.published.query import Benchmark, BenchmarkQuery
from retrieval.published.registry import find


@dataclass(frozen=True)
class ReadBenchmark:
    """What was read of a benchmark.

    Attributes:
        benchmark: which.
        part: split or protocol.
        file: location of the file of queries.
        queries: how many it has.
        pictures: how many of them have a picture.
        relevant: how many different relevant images they name.
        missing: paths, relevant or junk, that no row of the gallery fits, sorted; they stand in the file as they are.
        ambiguous: paths that several rows fit, or that end like others; they stand in the file as they are.
        without_relevant: ids of queries for which the benchmark names no relevant image.
        without_picture: ids of queries whose picture is missing or cannot be read, and why; they are not in the file.
    """

    benchmark: Benchmark
    part: str
    file: str
    queries: int
    pictures: int
    relevant: int
    missing: list[str]
    ambiguous: list[str]
    without_relevant: list[str]
    without_picture: dict[str, str]


def read_benchmark(
    name: str, folder: str | Path, gallery: str | Path | Gallery, target: str | Path, *, part: str | None = None
) -> ReadBenchmark:
    """Write the queries of a benchmark as JSON lines, with the ids of a gallery's rows.

    A query of words alone is a row of a vocabulary: ``text``, ``kind``, ``relevant``, ``junk``. One with a picture has,
    in place of text and kind, ``id`` and ``evidence``: a list of ``{"picture": location, "box": fractions}`` and, with
    words, ``{"text": …}``.

    Args:
        name: of the benchmark (``retrieval.published.registry``).
        folder: the benchmark, as its authors lay it out: folder or URI.
        gallery: made from its images.
        target: the file, ``….jsonl``.
        part: split or protocol; by default the first of the benchmark's.

    Returns:
        What was read, and what was not found.

    Raises:
        UserError: the benchmark or part is unknown (``unknown``), its files are missing (``missing``), not in its
            format (``damaged``) or without relevant images (``no-truth``), no relevant image is in the gallery
            (``nothing-found``), or the target does not end in ``.jsonl`` (``wrong-name``).
    """
    benchmark, part = find(name, part)
    place = Folder(target)
    if not place.name.endswith(".jsonl"):
        raise UserError(f"the file of queries must end in .jsonl, not {target}", code="wrong-name", field="target")
    gallery = gallery if isinstance(gallery, Gallery) else Gallery.open(gallery)
    source = Folder(folder)
    queries = list(benchmark.read(source, part))
    relevant = {path for query in queries for path in query.relevant}
    named = relevant | {path for query in queries for path in query.junk}
    matched = match(gallery, named | {path for query in queries for path in query.excluded})
    if relevant and not relevant & matched.ids.keys():
        raise UserError(
            f"none of the {len(relevant):,} relevant images of {name}, {part}, is in {gallery.uri}:"
            f" {', '.join(sorted(relevant)[:3])} …; its rows have other paths, or are other images",
            code="nothing-found",
            field="gallery",
        )
    rows, refused = _rows(queries, source, matched)
    place.parent.write_bytes(place.name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return ReadBenchmark(
        benchmark=benchmark,
        part=part,
        file=place.uri,
        queries=len(rows),
        pictures=sum("evidence" in row for row in rows),
        relevant=len(relevant),
        missing=sorted(named - matched.ids.keys() - set(matched.ambiguous)),
        ambiguous=[path for path in matched.ambiguous if path in named],
        without_relevant=[query.id for query in queries if not query.relevant],
        without_picture=refused,
    )


def _rows(
    queries: Iterable[BenchmarkQuery], source: Folder, matched: Matched
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the rows of the file, and of the queries that have none, why."""
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for query in queries:
        truth = {"relevant": _ids(query.relevant, matched), "junk": _junk(query, matched)}
        if query.picture is None:
            rows.append({"text": query.text, "kind": query.kind} | truth)
            continue
        try:
            evidence = _evidence(query, source)
        except ImageRejected as error:
            refused[query.id] = str(error)
            continue
        rows.append({"id": query.id, "evidence": evidence} | truth)
    return rows, refused


def _ids(paths: Iterable[str], matched: Matched) -> list[str]:
    return list(dict.fromkeys(matched.ids.get(path, path) for path in paths))


def _junk(query: BenchmarkQuery, matched: Matched) -> list[str]:
    excluded = [path for path in query.excluded if path in matched.ids]
    relevant = set(_ids(query.relevant, matched))
    return [id for id in _ids([*query.junk, *excluded], matched) if id not in relevant]


def _evidence(query: BenchmarkQuery, source: Folder) -> list[dict[str, Any]]:
    assert query.picture is not None
    if not source.exists(query.picture):
        raise ImageRejected("missing", f"{source.uri} lacks {query.picture}")
    with source.open_input(query.picture) as stream:
        width, height = decode(stream.read(MAX_BYTES + 1)).size
    picture: dict[str, Any] = {"picture": (source / query.picture).uri}
    if query.box:
        picture["box"] = _fractions(query.box, width, height)
    return [picture, *([{"text": query.text}] if query.text else [])]


def _fractions(box: Sequence[float], width: int, height: int) -> list[float]:
    """Return a box in fractions of the picture, cut to it.

    Raises:
        ImageRejected: nothing of the picture is left in it.
    """
    sides = (width, height, width, height)
    left, top, right, bottom = (min(max(value / side, 0.0), 1.0) for value, side in zip(box, sides, strict=True))
    if left >= right or top >= bottom:
        raise ImageRejected("bad-box", f"the box {tuple(box)} is not within {width} × {height} pixels")
    return [left, top, right, bottom]
