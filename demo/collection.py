"""Photos and queries of categories: what a gallery of the rendered world is made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cluster.progress import ProgressCounter, progress
from demo.grammar import Category, describe
from demo.slots import ASPECTS
from demo.world import render
from pipelines.running import current_executor
from pipelines.vocabulary import VocabularyEntry
from retrieval.prompts import Kind, query_text

FIRST_IMAGE = 100_000
"""Gallery images have numbers from here on, so that none was ever a training image."""


def render_gallery(folder: Path, categories: Sequence[Category], count: int) -> None:
    """Render ``count`` photos of each category as ``folder/<category>/<number>.jpg``."""
    with progress(f"rendering {folder.name} categories", len(categories)) as counter:
        each = ((folder.absolute(), category, count, counter) for category in categories)
        current_executor().map(_render_category, each)


def _render_category(folder: Path, category: Category, count: int, counter: ProgressCounter) -> None:
    target = folder / category.name
    target.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        render(category, FIRST_IMAGE + i).save(target / f"{i:04d}.jpg", quality=92)
    counter.add(1)
    counter.flush()  # or the last one may be counted after the line that says how many there were


def dictionary() -> list[VocabularyEntry]:
    """Return the single words of the world, each with what it tells of an image; none is a category's name."""
    return [VocabularyEntry(word, aspect=aspect, value=word) for aspect, of in ASPECTS.items() for word in of]


def vocabulary(categories: Sequence[Category], kinds: Sequence[Kind]) -> list[VocabularyEntry]:
    """Return one query of each kind for each category; descriptions use paraphrases that no training caption used."""
    rng = np.random.default_rng(0)
    entries = []
    for category in categories:
        description = describe(category, "evaluation", rng)
        entries += [
            VocabularyEntry(query_text(kind, category.name, description), kind, category.name) for kind in kinds
        ]
    return entries
