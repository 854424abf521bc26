"""Query texts and prompt templates."""

from __future__ import annotations

import subprocess
import sys

import pytest

from retrieval.prompts import KINDS, MAX_CHARACTERS, fill, query_text, templates, usable


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
        ("name", {}, "needs a name"),
        ("name", {"name": "  "}, "needs a name"),
        ("description", {"name": "Ragdoll"}, "needs a description"),
        ("name+description", {"name": "Ragdoll", "description": ""}, "needs a description"),
        ("caption", {"name": "Ragdoll"}, "'caption' is not known"),
    ],
)
def test_a_missing_part_is_named(kind, parts, missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        query_text(kind, **parts)


@pytest.mark.parametrize(("name", "count"), [("imagenet", 80), ("simple", 7), ("none", 1)])
def test_template_sets_have_one_place_for_the_text(name: str, count: int) -> None:
    assert len(templates(name)) == count
    assert all(template.count("{}") == 1 for template in templates(name))
    assert len(set(fill(templates(name), "duck"))) == count


def test_unknown_template_set() -> None:
    with pytest.raises(ValueError, match="imagenet, simple, none"):
        templates("demo")


@pytest.mark.parametrize("text", ["a {} b", "{name}", "{0!r}", "%s %d", "{{}}", "\\1"])
def test_braces_in_the_text_stay(text: str) -> None:
    assert fill(["a photo of {}."], text) == [f"a photo of {text}."]


@pytest.mark.parametrize("bad", [[], ["a photo"], ["{} and {}"], ["{name}"]])
def test_a_template_without_its_one_place_is_refused(bad: list[str]) -> None:
    with pytest.raises(ValueError, match="template"):
        fill(bad, "duck")


def test_usable_texts_stay_as_they_are() -> None:
    for text in ("x", " duck ", "nul \x00", "🦆", "مرحبا", "{}", "x" * MAX_CHARACTERS):
        assert usable(text) == text
    assert usable("lone \ud800 half") == "lone ? half"


@pytest.mark.parametrize("text", ["", " ", "\n\t\u2003", "x" * (MAX_CHARACTERS + 1), "x" * 2**20])
def test_unusable_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"blank|characters; at most 4,000"):
        usable(text)


def test_prompts_alone_do_not_bring_in_torch() -> None:
    program = "import sys, retrieval.prompts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
