"""The demo world, rendered: any number of images of 720 categories, at any size, deterministic by seed.

There are two styles. A ``photo`` is what galleries hold and encoders learn from: the object at any pose, scale and
light, before a textured background, among distractors, partly covered, blurred and noisy. A ``stock`` picture is what
the generator learns from: the object alone, centred, before a soft gradient. So generated and gallery images differ as
they do in life.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from demo.grammar import Category, categories
from retrieval.errors import UserError

Style = Literal["photo", "stock"]
Split = Literal["models", "fitting", "unseen"]

SPLIT_SIZES: dict[Split, int] = {"models": 480, "fitting": 96, "unseen": 144}
_SPLIT_SEED = 7
_SUPERSAMPLING = 2

_HUES: dict[str, tuple[float, float, float]] = {  # hue in [0, 1), saturation, value
    "red": (0.995, 0.88, 0.86),
    "orange": (0.075, 0.92, 0.97),
    "yellow": (0.15, 0.85, 0.98),
    "green": (0.34, 0.75, 0.68),
    "turquoise": (0.485, 0.72, 0.82),
    "blue": (0.61, 0.80, 0.86),
    "purple": (0.76, 0.66, 0.74),
    "pink": (0.90, 0.45, 0.98),
    "grey": (0.0, 0.02, 0.60),
}


def split(name: Split) -> list[Category]:
    """Return the categories of one split; the three are disjoint and together all 720.

    ``models``: encoders and generator learn from these. ``fitting``: the aggregator and λ are fitted on these.
    ``unseen``: only ever evaluated. The split is a random partition of compositions: each colour, pattern and shape
    occurs in ``models``, never together as in the other two.
    """
    everything = categories()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(everything))
    start = 0
    for key, size in SPLIT_SIZES.items():
        if key == name:
            return [everything[i] for i in sorted(order[start : start + size])]
        start += size
    raise UserError(
        f"there is no split {name!r}; the splits are {', '.join(SPLIT_SIZES)}", code="unknown-split", field="name"
    )


def render(category: Category, seed: int, *, style: Style = "photo", size: int = 64) -> Image.Image:
    """Render image number ``seed`` of ``category`` as an RGB image of ``size`` × ``size`` pixels."""
    identity = categories_by_name()[category.name]
    rng = np.random.default_rng([identity, seed, 0 if style == "photo" else 1])
    return _photo(category, rng, size) if style == "photo" else _stock(category, rng, size)


_BY_NAME: dict[str, int] = {}


def categories_by_name() -> dict[str, int]:
    """Return each category's number in ``categories()``, by name."""
    if not _BY_NAME:
        _BY_NAME.update({category.name: i for i, category in enumerate(categories())})
    return _BY_NAME


def _stock(category: Category, rng: np.random.Generator, size: int) -> Image.Image:
    canvas = _gradient(rng, size, low=0.72, high=0.97)
    _draw_object(
        canvas,
        category,
        rng,
        centre=rng.uniform(-0.04, 0.04, 2),
        radius=rng.uniform(0.74, 0.84),
        angle=rng.uniform(-0.12, 0.12),
        squeeze=1.0,
        colour_jitter=0.4,
        shade=rng.uniform(0.0, 0.12),
    )
    return _to_image(canvas, size)


def _photo(category: Category, rng: np.random.Generator, size: int) -> Image.Image:
    canvas = _textured(rng, size)
    for _ in range(rng.integers(0, 4)):
        _draw_distractor(canvas, rng)
    radius = rng.uniform(0.42, 0.78)
    centre = rng.uniform(-1, 1, 2) * (0.92 - radius)
    _draw_object(
        canvas,
        category,
        rng,
        centre=centre,
        radius=radius,
        angle=rng.uniform(-0.5, 0.5),
        squeeze=rng.uniform(0.8, 1.0),
        colour_jitter=1.0,
        shade=rng.uniform(0.0, 0.35),
    )
    if rng.random() < 0.35:
        direction = rng.uniform(0, 2 * np.pi)
        offset = radius * rng.uniform(0.7, 1.0) * np.array([np.cos(direction), np.sin(direction)])
        _draw_distractor(canvas, rng, centre=centre + offset, radius=rng.uniform(0.12, 0.25))
    light = rng.uniform(0.7, 1.2) * (1 + rng.uniform(-0.08, 0.08, 3))
    canvas = np.clip(canvas * light.astype(np.float32), 0, 1)
    image = _to_image(canvas, size)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.1) * size / 64))
    noise = rng.normal(0, rng.uniform(2, 14), (size, size, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def _to_image(canvas_HWC: np.ndarray, size: int) -> Image.Image:
    image = Image.fromarray((np.clip(canvas_HWC, 0, 1) * 255).astype(np.uint8))
    return image.resize((size, size), Image.Resampling.BOX)


def _gradient(rng: np.random.Generator, size: int, *, low: float, high: float) -> np.ndarray:
    y, x = _grid(size * _SUPERSAMPLING)
    a, b = _random_colour(rng, low, high), _random_colour(rng, low, high)
    angle = rng.uniform(0, 2 * np.pi)
    t = np.clip(0.5 + 0.4 * (np.cos(angle) * x + np.sin(angle) * y), 0, 1)[..., None]
    return (a * (1 - t) + b * t).astype(np.float32)


def _textured(rng: np.random.Generator, size: int) -> np.ndarray:
    canvas = _gradient(rng, size, low=0.1, high=0.9)
    side = size * _SUPERSAMPLING
    for cells in (4, 9, 20):
        coarse = rng.uniform(0, 1, (cells, cells)).astype(np.float32)
        smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR))
        canvas += (smooth[..., None] - 0.5) * rng.uniform(0.0, 0.3) * rng.uniform(0.3, 1, 3).astype(np.float32)
    return np.clip(canvas, 0, 1)


def _random_colour(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    grey = rng.uniform(low, high)
    return np.clip(grey + rng.uniform(-0.18, 0.18, 3), 0, 1).astype(np.float32)


def _draw_distractor(
    canvas: np.ndarray, rng: np.random.Generator, centre: np.ndarray | None = None, radius: float | None = None
) -> None:
    side = canvas.shape[0]
    centre = rng.uniform(-0.95, 0.95, 2) if centre is None else centre
    radius = rng.uniform(0.08, 0.28) if radius is None else radius
    corners = int(rng.integers(3, 9))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.6, 1, (corners, 1))
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).polygon([tuple(p) for p in (points + 1) * side / 2], fill=255)
    colour = rng.uniform(0.05, 0.95, 3).astype(np.float32)
    covered = np.asarray(mask) > 0
    canvas[covered] = 0.85 * colour + 0.15 * canvas[covered]


def _draw_object(
    canvas: np.ndarray,
    category: Category,
    rng: np.random.Generator,
    *,
    centre: np.ndarray,
    radius: float,
    angle: float,
    squeeze: float,
    colour_jitter: float,
    shade: float,
) -> None:
    """Draw the object into ``canvas`` (H, W, 3), in place. Lengths are in half canvas widths, ``angle`` in radians."""
    side = canvas.shape[0]
    cos, sin = np.cos(angle), np.sin(angle)
    to_canvas = radius * np.array([[cos, -sin], [sin, cos]]) @ np.diag([squeeze, 1.0])
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    for points, fill in OUTLINES[category.shape]:
        draw.polygon([tuple(p) for p in (points @ to_canvas.T + centre + 1) * side / 2], fill=fill)
    inside = np.asarray(mask) > 0
    y, x = _grid(side)
    v, u = y[inside] - centre[1], x[inside] - centre[0]
    to_object = np.linalg.inv(to_canvas)
    object_u = to_object[0, 0] * u + to_object[0, 1] * v
    object_v = to_object[1, 0] * u + to_object[1, 1] * v
    ink = _ink(category.pattern, object_u, object_v, rng)[:, None]
    base = _object_colour(category.colour, rng, colour_jitter)
    colour = base * (1 - ink) + (base * 0.22) * ink
    light = 1 - shade * np.clip(0.5 + 0.5 * (object_u + object_v), 0, 1)[:, None]
    canvas[inside] = (colour * light).astype(np.float32)


def _object_colour(name: str, rng: np.random.Generator, jitter: float) -> np.ndarray:
    import colorsys

    hue, saturation, value = _HUES[name]
    hue = (hue + jitter * rng.uniform(-0.018, 0.018)) % 1
    saturation = np.clip(saturation + jitter * rng.uniform(-0.08, 0.05), 0, 1)
    value = np.clip(value + jitter * rng.uniform(-0.1, 0.05), 0, 1)
    return np.array(colorsys.hsv_to_rgb(hue, float(saturation), float(value)), np.float32)


def _ink(pattern: str, u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return 1 where the dark ink of ``pattern`` is, 0 elsewhere; u, v are object coordinates in [-1, 1], y down."""
    period = 0.58 * rng.uniform(0.92, 1.08)
    shift_u, shift_v = rng.uniform(-0.08, 0.08, 2)
    u, v = u + shift_u, v + shift_v
    if pattern == "plain":
        return np.zeros_like(u)
    if pattern == "striped":
        return ((v / period) % 1 < 0.5).astype(np.float32)
    if pattern == "dotted":
        row = np.floor(v / (0.87 * period))
        du = (u / period + 0.5 * (row % 2)) % 1 - 0.5
        dv = (v / (0.87 * period)) % 1 - 0.5
        return (du**2 + (0.87 * dv) ** 2 < 0.31**2).astype(np.float32)
    if pattern == "checkered":
        return ((np.floor(u / (0.8 * period)) + np.floor(v / (0.8 * period))) % 2).astype(np.float32)
    assert pattern == "zigzag", pattern
    wave = 2 * np.abs((u / (1.25 * period)) % 1 - 0.5)
    return (((v + 0.32 * wave) / (1.05 * period)) % 1 < 0.45).astype(np.float32)


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    if side not in _GRIDS:
        axis = (np.arange(side, dtype=np.float32) + 0.5) * 2 / side - 1
        _GRIDS[side] = tuple(np.meshgrid(axis, axis, indexing="ij"))  # type: ignore[assignment]
    return _GRIDS[side]


_GRIDS: dict[int, tuple[np.ndarray, np.ndarray]] = {}


def _regular(corners: int, start: float = -np.pi / 2, radius: float = 1.0) -> np.ndarray:
    angles = start + 2 * np.pi * np.arange(corners) / corners
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, float)


def _outlines() -> dict[str, list[tuple[np.ndarray, int]]]:
    """Each shape as polygons in [-1, 1]² (y down), drawn in order: 255 adds, 0 cuts out."""
    arrow = _polygon((-1, -0.34), (0.05, -0.34), (0.05, -0.9), (1, 0), (0.05, 0.9), (0.05, 0.34), (-1, 0.34))
    t = np.linspace(0, 2 * np.pi, 60)
    circle = np.stack([np.cos(t), np.sin(t)], 1)
    heart = np.stack(
        [np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 17], 1
    )
    star = np.empty((10, 2))
    star[0::2], star[1::2] = _regular(5), _regular(5, -np.pi / 2 + np.pi / 5, 0.42)
    arm = 0.36
    cross = _polygon(
        (-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
        (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm),
    )  # fmt: skip
    drop = np.stack([0.78 * np.sin(t) * np.sin(t / 2) ** 1.6, -np.cos(t)], 1)
    petals = [(0.42 * circle + 0.58 * np.array([np.cos(a), np.sin(a)]), 255) for a in np.arange(6) * np.pi / 3]
    dome = np.linspace(np.pi, 2 * np.pi, 30)
    cap = np.stack([np.cos(dome), 0.95 * np.sin(dome) + 0.1], 1)
    return {
        "circle": [(0.92 * circle, 255)],
        "square": [(_polygon((-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)), 255)],
        "triangle": [(_polygon((0, -0.95), (1, 0.82), (-1, 0.82)), 255)],
        "star": [(1.08 * star, 255)],
        "heart": [(heart, 255)],
        "cross": [(cross, 255)],
        "moon": [(circle, 255), (0.86 * circle + np.array([0.52, -0.1]), 0)],
        "ring": [(circle, 255), (0.5 * circle, 0)],
        "hexagon": [(_regular(6, 0.0), 255)],
        "arrow": [(arrow, 255)],
        "drop": [(drop, 255)],
        "flower": [*petals, (0.4 * circle, 255)],
        "fish": [
            (circle * np.array([0.72, 0.56]) + np.array([-0.26, 0]), 255),
            (_polygon((0.2, 0), (1, -0.68), (0.82, 0), (1, 0.68)), 255),
            (_polygon((-0.45, -0.4), (0.1, -0.95), (0.22, -0.3)), 255),
        ],
        "mushroom": [(cap, 255), (_polygon((-0.34, 0.05), (0.34, 0.05), (0.42, 1), (-0.42, 1)), 255)],
        "house": [
            (_polygon((0, -1), (1, -0.1), (0.74, -0.1), (0.74, 0.92), (-0.74, 0.92), (-0.74, -0.1), (-1, -0.1)), 255),
            (_polygon((0.42, -0.95), (0.7, -0.95), (0.7, -0.2), (0.42, -0.2)), 255),
        ],
        "bolt": [
            (_polygon((0.1, -1), (0.75, -1), (0.3, -0.28), (0.78, -0.28), (-0.42, 1), (-0.1, 0.12), (-0.62, 0.12)), 255)
        ],
    }  # fmt: skip


OUTLINES = _outlines()
