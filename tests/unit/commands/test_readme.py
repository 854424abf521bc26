"""What the documents tell people to type exists, with the options they name; links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from commands.app import app

ROOT = Path(__file__).parents[3]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _commands(program: str) -> list[tuple[str, str]]:
    found = []
    for document in DOCUMENTS:
        for line in document.read_text().splitlines():
            command = line.split("   # ")[0].strip().removeprefix(".venv/bin/")
            if line.startswith("    ") and command.startswith(f"{program} "):
                found.append((document.name, command))
    return found


@pytest.mark.parametrize(("document", "command"), _commands("mindseye"))
def test_commands_can_be_parsed(document: str, command: str) -> None:
    function, bound, _ = app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)
    assert callable(function), document
    assert bound is not None


def test_there_are_commands_to_check() -> None:
    assert len(_commands("mindseye")) >= 5


@pytest.mark.parametrize(("document", "command"), _commands("make"))
def test_make_targets_exist(document: str, command: str) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command.split()[1] in targets, document


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_ci_runs_the_documented_test_command() -> None:
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert any(command == "make test" for _, command in _commands("make"))
