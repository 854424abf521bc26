"""A small data set of folders, with a recipe of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pictures import saved

RECIPE: dict[str, Any] = {
    "title": "Shapes",
    "source": "made up",
    "licence": "none",
    "split": "test",
    "expected": {"classes": 3, "images": 6, "per_class": 2},
    "classes": {"listed": {"red_star": "red star", "blue_ring": "blue ring", "dot": "dot"}},
    "templates": ["a [photo|picture] of a {}."],
    "layouts": [{"kind": "folders", "images": "pictures", "leave_out": ["BACKGROUND"]}],
}


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """The folder of a whole download: three classes of two pictures, and a folder that is no class."""
    root = tmp_path / "shapes"
    for label in (*RECIPE["classes"]["listed"], "BACKGROUND"):
        for number in range(2):
            file = root / "pictures" / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(saved("PNG"))
    return root


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Write the recipe of the shapes, with changes, and return its file."""

    def write(**changes: Any) -> Path:
        file = tmp_path / "shapes.yaml"
        file.write_text(yaml.safe_dump(RECIPE | changes, sort_keys=False), encoding="utf-8")
        return file

    return write
