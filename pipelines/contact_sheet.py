"""The contact sheet: for some queries, what was imagined and what text alone and the fused query found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pyarrow as pa
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from pipelines.ranking import best_rows
from retrieval.artifacts import Gallery, QuerySet, TrainedAggregator
from retrieval.artifacts.queryset import text_vectors, vision_vectors
from retrieval.fusion import fused_query
from retrieval.images import ImageRejected, decode
from retrieval.query import pool
from retrieval.sources.lookup import ImageLookup

SIDE, GAP, MARGIN = 72, 4, 16
RIGHT, WRONG, NEUTRAL = (46, 160, 67), (218, 54, 51), (150, 150, 150)


@dataclass(frozen=True)
class Strip:
    """One row of pictures with its caption; ``right`` says of each picture whether it is of the query's category, if
    known.
    """

    caption: str
    pictures: Sequence[Image.Image]
    right: Sequence[bool | None]


@dataclass(frozen=True)
class Section:
    """One query's strips under its text."""

    title: str
    strips: Sequence[Strip]


def contact_sheet(
    gallery: Gallery,
    queries: QuerySet,
    weight: float,
    *,
    aggregator: TrainedAggregator | None = None,
    rows: int = 8,
    k: int = 12,
) -> bytes:
    """Draw ``rows`` queries, spread over the kinds and taken in the order of their ids (which are hashes); return PNG
    bytes.
    """
    table = _spread(queries.table(), rows)
    text, visual = text_vectors(table), pool(*vision_vectors(table), aggregator.network() if aggregator else None)
    joint = np.concatenate([fused_query(text, visual, value) for value in (0.0, weight)])
    best = best_rows(gallery, joint, k)
    pictures = gallery_pictures(gallery.manifest.sources, [row for found in best for row in found])
    sections = []
    for i, query in enumerate(table.to_pylist()):
        imagined = [Image.open(BytesIO(data)) for data in query["thumbnails"]]
        strips = [Strip("imagined", imagined, [None] * len(imagined))]
        for caption, found in (("by text alone", best[i]), (f"fused, λ = {weight:.2f}", best[len(table) + i])):
            right = [row["label"] == query["label"] if query["label"] else None for row in found]
            strips.append(Strip(caption, [pictures[row["batch"], row["path"]] for row in found], right))
        sections.append(Section(f"{query['text']}   [{query['kind']}]", strips))
    return draw(sections)


def _spread(queries: pa.Table, count: int) -> pa.Table:
    kinds = queries["kind"].to_numpy()
    of_kind = [np.flatnonzero(kinds == kind) for kind in dict.fromkeys(kinds)]
    chosen = [rows[i] for i in range(count) for rows in of_kind if i < len(rows)][:count]
    return queries.take(pa.array(chosen))


def gallery_pictures(sources: Mapping[str, str], rows: Iterable[Mapping]) -> dict[tuple[str, str], Image.Image]:
    """Read images of gallery rows from the sources of their batches; one that is gone is a grey square.

    Returns:
        Pictures by batch and path.
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


def draw(sections: Sequence[Section]) -> bytes:
    """Draw sections of strips below one another, framed green where right and red where wrong; return PNG bytes."""
    # Pillow's own font has no Greek letters; this one comes with matplotlib.
    font = findfont("DejaVu Sans")
    heading, small = ImageFont.truetype(font, 14), ImageFont.truetype(font, 10)
    longest = max((len(strip.pictures) for section in sections for strip in section.strips), default=1)
    label_width = 96
    width = 2 * MARGIN + label_width + longest * (SIDE + GAP)
    height = MARGIN + sum(34 + len(section.strips) * (SIDE + 2 * GAP) for section in sections)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    y = MARGIN
    for section in sections:
        pen.text((MARGIN, y), section.title, fill="black", font=heading)
        y += 24
        for strip in section.strips:
            pen.text((MARGIN, y + SIDE / 2 - 6), strip.caption, fill=(90, 90, 90), font=small)
            for i, (picture, right) in enumerate(zip(strip.pictures, strip.right, strict=True)):
                x = MARGIN + label_width + i * (SIDE + GAP)
                colour = NEUTRAL if right is None else RIGHT if right else WRONG
                pen.rectangle((x, y, x + SIDE, y + SIDE), fill=colour)
                fitted = picture.convert("RGB").resize((SIDE - 5, SIDE - 5), Image.Resampling.LANCZOS)
                sheet.paste(fitted, (x + 3, y + 3))
            y += SIDE + 2 * GAP
        y += 10
    out = BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()
