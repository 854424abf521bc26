"""Every kind of file a gallery may hold: what decodes, to which pixels, and why the rest is refused."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin, PngImagePlugin
from source_files import compressed_zeros, png

from retrieval.images import (
    ALLOWED_FORMATS,
    MAX_PIXELS,
    SIDES_TO_SPARE,
    ImageRejected,
    decode,
    decode_reduced,
    thumbnail,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def picture(width: int = 48, height: int = 32) -> Image.Image:
    """Smooth and without symmetry: red grows to the right, green downwards."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, np.full_like(across, 40)], axis=2).astype(np.uint8))


def reason_of(data: bytes, **limits: int) -> str:
    with pytest.raises(ImageRejected) as caught:
        decode(data, **limits)
    return caught.value.reason


# What decodes


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_allowed_format_gives_rgb_pixels(format: str) -> None:
    assert format in ALLOWED_FORMATS
    image = decode(encoded(picture(), format))
    assert (image.mode, image.size) == ("RGB", (48, 32))
    assert np.abs(np.asarray(image, dtype=int) - np.asarray(picture(), dtype=int)).mean() < 8


def test_pixels_of_lossless_files_are_untouched() -> None:
    assert decode(encoded(picture())).tobytes() == picture().tobytes()


def test_cmyk_jpeg() -> None:
    image = decode(encoded(picture().convert("CMYK"), "JPEG", quality=95))
    assert np.abs(np.asarray(image, dtype=int) - np.asarray(picture(), dtype=int)).mean() < 8


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_greyscale_is_scaled_not_clipped(format: str) -> None:
    samples = np.array([[0, 255, 257, 1000], [32768, 40000, 65000, 65535]], dtype=np.uint16)
    grey = np.asarray(decode(encoded(Image.fromarray(samples), format)))[:, :, 0]
    np.testing.assert_array_equal(grey, np.rint(samples / 257))


def test_sixteen_bit_big_endian_tiff() -> None:
    samples = np.array([[0, 1000, 65535]], dtype=">u2")
    image = Image.frombytes("I;16B", (3, 1), samples.tobytes())
    grey = np.asarray(decode(encoded(image, "TIFF")))[0, :, 0]
    np.testing.assert_array_equal(grey, [0, 4, 255])


def test_sixteen_bit_rgb_png() -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", 65535, 32768, 0) for _ in range(2))
    image = decode(png(1, 2, pixels=zlib.compress(rows), kind=2, depth=16))
    assert image.getpixel((0, 1)) == (255, 128, 0)


def test_bilevel_greyscale_and_plain_palette() -> None:
    for mode in ("1", "L", "P"):
        white = Image.new("RGB", (4, 4), "white").convert(mode)
        assert decode(encoded(white)).getpixel((1, 1)) == WHITE


def test_palette_with_transparency_lies_over_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1])
    decoded = decode(encoded(image, transparency=1))
    assert (decoded.getpixel((0, 0)), decoded.getpixel((1, 0))) == (RED, WHITE)


def test_rgb_with_a_transparent_colour_lies_over_white() -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    decoded = decode(encoded(image, transparency=GREEN))
    assert (decoded.getpixel((0, 0)), decoded.getpixel((1, 0))) == (RED, WHITE)


def test_alpha_lies_over_white() -> None:
    rgba = Image.new("RGBA", (2, 1), (*RED, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    for format in ("PNG", "WEBP", "TIFF"):
        decoded = decode(encoded(rgba, format, **({"lossless": True} if format == "WEBP" else {})))
        assert (decoded.getpixel((0, 0)), decoded.getpixel((1, 0))) == (RED, WHITE)
    half = decode(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
    assert half.getpixel((0, 0)) == (127, 127, 127)


def test_grey_with_alpha_lies_over_white() -> None:
    image = Image.new("LA", (2, 1), (100, 255))
    image.putpixel((1, 0), (100, 0))
    decoded = decode(encoded(image))
    assert (decoded.getpixel((0, 0)), decoded.getpixel((1, 0))) == ((100, 100, 100), WHITE)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_several(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert decode(data).getpixel((4, 4)) == RED


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    for format in ("PNG", "JPEG"):
        assert decode(encoded(Image.new("RGB", size, RED), format)).size == size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_exif_rotated_pair_decodes_alike(format: str, orientation: int) -> None:
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = picture().transpose(inverse[orientation]) if orientation > 1 else picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    image = decode(encoded(stored, format, exif=exif, **options))
    assert image.size == picture().size
    assert image.tobytes() == picture().tobytes()


def test_exif_rotated_jpeg_pair_decodes_alike() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(picture().transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)
    upright = np.asarray(decode(encoded(picture(), "JPEG", quality=95)), dtype=int)
    assert np.abs(np.asarray(decode(turned), dtype=int) - upright).mean() < 1


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",  # directory far outside the block
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0" * 5,  # 65535 entries, cut off
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0\0\0\0\0",  # orientation is text
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",  # orientation 99
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_corrupt_exif_costs_nothing_but_the_orientation(exif: bytes) -> None:
    assert decode(encoded(picture(), "JPEG", exif=exif)).size == (48, 32)


def test_corrupt_colour_profile_is_ignored() -> None:
    for format in ("JPEG", "PNG", "TIFF"):
        assert decode(encoded(picture(), format, icc_profile=b"not a profile")).size == (48, 32)


def test_no_metadata_stays_on_the_image() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "taken at home")
    exif = Image.Exif()
    exif[0x010E] = "GPS somewhere"
    image = decode(encoded(picture(), pnginfo=text, exif=exif, icc_profile=b"profile"))
    assert image.info == {}
    assert b"home" not in encoded(image)
    assert b"somewhere" not in thumbnail(image)


# What is refused, and why


def test_empty_file() -> None:
    assert reason_of(b"") == "empty"


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_file(format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format)
    assert reason_of(data[: int(len(data) * share)]) == "truncated"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_no_cut_raises_anything_but_a_rejection(format: str) -> None:
    data = encoded(picture(), format)
    for length in range(1, len(data), max(1, len(data) // 60)):
        with contextlib.suppress(ImageRejected):
            decode(data[:length])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_no_flipped_byte_raises_anything_but_a_rejection(format: str) -> None:
    data = bytearray(encoded(picture(), format))
    rng = np.random.default_rng(0)
    for _ in range(80):
        place, value = int(rng.integers(min(len(data), 400))), int(rng.integers(256))
        broken = data[:place] + bytes([value]) + data[place + 1 :]
        with contextlib.suppress(ImageRejected):
            assert decode(bytes(broken)).mode == "RGB"


@pytest.mark.parametrize("start", [b"\xff\xd8\xff\xe0 rest is text", b"\x89PNG\r\n\x1a\n", b"II*\0"])
def test_the_first_bytes_of_an_image_alone(start: bytes) -> None:
    assert reason_of(start) in {"corrupt", "truncated"}


def test_text_renamed_jpg() -> None:
    with pytest.raises(ImageRejected, match="begins with b'Not a pictur'") as caught:
        decode(b"Not a picture, whatever the name says")
    assert caught.value.reason == "not-an-image"


def test_fifty_thousand_square_png_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    side = 50_000
    data = png(side, side, pixels=compressed_zeros(side * (1 + side // 8)))
    assert len(data) < 500_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels were decoded"))
    assert reason_of(data) == "too-large"


def test_compressed_zeros_are_what_zlib_would_make_of_them() -> None:
    assert zlib.decompress(compressed_zeros(3 * 2**20 + 7)) == bytes(3 * 2**20 + 7)


def test_huge_declared_size_of_a_tiny_file() -> None:
    assert reason_of(png(2**31 - 1, 2**31 - 1)) == "too-large"
    gif = encoded(Image.new("P", (4, 4)), "GIF")
    assert reason_of(gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:]) == "too-large"


def test_limit_of_pixels_is_inclusive_and_pillows_own_stays_as_it_was() -> None:
    before = Image.MAX_IMAGE_PIXELS
    data = encoded(Image.new("L", (10, 10)))
    assert decode(data, max_pixels=100).size == (10, 10)
    assert reason_of(data, max_pixels=99) == "too-large"
    assert before == Image.MAX_IMAGE_PIXELS
    assert before is not None
    assert before >= MAX_PIXELS


def test_limit_of_bytes() -> None:
    data = encoded(picture())
    assert decode(data, max_bytes=len(data)).size == (48, 32)
    assert reason_of(data, max_bytes=len(data) - 1) == "too-many-bytes"


def test_zero_width() -> None:
    assert reason_of(png(0, 5)) in {"bad-dimensions", "corrupt", "truncated"}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "EPS"),
        (b"%PDF-1.7\n1 0 obj <<>> endobj", "PDF"),
        (b"SIMPLE  =                    T / FITS", "FITS"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF"),
        (encoded(picture(), "PSD") if "PSD" in Image.SAVE else b"8BPS\0\x01", "PSD"),
        (encoded(picture(), "ICO"), "ICO"),
        (encoded(picture(), "JPEG2000"), "JPEG 2000"),
    ],
)
def test_other_formats_are_refused_by_name(data: bytes, name: str) -> None:
    with pytest.raises(ImageRejected, match=name) as caught:
        decode(data)
    assert caught.value.reason == "format-not-allowed"


@pytest.mark.parametrize("format", ["PPM", "EPS", "TGA", "PCX", "ICO", "JPEG2000", "DDS"])
def test_formats_that_pillow_would_read_are_not_tried(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(), format)
    assert Image.open(io.BytesIO(data)).format not in ALLOWED_FORMATS
    _, accept = Image.OPEN[format]
    monkeypatch.setitem(Image.OPEN, format, (lambda *_: pytest.fail(f"{format} was tried"), accept))
    assert reason_of(data) in {"format-not-allowed", "not-an-image"}


def test_samples_without_a_scale_are_refused() -> None:
    for samples in (np.ones((2, 2), dtype=np.float32), np.ones((2, 2), dtype=np.int32)):
        assert reason_of(encoded(Image.fromarray(samples), "TIFF")) == "unsupported-pixels"


def test_a_rejection_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ImageRejected("empty", "the file is empty")))
    assert (error.reason, str(error)) == ("empty", "the file is empty")
    assert isinstance(error, ValueError)


# Decoding at a fraction of the size


def photo(width: int, height: int, orientation: int = 1, **options: object) -> bytes:
    """A JPEG of `picture` whose EXIF block says how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(width, height), "JPEG", quality=95, exif=exif, **options)


def seen_through_box(reduced: Image.Image, box: tuple[float, float, float, float]) -> np.ndarray:
    return np.asarray(reduced.resize((20, 20), Image.Resampling.BILINEAR, box), dtype=int)


@pytest.mark.parametrize(("width", "height", "side", "shrinks"), [
    (480, 320, 16, 8), (480, 320, 17, 4), (480, 320, 64, 2), (480, 320, 65, 1), (320, 480, 64, 2), (2000, 16, 3, 2),
    (480, 320, 1000, 1), (1, 1, 1, 1), (487, 323, 10, 8), (321, 481, 40, 2),
])  # fmt: skip
def test_a_jpeg_is_reduced_as_far_as_its_short_side_allows(width: int, height: int, side: int, shrinks: int) -> None:
    image, whole_width, whole_height, box = decode_reduced(photo(width, height), side)
    assert (whole_width, whole_height) == (width, height)
    assert image.size == (-(-width // shrinks), -(-height // shrinks))
    assert box == (0, 0, width / shrinks, height / shrinks)
    assert image.mode == "RGB"
    assert image.info == {}
    assert shrinks == 1 or min(image.size) >= SIDES_TO_SPARE * side


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_image_is_upright_and_its_box_is_where_the_picture_lies(orientation: int) -> None:
    data = photo(407, 310, orientation)
    whole = decode(data)
    reduced = decode_reduced(data, 10)
    assert (reduced.width, reduced.height) == whole.size
    assert not reduced.is_whole
    right, bottom = reduced.box[2] - reduced.box[0], reduced.box[3] - reduced.box[1]
    assert (right, bottom) == (whole.width / 8, whole.height / 8)
    expected = seen_through_box(whole, (0, 0, *whole.size))
    assert np.abs(seen_through_box(reduced.image, reduced.box) - expected).max() <= 3


@pytest.mark.parametrize("format", [format for format in ALLOWED_FORMATS if format != "JPEG"])
def test_other_formats_are_never_reduced(format: str) -> None:
    data = encoded(picture(400, 300), format)
    reduced = decode_reduced(data, 4)
    assert reduced.is_whole
    assert reduced.box == (0, 0, 400, 300)
    assert reduced.image.tobytes() == decode(data).tobytes()


def test_without_a_side_nothing_is_reduced() -> None:
    data = photo(400, 300, 6)
    reduced = decode_reduced(data, None)
    assert (reduced.width, reduced.height) == reduced.image.size == (300, 400)
    assert reduced.image.tobytes() == decode(data).tobytes()


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_of_jpeg_are_reduced_too(mode: str) -> None:
    data = encoded(picture(400, 300).convert(mode), "JPEG", quality=95)
    reduced = decode_reduced(data, 12)
    assert reduced.image.size == (50, 38)
    expected = seen_through_box(decode(data), (0, 0, 400, 300))
    assert np.abs(seen_through_box(reduced.image, reduced.box) - expected).max() <= 3


def test_progressive_jpegs_and_those_of_several_pictures_are_reduced() -> None:
    several = encoded(picture(400, 300), "MPO", save_all=True, append_images=[Image.new("RGB", (400, 300), RED)])
    for data in (photo(400, 300, progressive=True), several):
        image = decode_reduced(data, 12).image
        assert image.size == (50, 38)
        assert np.abs(np.asarray(image, dtype=int)[0, 0] - (0, 0, 40)).max() < 12  # of the first picture


def test_the_bound_on_pixels_is_on_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    data = photo(400, 300)
    assert decode_reduced(data, 4, max_pixels=120_000).image.size == (50, 38)
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", lambda *_: pytest.fail("decoding was begun"))
    with pytest.raises(ImageRejected, match="400 × 300"):
        decode_reduced(data, 4, max_pixels=119_999)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_truncated_jpeg_is_refused_reduced_as_well(share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    for side in (8, None):
        with pytest.raises(ImageRejected) as caught:
            decode_reduced(data[: int(len(data) * share)], side)
        assert caught.value.reason == "truncated"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_no_broken_jpeg_raises_anything_but_a_rejection_when_reduced(options: dict) -> None:
    data = photo(150, 100, 6, **options)
    rng = np.random.default_rng(0)
    broken = [data[:length] for length in range(1, len(data), max(1, len(data) // 60))]
    for _ in range(400):
        place, value = int(rng.integers(len(data))), int(rng.integers(256))
        broken.append(data[:place] + bytes([value]) + data[place + 1 :])
    for one in broken:
        with contextlib.suppress(ImageRejected):
            reduced = decode_reduced(one, 4)
            assert reduced.image.mode == "RGB"
            left, top, right, bottom = reduced.box
            assert 0 <= left < right <= reduced.image.width
            assert 0 <= top < bottom <= reduced.image.height


# Thumbnails


def test_thumbnail_fits_and_is_never_enlarged() -> None:
    for size, expected in (((480, 320), (96, 64)), ((40, 20), (40, 20)), ((1, 20_000), (1, 96))):
        small = decode(thumbnail(Image.new("RGB", size, RED), side=96))
        assert small.size == expected


def test_thumbnail_leaves_the_image_as_it_is() -> None:
    image = picture()
    thumbnail(image, side=8)
    assert image.size == (48, 32)
