"""Figures that others published of these data sets, with their source: to stand beside ours, never among them."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, model_validator

from retrieval.datasets.recipe import Settings

_FILE = Path(__file__).parent / "published.yaml"


class Published(Settings):
    """Mean average precisions by data set and method."""

    source: str
    note: str
    methods: list[str] = Field(min_length=1)
    figures: dict[str, list[float]]
    """By the name of the recipe, a figure for each method."""

    @model_validator(mode="after")
    def _one_for_each_method(self) -> Published:
        for name, figures in self.figures.items():
            if len(figures) != len(self.methods):
                raise ValueError(f"{name} has {len(figures)} figures of {len(self.methods)} methods")
        return self


def published() -> Published:
    """Return the figures of CLETIR's authors."""
    return Published.model_validate(yaml.safe_load(_FILE.read_text(encoding="utf-8")))
