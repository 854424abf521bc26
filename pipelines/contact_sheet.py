"""The contact sheet: for some queries, what was imagined and what text alone and the fused query found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from pipelines.evidence_file import EvidenceQuery
from pipelines.evidence_vectors import Known, read_piece
from pipelines.pooling import pooled
from pipelines.ranking import best_rows
from pipelines.truth import truths_of
from retrieval.artifacts import Gallery, QuerySet, TrainedAggregator
from retrieval.artifacts.queryset import text_vectors, vision_vectors
from retrieval.evidence import compiled
from retrieval.fusion import fused_query
from retrieval.images import ImageRejected, decode
from retrieval.sources.lookup import ImageLookup

SIDE, GAP, MARGIN = 72, 4, 16
CAPTION_WIDTH, TITLE_HEIGHT, SECTION_GAP = 96, 24, 10
IMAGINED = 16
"""Imagined images of a query that are drawn at most."""
RIGHT, WRONG, NEUTRAL = (46, 160, 67), (218, 54, 51), (150, 150, 150)


@dataclass(frozen=True)
class Strip:
    """One row of pictures.

    Attributes:
        caption: what stands before it.
        pictures: from left to right.
        right: of each picture, whether it is what the query should find; None if that is not known.
    """

    caption: str
    pictures: Sequence[Image.Image]
    right: Sequence[bool | None]


@dataclass(frozen=True)
class Section:
    """The strips of one query under its text."""

    title: str
    strips: Sequence[Strip]


def contact_sheet(
    gallery: Gallery,
    query_set: QuerySet,
    weight: float,
    *,
    aggregator: TrainedAggregator | None = None,
    rows: int = 8,
    k: int = 12,
) -> bytes:
    """Draw what was imagined for some queries, and what the gallery answers by text alone and fused.

    Args:
        gallery: the gallery to search, exactly, by tasks of the open session.
        query_set: of the same models. Queries are spread over the kinds, in the order of their ids, which are hashes.
        weight: λ of the fused ranking.
        aggregator: pools the images; by default their mean.
        rows: how many queries are drawn.
        k: how many results of each ranking are drawn.

    Returns:
        PNG bytes.
    """
    kinds = query_set.table(["id", "kind"])
    queries = query_set.chosen(kinds["id"].take(pa.array(_spread(kinds["kind"].to_pylist(), rows))).to_pylist())
    titles = [f"{query['text']}   [{query['kind']}]" for query in queries.select(["text", "kind"]).to_pylist()]
    return draw(sections_of(gallery, queries, titles, weight, aggregator=aggregator, k=k))


def sections_of(
    gallery: Gallery,
    queries: pa.Table,
    titles: Sequence[str],
    weight: float,
    *,
    aggregator: TrainedAggregator | None = None,
    k: int,
) -> list[Section]:
    """Return a section for each query of a table with all columns of a query set; the others as ``contact_sheet``."""
    text_QD1 = text_vectors(queries)
    visual_QD2 = pooled(*vision_vectors(queries), aggregator)
    joint = np.concatenate([fused_query(text_QD1, visual_QD2, value) for value in (0.0, weight)])
    best = best_rows(gallery, joint, k)
    pictures = gallery_pictures(gallery.manifest.sources, [row for found in best for row in found])
    sections = []
    for i, (title, thumbnails, truth) in enumerate(
        zip(titles, queries["thumbnails"].to_pylist(), truths_of(queries), strict=True)
    ):
        imagined = [Image.open(BytesIO(data)) for data in thumbnails if data][:IMAGINED]
        strips = [Strip("imagined", imagined, [None] * len(imagined))]
        for caption, found in (("by text alone", best[i]), (f"fused, λ = {weight:.2f}", best[len(titles) + i])):
            right = [truth.judge(row["id"], row["label"]) for row in found]
            strips.append(Strip(caption, [pictures[row["batch"], row["path"]] for row in found], right))
        sections.append(Section(title, strips))
    return sections


def evidence_sheet(
    gallery: Gallery,
    queries: Sequence[EvidenceQuery],
    known: Known,
    weight: float,
    *,
    aggregator: TrainedAggregator | None = None,
    rows: int = 8,
    k: int = 12,
) -> bytes:
    """Draw the pictures that some queries were given, and what the gallery answers by the text half alone and fused.

    Args:
        gallery: as for ``contact_sheet``, as the last three.
        queries: of one file, in its order.
        known: their vectors.
        weight: λ of the fused ranking.
        aggregator: pools the images of texts; by default their mean.
        rows: how many queries are drawn.
        k: how many results of each ranking are drawn.

    Returns:
        PNG bytes.
    """
    queries = [queries[place] for place in _spread([query.kind for query in queries], rows)]
    network = aggregator.network() if aggregator else None
    encoded = [known.encoded(query, network) for query in queries]
    joint = [compiled(each, value)[0] for value in (0.0, weight) for each in encoded]
    best = best_rows(gallery, np.concatenate(joint), k)
    pictures = gallery_pictures(gallery.manifest.sources, [row for found in best for row in found])
    sections = []
    for i, query in enumerate(queries):
        given = [read_piece(piece, query.where) for piece in query.pieces if piece.picture is not None]
        strips = [Strip("given", given, [None] * len(given))] if given else []
        for caption, found in (("by text alone", best[i]), (f"fused, λ = {weight:.2f}", best[len(queries) + i])):
            right = [query.truth.judge(row["id"], None) for row in found]
            strips.append(Strip(caption, [pictures[row["batch"], row["path"]] for row in found], right))
        sections.append(Section(f"{query.text}   [{query.kind}]", strips))
    return draw(sections)


def _spread(kinds: Sequence[str], count: int) -> list[int]:
    """Return the places of so many queries, of each kind in turn."""
    of_kind = [np.flatnonzero(np.array(kinds) == kind) for kind in dict.fromkeys(kinds)]
    return [int(rows[i]) for i in range(count) for rows in of_kind if i < len(rows)][:count]


def gallery_pictures(
    sources: Mapping[str, str], rows: Iterable[Mapping[str, Any]]
) -> dict[tuple[str, str], Image.Image]:
    """Read the images of gallery rows.

    Args:
        sources: what the paths of each batch are relative to (``GalleryManifest.sources``).
        rows: with ``batch`` and ``path``.

    Returns:
        The pictures by batch and path; one that is gone or damaged is a grey square.
    """
    wanted: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        wanted[row["batch"]].add(row["path"])
    pictures: dict[tuple[str, str], Image.Image] = {}
    for batch, paths in wanted.items():
        data = ImageLookup(sources[batch], links_out=True).read(paths)
        pictures |= {(batch, path): _picture(data.get(path)) for path in paths}
    return pictures


def _picture(data: bytes | None) -> Image.Image:
    try:
        return decode(data or b"")
    except ImageRejected:
        return Image.new("RGB", (SIDE, SIDE), NEUTRAL)


def draw(sections: Sequence[Section], *, quality: int | None = None) -> bytes:
    """Draw sections below one another, pictures framed green where right and red where wrong; return PNG bytes, or a
    JPEG of the quality that is given.
    """
    # Pillow's own font has no Greek letters; this one comes with matplotlib.
    font = findfont("DejaVu Sans")
    heading, small = ImageFont.truetype(font, 14), ImageFont.truetype(font, 10)
    longest = max((len(strip.pictures) for section in sections for strip in section.strips), default=1)
    width = 2 * MARGIN + CAPTION_WIDTH + longest * (SIDE + GAP)
    height = MARGIN + sum(TITLE_HEIGHT + SECTION_GAP + len(section.strips) * (SIDE + 2 * GAP) for section in sections)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    y = MARGIN
    for section in sections:
        pen.text((MARGIN, y), section.title, fill="black", font=heading)
        y += TITLE_HEIGHT
        for strip in section.strips:
            pen.text((MARGIN, y + SIDE / 2 - 6), strip.caption, fill=(90, 90, 90), font=small)
            for i, (picture, right) in enumerate(zip(strip.pictures, strip.right, strict=True)):
                x = MARGIN + CAPTION_WIDTH + i * (SIDE + GAP)
                colour = NEUTRAL if right is None else RIGHT if right else WRONG
                pen.rectangle((x, y, x + SIDE, y + SIDE), fill=colour)
                fitted = picture.convert("RGB").resize((SIDE - 5, SIDE - 5), Image.Resampling.LANCZOS)
                sheet.paste(fitted, (x + 3, y + 3))
            y += SIDE + 2 * GAP
        y += SECTION_GAP
    out = BytesIO()
    if quality is None:
        sheet.save(out, "PNG", optimize=True)
    else:
        sheet.save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()
