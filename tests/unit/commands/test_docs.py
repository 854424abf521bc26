"""Documents can be read in a terminal and compared line by line."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
WIDTH = 120


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_lines_are_not_too_long(document: Path) -> None:
    """Rows of tables are left out, as Markdown cannot break them."""
    lines = enumerate(document.read_text(encoding="utf-8").splitlines(), 1)
    assert not [number for number, line in lines if len(line) > WIDTH and not line.startswith("|")]
