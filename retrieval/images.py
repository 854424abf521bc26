"""Bytes of one image to RGB pixels, safely, or a reason why not.

Whatever a gallery holds (empty files, disguised text, decompression bombs, half a download) costs one row and never the
job. Only the formats of ``ALLOWED_FORMATS`` are ever tried, so no Ghostscript, no PDF and no exotic parser sees the
data; bytes are bounded before parsing and declared pixels before decoding.
"""

from __future__ import annotations

import io
import math
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

ALLOWED_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_BYTES: Final = 64 * 2**20
# Pillow warns above this (a quarter of a GiB as RGB), so within the default bound it has nothing to say.
MAX_PIXELS: Final = 89_478_485

# A JPEG may be decoded at a half, a quarter or an eighth of its size as long as its short side stays this many times
# the side that it will be resized to: what docs/embedding.md measured to leave vectors as they are.
SIDES_TO_SPARE: Final = 2.5

_ORIENTATION_TAG: Final = 0x0112
# EXIF orientation (CIPA DC-008, tag 274) to the operation that turns the stored pixels upright.
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What these operations do to coordinates: mirror them left to right, then top to bottom, then swap them.
_MIRRORS_X: Final = {
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_90,
    Image.Transpose.TRANSVERSE,
}
_MIRRORS_Y: Final = {
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
}
_SWAPS: Final = {
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
}

# (offset, signature, name) of files that end up in image folders, to say which format is not read.
_FOREIGN: Final = (
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"8BPS", "PSD"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC or AVIF"),
)
# How files of the allowed formats begin: such a file that cannot be opened is a broken image, not something
# else.
_KNOWN_STARTS: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"RIFF", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")


class ImageRejected(ValueError):
    """An image that is rejected. It costs the row that it is, and ends no job.

    Args:
        reason: a short fixed word for tables: empty, too-many-bytes, not-an-image, format-not-allowed, too-large,
            bad-dimensions, truncated, corrupt, unsupported-pixels; or one of those that a listing gives.
        detail: the sentence.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageRejected], tuple[str, str]]:
        return type(self), (self.reason, str(self))


class Reduced(NamedTuple):
    """An image that may have been decoded smaller than it is.

    Attributes:
        image: upright RGB pixels, 8 bit.
        width, height: pixels of the whole image, upright.
        box: (left, top, right, bottom) of the picture in ``image``, in its pixels. A reduced image ends in a column and
            a row that its sides may fill in part only, so these are not whole numbers.
    """

    image: Image.Image
    width: int
    height: int
    box: tuple[float, float, float, float]

    @property
    def is_whole(self) -> bool:
        """Whether nothing was reduced: ``image`` is what ``decode`` returns."""
        return self.image.size == (self.width, self.height)


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """Return the upright RGB image (8 bit) in ``data``.

    First frame of animations and of multi-page TIFFs; EXIF orientation applied; transparency laid over white; CMYK and
    palettes converted; 16-bit greyscale scaled, not clipped, to 8 bit. Colour profiles are not applied (the encoders
    were trained without) and no metadata stays on the result.

    Args:
        data: the file's bytes.
        max_pixels: bound on declared width × height, checked before decoding; Pillow's own limit holds too.
        max_bytes: bound on len(data); a caller that reads from a network should bound the reading as well.

    Raises:
        ImageRejected: with a reason; nothing else, whatever the bytes.
    """
    return decode_reduced(data, None, max_pixels=max_pixels, max_bytes=max_bytes).image


def decode_reduced(
    data: bytes, side: int | None, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> Reduced:
    """Return the image in ``data`` as ``decode`` does, but a JPEG much larger than ``side`` at a fraction of its size.

    Decoding at a half, a quarter or an eighth leaves out most of the work, and most of that of the resizing after it.
    The short side stays SIDES_TO_SPARE × ``side`` or more, so that what is resized to ``side`` hardly differs. The
    bound on pixels is on the whole image, reduced or not.

    Args:
        side: pixels of the short side that the image will be resized to (``Preprocess.side``); None never reduces.

    Raises:
        ImageRejected: as ``decode``.
    """
    if not data:
        raise ImageRejected("empty", "the file is empty (0 bytes)")
    if len(data) > max_bytes:
        raise ImageRejected("too-many-bytes", f"the file has {len(data):,} bytes, the limit is {max_bytes:,}")
    image = _open(data)
    width, height = image.size
    _check_size(image.size, max_pixels)
    # Pillow's decoders raise a dozen kinds of exceptions on broken files (OSError, SyntaxError, struct.error,
    # IndexError…): whichever it is, the fault lies in this file and the others go on.
    try:
        drafted = image.draft(None, (math.ceil(SIDES_TO_SPARE * side),) * 2) if side else None
        image.load()
        _check_size(image.size, max_pixels)
        if not drafted:  # what some formats declare is not what they hold
            width, height = image.size
        operation = _orientation(image)
        rgb = _to_rgb(image.transpose(operation) if operation is not None else image)
    except ImageRejected:
        raise
    except Exception as error:
        reason = "truncated" if _is_truncation(error) else "corrupt"
        raise ImageRejected(reason, f"the {image.format} image could not be decoded: {error}") from error
    rgb.info = {}
    box = _turned(drafted[1] if drafted else (0, 0, width, height), image.size, operation)
    return Reduced(rgb, *((height, width) if operation in _SWAPS else (width, height)), box)


def thumbnail(image: Image.Image, side: int = 160) -> bytes:
    """Return a JPEG of an RGB image, shrunk to fit side × side pixels (never enlarged, never below 1 pixel)."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _open(data: bytes) -> Image.Image:
    """Read the header alone; pixels are not decoded yet."""
    try:
        return Image.open(io.BytesIO(data), formats=ALLOWED_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRejected("too-large", f"the image declares too many pixels: {error}") from error
    except Exception as error:
        foreign = _foreign_format(data)
        if foreign:
            raise ImageRejected(
                "format-not-allowed",
                f"{foreign} is not read; convert it to one of {', '.join(ALLOWED_FORMATS)}",
            ) from error
        if data.startswith(_KNOWN_STARTS):
            raise ImageRejected(
                "corrupt", f"the file begins like an image but its header cannot be read: {error}"
            ) from error
        raise ImageRejected(
            "not-an-image", f"the file is none of {', '.join(ALLOWED_FORMATS)} (it begins with {data[:12]!r})"
        ) from error


def _foreign_format(data: bytes) -> str | None:
    for offset, signature, name in _FOREIGN:
        if data.startswith(signature, offset):
            return name
    return "SVG" if b"<svg" in data[:4096].lower() else None


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageRejected("bad-dimensions", f"the image declares {width} × {height} pixels")
    if width * height > max_pixels:
        raise ImageRejected(
            "too-large",
            f"the image declares {width:,} × {height:,} pixels, the limit is {max_pixels:,} pixels in all",
        )


def _is_truncation(error: Exception) -> bool:
    return isinstance(error, EOFError) or any(
        w in str(error).lower() for w in ("truncated", "end of file", "unexpected end")
    )


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """As in ``ImageOps.exif_transpose``, which rewrites the EXIF block besides and fails where reading does not."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # a broken EXIF block takes the orientation away, not the picture
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _turned(
    box: tuple[float, float, float, float], size: tuple[int, int], operation: Image.Transpose | None
) -> tuple[float, float, float, float]:
    """Return where a box in an image of that size lies once the image was transposed."""
    left, top, right, bottom = box
    if operation in _MIRRORS_X:
        left, right = size[0] - right, size[0] - left
    if operation in _MIRRORS_Y:
        top, bottom = size[1] - bottom, size[1] - top
    return (top, left, bottom, right) if operation in _SWAPS else (left, top, right, bottom)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # 65535 / 257 = 255. Pillow's own conversion would clip everything above 255 to white.
        samples = np.asarray(image).astype(np.float32)
        return Image.fromarray(np.rint(samples / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageRejected(
            "unsupported-pixels",
            f"32-bit samples (mode {image.mode}) do not say which value is white; store 8 or 16 bits",
        )
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return image.convert("RGB")
