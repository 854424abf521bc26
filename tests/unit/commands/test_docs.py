"""Documents can be read in a terminal and compared line by line."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
WIDTH, TABLE_WIDTH = 120, 200


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_lines_are_not_too_long(document: Path) -> None:
    """A row of a table cannot be broken; a longer one wants to be a list."""
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        limit = TABLE_WIDTH if line.startswith("|") else WIDTH
        assert len(line) <= limit, f"{document.name}, line {number}: {len(line)} characters, {limit} are the most"
