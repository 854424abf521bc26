"""The words of the demo world: category names, captions to learn from, and descriptions that avoid the name.

A category is a (colour, pattern, shape) triple. Each attribute value has clauses that describe it without its name, in
two lists: clauses that captions may use in training, and held-out paraphrases that only evaluation uses. A held-out
paraphrase is new as a phrase but uses only words that training captions contain (``test_demo_world.py`` checks both),
since models that learned their language from this world alone cannot know other words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Use = Literal["training", "evaluation"]


@dataclass(frozen=True)
class Wording:
    """How one attribute value is described without its name."""

    training: tuple[str, ...]
    evaluation: tuple[str, ...]

    def clauses(self, use: Use) -> tuple[str, ...]:
        return self.training if use == "training" else self.evaluation


COLOURS: dict[str, Wording] = {
    "red": Wording(
        ("the colour of blood", "tinted like a ripe tomato", "tomato coloured", "painted like blood"),
        ("blood coloured", "the colour of a ripe tomato"),
    ),
    "orange": Wording(
        ("the colour of a carrot", "tinted like a pumpkin", "pumpkin coloured", "painted like a carrot"),
        ("carrot coloured", "the colour of a pumpkin"),
    ),
    "yellow": Wording(
        ("the colour of a lemon", "tinted like butter", "butter coloured", "painted like a lemon"),
        ("lemon coloured", "the colour of butter"),
    ),
    "green": Wording(
        ("the colour of grass", "tinted like a fresh leaf", "leaf coloured", "painted like grass"),
        ("grass coloured", "the colour of a fresh leaf"),
    ),
    "turquoise": Wording(
        ("the colour of a warm lagoon", "tinted like a peacock feather", "peacock coloured", "painted like a lagoon"),
        ("lagoon coloured", "the colour of a peacock feather"),
    ),
    "blue": Wording(
        ("the colour of a clear sky", "tinted like deep sea", "sea coloured", "painted like a clear sky"),
        ("sky coloured", "the colour of deep sea"),
    ),
    "purple": Wording(
        ("the colour of a plum", "tinted like grapes", "grape coloured", "painted like a plum"),
        ("plum coloured", "the colour of grapes"),
    ),
    "pink": Wording(
        ("the colour of a flamingo", "tinted like bubble gum", "bubble gum coloured", "painted like a flamingo"),
        ("flamingo coloured", "the colour of bubble gum"),
    ),
    "grey": Wording(
        ("the colour of ash", "tinted like an elephant", "elephant coloured", "painted like ash"),
        ("ash coloured", "the colour of an elephant"),
    ),
}

PATTERNS: dict[str, Wording] = {
    "plain": Wording(
        ("without any markings", "smooth and bare all over", "in one even tone", "with nothing drawn on it"),
        ("bare, without markings", "smooth and in one tone"),
    ),
    "striped": Wording(
        ("covered in parallel bands", "with bars running across it", "banded like a tiger", "with bands like a zebra"),
        ("with parallel bars across it", "covered in bands like a zebra"),
    ),
    "dotted": Wording(
        ("covered in small round spots", "spotted like a ladybird", "with polka spots", "with freckles all over"),
        ("with small round freckles", "covered in polka spots like a ladybird"),
    ),
    "checkered": Wording(
        (
            "like a chess board",
            "divided into alternating blocks",
            "with a racing flag surface",
            "tiled like a kitchen floor",
        ),
        ("with alternating tiled blocks", "divided like a chess board"),
    ),
    "zigzag": Wording(
        (
            "with lines that climb and fall",
            "covered in sawtooth lines",
            "with sharp waves across it",
            "with rows of mountain peaks",
        ),
        ("with sawtooth waves across it", "covered in rows of lines that climb and fall"),
    ),
}

SHAPES: dict[str, Wording] = {
    "circle": Wording(
        ("that is perfectly round", "like a coin", "like a full disc", "round and without corners"),
        ("that is a round disc", "round like a coin"),
    ),
    "square": Wording(
        ("with four equal sides", "with four corners", "like a box", "like a flat tile"),
        ("with four equal corners", "like a flat box"),
    ),
    "triangle": Wording(
        ("with three sides", "with three corners", "like a slice of pizza", "like a pyramid"),
        ("with three equal corners and three sides", "like a slice of a pyramid"),
    ),
    "star": Wording(
        ("with five sharp points", "that shines in the night sky", "with five spikes", "like the badge of a sheriff"),
        ("with five spikes like a badge", "that shines with five points"),
    ),
    "heart": Wording(
        ("that stands for love", "with two round bumps above one point", "like a valentine card", "that means love"),
        ("with two bumps that stands for love", "like a valentine that means love"),
    ),
    "cross": Wording(
        ("like a plus sign", "with two bars that meet", "with four equal arms", "like the mark of an ambulance"),
        ("with four arms like a plus", "like the ambulance sign"),
    ),
    "moon": Wording(
        ("like a curved sickle", "with two curved horns", "like a banana", "thin and curved"),
        ("thin like a sickle", "curved like a banana with horns"),
    ),
    "ring": Wording(
        ("with a big hole inside", "like a doughnut", "like a wheel without spokes", "that is hollow in the middle"),
        ("like a hollow wheel", "with a hole in the middle"),
    ),
    "hexagon": Wording(
        ("with six equal sides", "with six corners", "like a honeycomb cell", "like a metal nut"),
        ("with six equal corners", "like a cell with six sides"),
    ),
    "arrow": Wording(
        ("that shows the way", "with a pointed head on a shaft", "that is shot from a bow", "that shows a direction"),
        ("with a head that shows a direction", "with a shaft, shot from a bow"),
    ),
    "drop": Wording(
        ("like falling rain", "like a tear", "round below and pointed above", "like a leak of water"),
        ("like a tear of water", "pointed above like falling rain"),
    ),
    "flower": Wording(
        ("with round petals", "like a daisy", "that blooms in a garden", "with petals around a centre"),
        ("that blooms with petals", "like a garden daisy"),
    ),
    "fish": Wording(
        ("that swims in water", "with a tail and fins", "that lives in the ocean", "with an oval body and a tail"),
        ("that swims in the ocean", "with fins and an oval body"),
    ),
    "mushroom": Wording(
        ("with a wide cap on a stem", "that grows in the forest", "like an umbrella", "like a toadstool"),
        ("like a toadstool that grows in the forest", "with a cap like an umbrella"),
    ),
    "house": Wording(
        ("where people live", "with a roof over walls", "like a cottage", "with a roof and a chimney"),
        ("with walls and a chimney", "like a cottage where people live"),
    ),
    "bolt": Wording(
        (
            "like a flash in a storm",
            "that comes with thunder",
            "that is jagged and electric",
            "like a strike from a cloud",
        ),
        ("like an electric flash", "that comes from a storm with thunder"),
    ),
}

_CARRIERS = ("something", "an object", "a thing", "a figure")
_FRAMES: dict[Use, tuple[str, ...]] = {
    "training": (
        "{carrier} {shape}, {colour}, {pattern}",
        "{carrier} {colour} and {pattern}, {shape}",
        "{carrier} {pattern}, {shape} and {colour}",
    ),
    "evaluation": ("{carrier} {shape}, {pattern} and {colour}",),
}
_CAPTION_FRAMES = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "one {} among other things",
    "a {} in the scene",
)


@dataclass(frozen=True)
class Category:
    """One category of the world. ``name`` is its label everywhere."""

    colour: str
    pattern: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.pattern} {self.shape}"


def categories() -> list[Category]:
    """Every category of the world, in a fixed order: 16 shapes × 9 colours × 5 patterns = 720."""
    return [Category(colour, pattern, shape) for shape in SHAPES for colour in COLOURS for pattern in PATTERNS]


def describe(category: Category, use: Use, rng: np.random.Generator) -> str:
    """Return a sentence that describes ``category`` and names none of its attributes."""
    pick = lambda options: options[rng.integers(len(options))]  # noqa: E731
    return pick(_FRAMES[use]).format(
        carrier=pick(_CARRIERS),
        colour=pick(COLOURS[category.colour].clauses(use)),
        pattern=pick(PATTERNS[category.pattern].clauses(use)),
        shape=pick(SHAPES[category.shape].clauses(use)),
    )


def prompt(category: Category, rng: np.random.Generator) -> str:
    """Return a faithful text for one image, as the generator learns from: a name, a description, or both."""
    kind = rng.random()
    if kind < 0.45:
        return category.name
    description = describe(category, "training", rng)
    return description if kind < 0.85 else f"{category.name}, {description}"


def web_caption(category: Category, rng: np.random.Generator) -> str:
    """Return a caption as found on the web, which the VLM learns from: some are wrong, many leave something out.

    15% have one attribute replaced by a random one; 45% name the shape with the colour or the pattern or neither; of
    the others, 60% give the name, 30% a description, 10% both.
    """
    fault = rng.random()
    if fault < 0.15:
        category = _with_random_attribute(category, rng)
    elif fault < 0.6:
        told = (f"{category.colour} ", f"{category.pattern} ", "")[rng.integers(3)]
        return _framed(f"{told}{category.shape}", rng)
    kind = rng.random()
    if kind < 0.6:
        return _framed(category.name, rng)
    description = describe(category, "training", rng)
    return description if kind < 0.9 else f"{category.name}, {description}"


def _framed(text: str, rng: np.random.Generator) -> str:
    return _CAPTION_FRAMES[rng.integers(len(_CAPTION_FRAMES))].format(text)


def _with_random_attribute(category: Category, rng: np.random.Generator) -> Category:
    colour, pattern, shape = category.colour, category.pattern, category.shape
    which = rng.integers(3)
    if which == 0:
        colour = list(COLOURS)[rng.integers(len(COLOURS))]
    elif which == 1:
        pattern = list(PATTERNS)[rng.integers(len(PATTERNS))]
    else:
        shape = list(SHAPES)[rng.integers(len(SHAPES))]
    return Category(colour, pattern, shape)


def every_training_text() -> list[str]:
    """Return each phrase of the grammar that training captions can contain; the tokenizer is trained on them."""
    clauses = [c for table in (COLOURS, PATTERNS, SHAPES) for wording in table.values() for c in wording.training]
    names = [category.name for category in categories()]
    return [
        *clauses,
        *names,
        *_CARRIERS,
        *_CAPTION_FRAMES,
        *(f.replace("{", " ").replace("}", " ") for f in _FRAMES["training"]),
    ]
