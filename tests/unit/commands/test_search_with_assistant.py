"""``mindseye search`` with an assistant of its profile: what it prints, what it sends, and what it says of mistakes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from assistant_server import Body, completion, given, serving
from command_line import Run, one_line_error
from tiny_artifacts import Collection

from retrieval.assistant.endpoint import Assistant
from retrieval.assistant.found import AskedFor, reworded
from retrieval.evidence import Text

KEY = "sk-of-nobody"


def profile(tmp_path: Path, settings: dict[str, Any], models: Path, **assistant: Any) -> Path:
    settings = copy.deepcopy(settings)
    for role in ("vlm", "vision"):
        settings["models"][role] = f"local-dir:{models / role}"
    settings["models"]["generator"]["uri"] = str(models / "generator")
    if assistant:
        settings["models"]["assistant"] = {"model": "model", **assistant}
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_a_search_is_put_in_order_and_a_question_asked(
    run: Run,
    collection: Collection,
    tmp_path: Path,
    profile_settings: dict[str, Any],
    models_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bodies: list[Body] = []

    async def answering(request: web.Request, body: Body) -> web.Response:
        bodies.append(body)
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        if given(body)["task"] == "list":
            return completion('{"order": [5]}')
        return completion('{"question": "Which [bold]one?", "choices": [1]}')

    monkeypatch.setenv("KEY_OF_TESTS", KEY)
    options = [collection.folder, "--mode", "text", "--k", 5]
    with serving(answering) as url:
        file = profile(tmp_path, profile_settings, models_folder, url=url, key_variable="KEY_OF_TESTS")
        before = run("search", "star", *options, "--profile", file)
        assert not bodies
        said = run("search", "star", *options, "--profile", file, "--rerank", "list", "--depth", 6, "--ask")
    assert said.code == 0, said.err
    order = [[line for line in one.out.splitlines() if "id-" in line and "│" in line] for one in (before, said)]
    names = [[line.split("│")[-2].strip() for line in lines] for lines in order]
    assert names[1] == [names[0][4], *names[0][:4]]
    labels = list(given(bodies[1])["found"].values())
    assert f"Which [bold]one? {labels[0]}" in said.out
    assert "calls of the assistant: 2 (0 failed), 14 tokens in, 6 out" in said.out
    assert given(bodies[0])["count"] == 6
    assert KEY not in said.out + said.err


def test_an_assistant_that_fails_costs_its_order_and_no_answer(
    run: Run, collection: Collection, tmp_path: Path, profile_settings: dict[str, Any], models_folder: Path
) -> None:
    async def answering(request: web.Request, body: Body) -> web.Response:
        return web.Response(status=404)

    with serving(answering) as url:
        file = profile(tmp_path, profile_settings, models_folder, url=url)
        said = run(
            *("search", "star", collection.folder, "--mode", "text", "--profile", file),
            *("--rerank", "judge", "--ask"),
        )
    assert said.code == 0, said.err
    assert "ranked as far as possible: the assistant rejects the request (HTTP 404)" in said.out
    assert "no question: the assistant rejects the request (HTTP 404)" in said.out


@pytest.mark.parametrize("options", [["--rerank", "judge"], ["--rerank", "list"], ["--ask"]])
def test_without_an_assistant_or_its_key_nothing_is_asked(
    run: Run,
    collection: Collection,
    tmp_path: Path,
    profile_settings: dict[str, Any],
    models_folder: Path,
    options: list[str],
) -> None:
    file = profile(tmp_path, profile_settings, models_folder)
    asked = ["search", "star", collection.folder, "--mode", "text", *options, "--profile"]
    one_line_error(run(*asked, file), "models.assistant")
    named = {"url": "https://models.example.com/v1", "key_variable": "KEY_THAT_IS_NOT_SET"}
    one_line_error(run(*asked, profile(tmp_path, profile_settings, models_folder, **named)), "KEY_THAT_IS_NOT_SET")


def test_what_was_read_from_a_picture_is_reworded_with_the_texts() -> None:
    bodies: list[Body] = []

    async def answering(request: web.Request, body: Body) -> web.Response:
        bodies.append(body)
        return completion('{"text": "a blue fish"}' if len(bodies) == 1 else "nonsense")

    with serving(answering) as url:
        assistant = Assistant(url, "model")
        evidence = [Text("large", 0.5), Text("blue"), Text("red", -0.4)]
        first = reworded(assistant, evidence, ["red", "fish"])
        assert first == AskedFor("a blue fish", None, first.spent)
        assert given(bodies[0]) == {
            "task": "rewrite",
            "wanted": ["blue", "large"],
            "unwanted": ["red"],
            "picture": ["red", "fish"],
        }
        second = reworded(assistant, [], ["fish"])
        assert (second.answer, second.spent.calls) == (None, 1)
        why = "the assistant's answer is not what was asked for"
        assert second.shortfall == f"the assistant did not word the query: {why}"
