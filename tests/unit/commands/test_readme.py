"""What the documents tell people to type exists, with the options they name; links lead somewhere."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

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


PYTHON = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


@pytest.fixture
def pictures_and_classes(
    tmp_path: Path, profile_settings: dict[str, Any], models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the README's code needs in the current directory, with tiny models behind the profile ``tiny``."""
    from demo.world import render, split

    profiles = tmp_path / "home" / "cluster" / "profiles"
    profiles.mkdir(parents=True)
    (profiles / "tiny.yaml").write_text(yaml.safe_dump(profile_settings))
    (tmp_path / "home" / "models").symlink_to(models_folder)
    monkeypatch.setattr("cluster.profile.PROFILES", profiles)
    monkeypatch.setenv("RAY_ADDRESS", "none")
    monkeypatch.chdir(tmp_path)
    classes = ["name"]
    for category in split("unseen")[:8]:
        folder = tmp_path / "pictures" / category.name
        folder.mkdir(parents=True)
        for number in range(3):
            render(category, number).save(folder / f"{number}.png")
        classes.append(category.name)
    (tmp_path / "classes.csv").write_text("\n".join(classes))


@pytest.mark.usefixtures("pictures_and_classes")
def test_the_readmes_python_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    [code] = [block for block in PYTHON if "http://" not in block]
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["best"]) == 5
    assert capsys.readouterr().out.count(".png") == 5
    assert {"my-gallery", "my-queries", "my-aggregator", "report"} <= {path.name for path in tmp_path.iterdir()}


def test_the_readmes_python_that_asks_a_service_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving import client
    from serving.protocol import Result, SearchAnswer

    result = Result.model_construct(score=0.5, path="a/1.jpg")
    asked = []

    def search(url: str, query: str, **options: Any) -> SearchAnswer:
        inspect.signature(real).bind(url, query, **options)
        asked.append((url, query))
        return SearchAnswer.model_construct(results=[result])

    real = client.search
    monkeypatch.setattr(client, "search", search)
    [code] = [block for block in PYTHON if "http://" in block]
    exec(code, {})
    assert asked == [("http://127.0.0.1:8000", "yellow dotted fish")]
    assert capsys.readouterr().out == "0.5 a/1.jpg\n"


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
