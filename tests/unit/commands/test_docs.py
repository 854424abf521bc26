"""Documents can be read in a terminal and compared line by line."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
WIDTH, TABLE_WIDTH = 120, 220


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_lines_are_not_too_long(document: Path) -> None:
    """A row of a table cannot be broken; a longer one wants to be a list."""
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        limit = TABLE_WIDTH if line.startswith("|") else WIDTH
        assert len(line) <= limit, f"{document.name}, line {number}: {len(line)} characters, {limit} are the most"


def drawn() -> set[str]:
    """Return the files in the tree that CONTRIBUTING draws, whose indentation says in which folder each lies."""
    text = (
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("### The tree\n")[1].split("\nTests mirror it")[0]
    )
    folders: list[str] = []
    files = set()
    for line in filter(str.strip, text.splitlines()):
        depth, name = (len(line) - len(line.lstrip())) // 2 - 2, line.split()[0]
        folders = [*folders[:depth], name]
        if not name.endswith("/"):
            files.add("".join(folders))
    return files


def test_the_tree_in_contributing_is_the_tree() -> None:
    packages = ("cluster", "commands", "demo", "pipelines", "retrieval", "serving", "training")
    modules = [file for package in packages for file in (ROOT / package).rglob("*.py")]
    there = {file.relative_to(ROOT).as_posix() for file in modules if file.name != "__init__.py"}
    assert drawn() == there | {"mindseye.py"}
