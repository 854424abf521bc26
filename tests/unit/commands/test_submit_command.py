"""``mindseye submit``: what is sent to a cluster, and what is refused before anything is."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from command_line import Run, one_line_error
from cyclopts import App
from errors import refused

from commands.app import app
from commands.submit import PLACES, SENT, delimited
from commands.submit import prepared as prepared_for

WORDS = {
    *("address", "factory", "host", "id", "label", "like", "memory_per_shard", "name", "path", "rate", "reason"),
    *("dataset", "focus", "ignore", "part", "store", "text", "unlike", "vision", "vlm", "without"),
}
"""Parameters of commands that are no paths of the machine where the command is given."""


def prepared(command: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    return prepared_for(app, command)


def commands(of: App) -> Iterator[Callable[..., Any]]:
    if of.default_command:
        yield of.default_command
    for name in of:
        if not name.startswith("-") and of[name].show:  # those of other tests are hidden
            yield from commands(of[name])


def test_it_is_known_of_every_parameter_whether_it_is_a_path() -> None:
    """A new one that names a file has to be in ``SENT`` or ``PLACES``, else the cluster is sent a path of here."""
    found = set()
    for command in commands(app):
        for name, hint in get_type_hints(command, include_extras=False).items():
            if command.__name__ != "submit" and name != "return" and {str, Path} & set(kinds(hint)):
                found.add(name)
    assert found == WORDS | SENT | PLACES


def kinds(hint: Any) -> Iterator[Any]:
    if get_origin(hint) in (Annotated, types.UnionType, list, tuple, Sequence):
        for each in get_args(hint):
            yield from kinds(each)
    elif get_origin(hint) is not Literal:
        yield hint


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("submit index a b --profile p", "submit -- index a b --profile p"),
        ("submit --address x index a --address y", "submit --address x -- index a --address y"),
        ("submit --address=x --no-wait index", "submit --address=x --no-wait -- index"),
        ("submit --no-wait -- index a", "submit --no-wait -- index a"),
        ("submit --help", "submit --help"),
        ("index a b", "index a b"),
        ("", ""),
    ],
)
def test_options_after_the_command_are_those_of_the_command(given: str, expected: str) -> None:
    assert delimited(given.split()) == expected.split()


def test_a_command_is_sent_as_it_is_given() -> None:
    command = ["index", "s3://bucket/photos", "/shared/work", "--profile", "paper", "--shards", "3"]
    assert prepared(command) == (["mindseye", *command], {})
    assert prepared(["index", "status", "/shared/work"])[1] == {}


def test_a_profile_and_a_vocabulary_go_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile_settings: dict[str, Any]
) -> None:
    settings = copy.deepcopy(profile_settings)
    settings["models"] |= {"vlm": "ViT-L-14/openai", "vision": "local-dir:/models/vision"}
    settings["models"]["generator"]["uri"] = "org/name"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "classes.csv").write_text("name\nstar\n")
    (tmp_path / "b" / "own.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    words, files = prepared(["queries", "a/classes.csv", "s3://bucket/queries", "--profile=b/own.yaml"])
    assert words == ["mindseye", "queries", "classes.csv", "s3://bucket/queries", "--profile=own.yaml"]
    assert {name: file.read_bytes() for name, file in files.items()} == {
        "classes.csv": b"name\nstar\n",
        "own.yaml": (tmp_path / "b" / "own.yaml").read_bytes(),
    }
    absolute = tmp_path / "b" / "classes.csv"
    assert prepared(["queries", str(absolute), "/shared/queries"])[1] == {"classes.csv": absolute}
    assert prepared(["queries", "/of/the/nodes.csv", "/shared/queries"])[1] == {}


def test_files_of_one_name_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    for file in ("a/x.png", "x.png"):
        (tmp_path / file).write_text(file)
    monkeypatch.chdir(tmp_path)
    words, files = prepared(["search", "s3://b", "--image", "a/x.png", "--image=x.png"])
    assert words == ["mindseye", "search", "s3://b", "--image", "x.png", "--image=x-2.png"]
    assert {name: file.read_text() for name, file in files.items()} == {"x.png": "a/x.png", "x-2.png": "x.png"}


def test_a_profile_with_paths_from_its_own_place_is_refused(profile_file: Path) -> None:
    with refused("relative-path", "profile") as error:
        prepared(["index", "s3://a", "s3://b", "--profile", str(profile_file)])
    assert "models.vlm, models.vision, models.generator.uri" in str(error.value)


@pytest.mark.parametrize(
    ("command", "code", "field"),
    [
        ("index photos s3://b", "relative-path", "source"),
        ("index s3://a work", "relative-path", "target"),
        ("index status work", "relative-path", "target"),
        ("demo", "relative-path", "folder"),
        ("queries nothing.csv s3://b", "missing", "vocabulary"),
        ("index s3://a s3://b --profile nothing.yaml", "missing", "profile"),
        ("index s3://a", "not-a-command", "command"),
        ("indx s3://a s3://b", "not-a-command", "command"),
        ("index s3://a s3://b --shard 3", "not-a-command", "command"),
        ("submit -- index s3://a s3://b", "not-a-command", "command"),
        ("", "not-a-command", "command"),
    ],
)
def test_what_the_cluster_could_not_run_is_refused_before_it_is_sent(command: str, code: str, field: str) -> None:
    with refused(code, field):
        prepared(command.split())


def test_help_of_a_command_is_that_command_s(run: Run) -> None:
    assert "--shards" in run("submit", "index", "--help").out
    assert "--no-wait" in run("submit", "--help").out


def test_it_says_in_seconds_that_no_dashboard_answers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    one_line_error(run("submit", "--address", "127.0.0.1:1", "doctor"), "nothing answers at http://127.0.0.1:1")
    one_line_error(run("submit", "--address", "ray://head:10001", "doctor"), "http://head:8265")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    one_line_error(run("submit", "doctor"), "dashboard", "RAY_API_SERVER_ADDRESS")
