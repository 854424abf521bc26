"""Descriptions that a model makes: what is flagged, what is kept, what is never touched, and how a run goes on."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from assistant_server import Answering, Body, completion, given, serving
from command_line import Run, one_line_error
from errors import refused

from pipelines.vocabulary import read_vocabulary
from retrieval.assistant.endpoint import Assistant
from retrieval.datasets.classes import Vocabulary
from retrieval.datasets.describing import Making, make
from retrieval.datasets.description_file import Description, adding, read_csv
from retrieval.datasets.descriptions import read_descriptions
from retrieval.datasets.prepare import prepare
from retrieval.datasets.recipe import load_recipe
from retrieval.datasets.wording import fault_of

Recipe = Callable[..., Path]
NAMES = {"red_star": "red star", "blue_ring": "blue ring", "dot": "dot"}
CLASSES = Vocabulary(NAMES)


def answering(answers: dict[str, Any], asked: list[Body] | None = None) -> Answering:
    """Answer by the name of the class: descriptions, or a response as it is."""

    async def answer(request: web.Request, body: Body) -> web.StreamResponse:
        data = given(body)
        if asked is not None:
            asked.append(data)
        said = answers[data["name"]]
        if isinstance(said, list):
            return completion(json.dumps({"descriptions": said}))
        return said(data) if callable(said) else completion(said)

    return answer


def made(url: str, file: Path, count: int = 1, **options: Any) -> Making:
    making = Making.of(CLASSES, read_csv(file) if file.exists() else [], count)
    with adding(file) as add:
        asyncio.run(make(Assistant(url, "model", **options), making, add, lambda: None))
    return making


def rows(file: Path) -> dict[str, list[tuple[str, str, str]]]:
    found: dict[str, list[tuple[str, str, str]]] = {}
    for each in read_csv(file):
        found.setdefault(each.label, []).append((each.text, each.status, each.problem))
    return found


# What an answer may be


def test_descriptions_are_kept_with_what_made_them(tmp_path: Path) -> None:
    asked: list[Body] = []
    answers = {"red star": ["five points"], "blue ring": ["1. An open “loop”"], "dot": "Sure!\n- “=a small disc”\n"}
    with serving(answering(answers, asked)) as url:
        making = made(url, tmp_path / "d.csv")
    assert read_csv(tmp_path / "d.csv") == making.added
    assert {each.label: each.text for each in making.added} == {
        "red_star": "five points",
        "blue_ring": "An open “loop”",
        "dot": "a small disc",
    }
    [star] = [each for each in making.added if each.label == "red_star"]
    assert star == Description("red_star", "five points", "made", "", "red star", "model", "1")
    assert (making.unreviewed, making.failed, making.ended) == (3, {}, None)
    assert {data["task"] for data in asked} == {"describe"}
    assert all(data["count"] == 1 for data in asked)


@pytest.mark.parametrize(
    ("answer", "text", "problem"),
    [
        (["A Red-Star on a flag"], "A Red-Star on a flag", "has the name 'red star' in it"),
        ([], "", "is empty"),
        ([" \n"], "", "is empty"),
        (['"'], "", "is empty"),
        (None, "", "is empty"),
        (["…"], "…", "has no words"),
        (["x" * 301], "x" * 301, "has 301 characters, and 300 are the most"),
        ("I'm sorry, but I cannot help with that.", "I'm sorry, but I cannot help with that.", "is a refusal"),
        ('{"descriptions": ["cut off', "", "the assistant's answer is not what was asked for"),
        (lambda _: completion("", finish_reason="content_filter"), "", "the assistant declined to answer"),
        (["An open loop"], "An open loop", "is the description of blue_ring as well"),
    ],
)
def test_an_answer_that_is_no_description_is_kept_as_rejected(
    tmp_path: Path, answer: Any, text: str, problem: str
) -> None:
    file = tmp_path / "d.csv"
    file.write_text("class,description,status,problem,name,model,prompt\nblue_ring,an open loop,made,,,,\ndot,o,,,,,\n")
    with serving(answering({"red star": answer})) as url:
        making = made(url, file)
        assert rows(file)["red_star"] == [(text, "rejected", problem)]
        assert (making.unreviewed, making.lacking(1)) == (1, {"red_star": 1})
        before = file.read_bytes()
        again = made(url, file)  # the same answer is not written twice
    assert file.read_bytes() == before
    assert list(again.again) == ["red_star"]


@pytest.mark.parametrize(
    ("text", "name", "problem"),
    [
        ("a lawnmower", "lawn mower", "has the name"),
        ("some butterflies", "butterfly", "has the name"),
        ("grey wolves", "wolf", "has the name"),
        ("kitchen knives", "knife", "has the name"),
        ("a woman", "man", None),
        ("manned", "man", None),
        ("a plane of the kind F/A-18", "F/A-18", "has the name"),
        ("something", "!", None),
        ("I can't say", "cat", "is a refusal"),
        ("As an AI language model, I", "cat", "is a refusal"),
        ("a sorry sight", "cat", None),
        ("as an aide to sailors", "lighthouse", None),
    ],
)
def test_what_is_wrong_with_a_text(text: str, name: str, problem: str | None) -> None:
    found = fault_of(text, name)
    assert found is None if problem is None else found and found.startswith(problem)


# Going on


def test_a_second_run_makes_what_is_missing_and_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    written = (
        "notes,class,description,status,problem,name,model,prompt\r\n"
        'mine,red star,"five, I say",reviewed,,,,\r\n'
        "mine,red_star,a bad one,rejected,,,,\r\n"
        "mine,dot,by hand,,,,,"
    ).encode("utf-8-sig")
    file.write_bytes(written)
    asked: list[Body] = []
    answers = {"red star": ["a badge"], "blue ring": ["a loop", "a band", "too many"], "dot": ["a disc"]}
    with serving(answering(answers, asked)) as url:
        making = made(url, file, count=2)
        assert {data["name"]: (data["count"], data["others"]) for data in asked} == {
            "red star": (1, ["five, I say", "a bad one"]),
            "blue ring": (2, []),
            "dot": (1, ["by hand"]),
        }
        assert len(making.added) == 4
        assert made(url, file, count=2).added == []
        assert len(asked) == 3
    assert file.read_bytes().startswith(written + b"\n")
    assert rows(file)["blue_ring"] == [("a loop", "made", ""), ("a band", "made", "")]
    assert rows(file)["dot"] == [("by hand", "reviewed", ""), ("a disc", "made", "")]


@pytest.mark.parametrize("status", [401, 500, 429])
def test_an_endpoint_that_fails_is_given_up_and_what_was_made_is_kept(tmp_path: Path, status: int) -> None:
    asked: list[Body] = []
    answers = {"red star": ["five points"], "blue ring": lambda _: web.Response(status=status), "dot": ["a disc"]}
    with serving(answering(answers, asked)) as url:
        making = made(url, tmp_path / "d.csv", at_once=1)
    assert making.ended == making.failed["blue_ring"]
    assert str(status) in str(making.ended) or status == 429
    assert [data["name"] for data in asked] == ["red star", "blue ring"]
    assert rows(tmp_path / "d.csv") == {"red_star": [("five points", "made", "")]}


def test_a_hang_costs_its_seconds_once(tmp_path: Path) -> None:
    calls = 0

    async def hang(request: web.Request, body: Body) -> web.Response:
        nonlocal calls
        calls += 1
        await asyncio.sleep(60)
        return completion("late")

    with serving(hang) as url:
        making = made(url, tmp_path / "d.csv", at_once=2, seconds=0.3)
    assert (making.ended, making.added) == ("the assistant did not answer in time", [])
    assert calls <= 3  # the two that were under way, and one that the first of them made room for


def test_two_runs_do_not_add_to_one_file(tmp_path: Path) -> None:
    with adding(tmp_path / "d.csv"), refused("in-use", "descriptions"), adding(tmp_path / "d.csv"):
        pass


def test_a_file_without_the_columns_is_not_added_to(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("class,description\ndot,a disc\n")
    with refused("wrong-columns", "descriptions") as error, adding(tmp_path / "d.csv"):
        pass
    assert "lacks the columns name, status" in str(error.value)


def test_a_line_that_was_cut_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('class,description,status\ndot,a disc,made\nred_star,"five poi')
    with refused("malformed", "descriptions") as error:
        read_csv(tmp_path / "d.csv")
    assert "line 3 has fewer cells" in str(error.value)


def test_a_text_with_a_comma_and_without_quotes_is_not_cut(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("class,description\nred_star,five points, like a badge\ndot,a disc,\n")
    with refused("malformed", "descriptions") as error:
        read_csv(tmp_path / "d.csv")
    assert "line 2 has more cells" in str(error.value)


def test_what_is_added_fits_a_file_that_was_edited_or_deleted_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    made = [Description("dot", "a disc", "made", "", "dot", "model", "1")]
    with adding(file) as add:
        file.unlink()
        add(made)
        assert read_csv(file) == made
        file.write_text("notes,prompt,model,name,problem,status,description,class\n")
        add(made)
        assert read_csv(file) == made
        edited = "class;description\nred_star;émail\n".encode("cp1252")
        file.write_bytes(edited)
        with refused("not-utf-8", "descriptions"):
            add(made)
    assert file.read_bytes() == edited


# Read as queries


def test_what_is_rejected_is_not_used_and_what_is_not_reviewed_is_said(
    shapes: Path, written: Recipe, tmp_path: Path
) -> None:
    file = tmp_path / "d.csv"
    file.write_text(
        "class,description,status\nred_star,five points,made\nred_star,a badge,Reviewed\nblue_ring,a loop,rejected\n"
        "dot,a badge!,\n"
    )
    texts, findings = read_descriptions(file, CLASSES)
    assert texts == {"red_star": ["five points", "a badge"], "dot": ["a badge!"]}
    assert {(each.kind, each.name, each.detail) for each in findings} == {
        ("description-unreviewed", "red_star", "1 of 2 are not reviewed"),
        ("description-missing", "blue_ring", "(blue ring) has no description but rejected ones"),
        ("description-same", "red_star", "has the description of dot"),
    }
    prepared = prepare(load_recipe(written()), shapes, tmp_path / "prepared", descriptions=file, partial=True)
    assert [(entry.text, entry.kind) for entry in read_vocabulary(prepared.queries)][:5] == [
        ("red star", "name"),
        ("five points", "description"),
        ("a badge", "description"),
        ("red star, five points", "name+description"),
        ("red star, a badge", "name+description"),
    ]
    file.write_text("class,description,status\ndot,a disc,rejected\ndot,a disc,reviewed\n")
    assert read_descriptions(file, CLASSES)[0] == {"dot": ["a disc"]}
    file.write_text("class,description,status\ndot,a disc,done\n")
    with refused("unknown", "descriptions") as error:
        read_descriptions(file, CLASSES)
    assert "line 2: the status is 'done'" in str(error.value)


# The command


@pytest.fixture
def profile(tmp_path: Path, profile_settings: dict[str, Any]) -> Callable[..., Path]:
    """Write a profile with an assistant or a describer; no other model of it is loaded."""

    def write(**models: Any) -> Path:
        settings = copy.deepcopy(profile_settings)
        settings["models"] |= models
        file = tmp_path / "own.yaml"
        file.write_text(yaml.safe_dump(settings))
        return file

    return write


def test_the_command_says_what_it_made_and_what_is_left(
    run: Run, written: Recipe, tmp_path: Path, profile: Callable[..., Path]
) -> None:
    answers = {"red star": ["five points"], "blue ring": ["a blue ring"], "dot": ["a [bold]disc"]}
    with serving(answering(answers)) as url:
        named = profile(assistant={"url": url, "model": "model"})
        said = run("dataset", "describe", written(), tmp_path / "d.csv", "--profile", named)
        again = run("dataset", "describe", written(), tmp_path / "d.csv", "--profile", named)
    assert (said.code, again.code) == (0, 0), said.err + again.err
    for part in (
        "calls of the model: 3 (0 failed), 21 tokens in, 9 out",
        "3 classes, 1 descriptions each: 3 were missing, 2 were made, 1 more were rejected",
        "blue_ring has the name 'blue ring' in it: a blue ring",
        "1 classes still lack descriptions: blue_ring",
        f"2 descriptions are still to be reviewed: edit them, and set their status, in {tmp_path}/d.csv",
        f"mindseye dataset prepare {tmp_path}/shapes.yaml TARGET --root ROOT --descriptions {tmp_path}/d.csv",
    ):
        assert part in said.out
    assert "1 were missing, 0 were made, 0 more were rejected" in again.out
    assert "blue_ring gives what the file has already: a blue ring" in again.out


def test_ctrl_c_keeps_what_was_made(run: Run, written: Recipe, tmp_path: Path, profile: Callable[..., Path]) -> None:
    async def answer(request: web.Request, body: Body) -> web.Response:
        if given(body)["name"] == "red star":
            return completion('{"descriptions": ["five points"]}')
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)
        return completion("late")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of pytest may ignore it
    try:
        with serving(answer) as url:
            named = profile(assistant={"url": url, "model": "model", "at_once": 1})
            said = run("dataset", "describe", written(), tmp_path / "d.csv", "--profile", named)
    finally:
        signal.signal(signal.SIGINT, before)
    assert said.code == 130, said.err
    assert "interrupted\nwhat was made is kept, and the same command goes on" in said.out
    assert rows(tmp_path / "d.csv") == {"red_star": [("five points", "made", "")]}


def test_mistakes_of_the_command_are_named(
    run: Run, written: Recipe, tmp_path: Path, profile: Callable[..., Path]
) -> None:
    file = tmp_path / "d.csv"
    one_line_error(run("dataset", "describe", written(), file, "--profile", profile()), "models.describer")
    one_line_error(run("dataset", "describe", written(), tmp_path / "d.json"), "ends in .csv")
    one_line_error(run("dataset", "describe", written(), "s3://bucket/d.csv"), "path of this machine")
    one_line_error(run("dataset", "describe", written(), tmp_path / "no/d.csv"), "there is no folder")
    one_line_error(run("dataset", "describe", "dtd", file), "listed in its own files")
    assert not file.exists()
