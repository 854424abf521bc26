"""Several pictures on one, each under its number."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

TILE, STRIP = 160, 24
"""Pixels of a tile's side, and of the height of the strip with the number above it."""


def columns(count: int) -> int:
    """Return how many tiles stand in a row: as many as there are rows, or one more."""
    return math.ceil(math.sqrt(count))


def numbered(pictures: Sequence[bytes]) -> Image.Image:
    """Draw small JPEG files as tiles, row by row, numbered from 1."""
    across = columns(len(pictures))
    down = math.ceil(len(pictures) / across)
    sheet = Image.new("RGB", (across * TILE, down * (TILE + STRIP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(STRIP - 6)
    for place, data in enumerate(pictures):
        left, top = place % across * TILE, place // across * (TILE + STRIP)
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as opened:
            picture = opened.convert("RGB")
        picture.thumbnail((TILE - 4, TILE - 4))
        draw.text((left + 6, top + 1), str(place + 1), fill="black", font=font)
        sheet.paste(picture, (left + (TILE - picture.width) // 2, top + STRIP + (TILE - picture.height) // 2))
    return sheet
