"""Small picture files of many kinds, good ones and broken ones."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)


def saved(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_declared_size(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def good_pictures() -> dict[str, bytes]:
    colour = Image.fromarray(PIXELS)
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 256)
    return {
        "top.jpg": saved("JPEG", quality=95),
        "my photos/with spaces.png": saved("PNG"),
        "my photos/new\nline.gif": saved("GIF", save_all=True, append_images=[colour.rotate(90)]),
        "my photos/😀.webp": saved("WEBP"),
        "my photos/copy of top.jpg": saved("JPEG", quality=95),
        "kinds/grey.jpg": saved("JPEG", colour.convert("L")),
        "kinds/print.jpg": saved("JPEG", colour.convert("CMYK")),
        "kinds/palette.png": saved("PNG", colour.quantize(16)),
        "kinds/glass.png": saved("PNG", colour.convert("RGBA")),
        "kinds/deep.png": saved("PNG", deep),
        "kinds/scan.tiff": saved("TIFF"),
        "kinds/old.bmp": saved("BMP"),
        "kinds/turned.jpg": saved("JPEG", exif=turned),
        "kinds/long.png": saved("PNG", colour.resize((3000, 1))),
    }


BROKEN = {
    "broken/empty.jpg": (b"", "empty"),
    "broken/half.jpg": (saved("JPEG")[:2000], "truncated"),
    "broken/half.png": (saved("PNG")[:2000], "truncated"),
    "broken/cut.gif": (saved("GIF")[:2000], "truncated"),
    "broken/text.jpg": (b"I am a text, not a picture", "not-an-image"),
    "broken/drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "format-not-allowed"),
    "broken/paper.pdf": (b"%PDF-1.7\n1 0 obj", "format-not-allowed"),
    "broken/bomb.png": (png_of_declared_size(50_000), "too-large"),
    "broken/noise.jpg": (b"\xff\xd8\xff\xe0" + np.random.default_rng(1).bytes(500), "corrupt"),
    "broken/gone.jpg": (None, "unreadable"),
}
"""Ten kinds of them; None is a link to nothing. They sort together, so that the whole first batch is of them."""


def write_pictures(folder: Path) -> None:
    """Write all of them, good and broken."""
    for name, data in (good_pictures() | {name: data for name, (data, _) in BROKEN.items()}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            (folder / name).symlink_to("nothing")
        else:
            (folder / name).write_bytes(data)
