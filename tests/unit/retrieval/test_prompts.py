"""Query texts and prompt templates."""

from __future__ import annotations

import subprocess
import sys

import pytest
from errors import refused

from retrieval.prompts import KINDS, MAX_CHARACTERS, Kind, fill, query_text, templates, usable


def test_the_three_kinds() -> None:
    parts = {"name": "Ragdoll", "description": "a large cat with blue eyes"}
    assert [query_text(kind, **parts) for kind in KINDS] == [
        "Ragdoll",
        "a large cat with blue eyes",
        "Ragdoll, a large cat with blue eyes",
    ]
    assert query_text("name", " Ragdoll\n") == "Ragdoll"


@pytest.mark.parametrize(
    ("kind", "parts", "missing"),
    [
        ("name", {}, "name"),
        ("name", {"name": "  "}, "name"),
        ("description", {"name": "Ragdoll"}, "description"),
        ("name+description", {"name": "Ragdoll", "description": ""}, "description"),
    ],
)
def test_a_missing_part_is_named(kind: Kind, parts: dict[str, str], missing: str) -> None:
    with refused("missing", missing):
        query_text(kind, **parts)


def test_an_unknown_kind_is_refused() -> None:
    with refused("unknown", "kind"):
        query_text("caption", name="Ragdoll")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "count"), [("imagenet", 80), ("simple", 7), ("none", 1)])
def test_template_sets_have_one_place_for_the_text(name: str, count: int) -> None:
    assert len(templates(name)) == count
    assert all(template.count("{}") == 1 for template in templates(name))
    assert len(set(fill(templates(name), "duck"))) == count


def test_unknown_template_set() -> None:
    with refused("unknown", "templates"):
        templates("demo")


@pytest.mark.parametrize("text", ["a {} b", "{name}", "{0!r}", "%s %d", "{{}}", "\\1"])
def test_braces_in_the_text_stay(text: str) -> None:
    assert fill(["a photo of {}."], text) == [f"a photo of {text}."]


@pytest.mark.parametrize("bad", [[], ["a photo"], ["{} and {}"], ["{name}"]])
def test_a_template_without_its_one_place_is_refused(bad: list[str]) -> None:
    with refused("template", "templates"):
        fill(bad, "duck")


def test_usable_texts_stay_as_they_are() -> None:
    for text in ("x", " duck ", "nul \x00", "🦆", "مرحبا", "{}", "x" * MAX_CHARACTERS):
        assert usable(text) == text
    assert usable("lone \ud800 half") == "lone ? half"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "blank"),
        (" ", "blank"),
        ("\n\t\u2003", "blank"),
        ("x" * (MAX_CHARACTERS + 1), "too-long"),
        ("x" * 2**20, "too-long"),
    ],
)
def test_unusable_texts_are_refused(text: str, code: str) -> None:
    with refused(code, "text"):
        usable(text)


def test_prompts_alone_do_not_bring_in_torch() -> None:
    program = "import sys, retrieval.prompts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
