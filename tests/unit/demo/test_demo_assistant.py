"""The demo's assistant: the protocol there and back over HTTP, answered by the grammar and the demo's own small VLM."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from assistant_server import serving
from command_line import Run
from pictures import saved

from cluster.loading import load_vlm
from cluster.profile import load_profile
from demo.assistant import MODEL, application
from demo.assistant_answers import GrammarAnswers
from demo.grammar import Category, categories
from demo.slots import merged, named, slots
from demo.world import render
from pipelines.vocabulary import read_vocabulary
from retrieval.assistant.ask import asked_back
from retrieval.assistant.blocking import talked
from retrieval.assistant.endpoint import Assistant
from retrieval.assistant.judge import judged
from retrieval.assistant.material import Wanted, jpeg
from retrieval.assistant.rerank import reranked
from retrieval.assistant.rewrite import rewritten


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(application(GrammarAnswers(load_vlm(load_profile("tiny"))))) as url:
        yield url


@pytest.fixture
def assistant(url: str) -> Assistant:
    return Assistant(url, MODEL, seconds=60)


def test_every_name_and_clause_of_the_world_is_understood() -> None:
    for category in categories():
        assert merged([category.name]) == {
            aspect: [getattr(category, aspect)] for aspect in ("colour", "pattern", "shape")
        }
    assert slots("a photo of something lemon coloured, with polka spots") == {
        "colour": ["yellow"],
        "pattern": ["dotted"],
    }
    assert slots("the colour of a ripe tomato or of sky") == {"colour": ["red"]}
    assert slots("scarfishes") == {}
    assert named({"shape": "fish", "colour": "red"}) == "red fish"


def test_what_is_wanted_goes_before_what_the_picture_shows(assistant: Assistant) -> None:
    query = Wanted(["blue"], ["dotted"], ["red", "dotted", "fish"])
    assert talked(assistant, lambda talk: rewritten(talk, query)) == "blue fish"
    assert talked(assistant, lambda talk: rewritten(talk, Wanted(["a boat"]))) == "a boat"


def test_it_asks_for_the_aspect_that_differs_most(assistant: Assistant) -> None:
    found = ["red striped fish", "blue striped fish", "green dotted fish", "nothing it knows"]
    asked = talked(assistant, lambda talk: asked_back(talk, Wanted(["fish"]), found))
    assert (asked.question, asked.choices) == ("Which colour?", found[:3])


@pytest.mark.parametrize("probabilities", [True, False], ids=["as tokens", "in words"])
def test_it_judges_by_what_a_picture_shows(assistant: Assistant, probabilities: bool) -> None:
    assistant.states_logprobs = probabilities
    red, blue = (jpeg(render(Category(colour, "plain", "circle"), 1, style="stock")) for colour in ("red", "blue"))
    shares = [
        talked(assistant, lambda talk, one=one: judged(talk, Wanted(["red"]), one))  # type: ignore[misc]
        for one in (red, blue)
    ]
    assert shares[0] > 0.5 > shares[1]


@pytest.mark.parametrize("way", ["judge", "list"])
def test_both_second_stages_there_and_back(assistant: Assistant, way: str) -> None:
    pictures = [
        jpeg(render(Category(colour, "plain", "circle"), 1, style="stock"))
        for colour in ("blue", "green", "red", "grey")
    ]
    query = Wanted(["red"], ["blue"])
    found = talked(assistant, lambda talk: reranked(talk, way, query, pictures))  # type: ignore[arg-type]
    assert found.order
    assert found.order[0] == 2
    assert (found.shortfall, found.spent.failed) == (None, 0)
    assert found.spent.calls == (4 if way == "judge" else 1)
    assert found.spent.tokens_in > 85


def test_a_data_set_is_described_from_its_names_to_its_queries(
    url: str, run: Run, tmp_path: Path, profile_settings: dict[str, Any]
) -> None:
    names = ["red striped star", "blue plain ring", "a boat"]
    settings = copy.deepcopy(profile_settings)
    settings["models"]["assistant"] = {"url": url, "model": MODEL, "seconds": 60}
    recipe = {
        "title": "Three",
        "source": "made up",
        "licence": "none",
        "split": "test",
        "templates": "none",
        "expected": {"classes": 3, "images": 3, "per_class": 1},
        "classes": {"listed": names},
        "layouts": [{"kind": "folders", "images": ""}],
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "three.yaml").write_text(yaml.safe_dump(recipe))
    for name in names:
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "0.png").write_bytes(saved("PNG"))
    file, root = tmp_path / "d.csv", ["--root", tmp_path / "set"]
    options = [*root, "--count", 2, "--profile", tmp_path / "own.yaml"]
    made = run("dataset", "describe", tmp_path / "three.yaml", file, *options)
    assert made.code == 0, made.err
    assert "6 were missing, 4 were made, 1 more were rejected" in made.out
    assert "a boat is empty" in made.out
    assert "4 descriptions are still to be reviewed" in made.out
    file.write_text(file.read_text().replace(",made,", ",reviewed,") + "a boat,,it floats,,,,\n")
    prepared = run("dataset", "prepare", tmp_path / "three.yaml", tmp_path / "out", *root, "--descriptions", file)
    assert prepared.code == 0, prepared.err
    queries = [entry for entry in read_vocabulary(tmp_path / "out/queries.csv") if entry.kind == "description"]
    assert [entry.label for entry in queries] == ["red striped star"] * 2 + ["blue plain ring"] * 2 + ["a boat"]
    for entry in queries[:4]:
        assert merged([entry.text]) == merged([entry.label or ""])
        assert not any(word in entry.text.split() for word in (entry.label or "").split())


@pytest.mark.parametrize(
    "body", [{}, [], {"messages": []}, {"messages": [{"content": [{"type": "text", "text": "hello"}]}]}]
)
def test_it_says_that_it_understands_no_other_requests(url: str, body: object) -> None:
    answer = requests.post(f"{url}/chat/completions", json=body, timeout=30)
    assert answer.status_code == 400
    assert "mindseye's own requests" in answer.json()["error"]["message"]
