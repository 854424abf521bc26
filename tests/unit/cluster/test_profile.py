"""Profiles: those that ship, one's own, and the errors of a wrong one."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from errors import refused
from pydantic import ValidationError

import cluster.profile as profile_module
from cluster.loading import load_assistant, prompt_templates
from cluster.profile import PROFILES, Shards, Stage, load_profile, relative_paths

ROOT = Path(__file__).parents[3]


@pytest.fixture
def settings(profile_settings: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(profile_settings)


def written(tmp_path: Path, settings: Any) -> Path:
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def refusal(file: Path, code: str, field: str) -> str:
    """Return what is said of the profile in ``file``, which must name the file."""
    with refused(code, field) as error:
        load_profile(file)
    assert str(file) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("file", sorted(PROFILES.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_profiles_load_by_name(file: Path) -> None:
    profile = load_profile(file.stem)
    assert profile.name == file.stem
    assert all(template.count("{}") == 1 for template in prompt_templates(profile))


def test_the_three_that_are_promised_ship() -> None:
    assert {"tiny", "fast", "paper"} <= {file.stem for file in PROFILES.glob("*.yaml")}


def test_models_of_the_tiny_profile_lie_in_the_installation_wherever_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models = load_profile("tiny").models
    assert models.vlm == f"local-dir:{ROOT}/demo/models/vlm"
    assert models.vision == f"local-dir:{ROOT}/demo/models/vision"


def test_models_of_ones_own_profile_lie_beside_its_file(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "sub"
    (place / "models/generator").mkdir(parents=True)
    written(place, settings)
    for away, name in ((tmp_path, "sub/own.yaml"), (place, "own.yaml"), (Path("/"), place / "own.yaml")):
        monkeypatch.chdir(away)
        models = load_profile(name).models
        assert models.vlm == f"local-dir:{place}/models/vlm"
        assert models.vision == f"local-dir:{place}/models/vision"
        assert models.generator.uri == f"{place}/models/generator"


def test_a_profile_without_suffix_is_ones_own_even_if_a_yaml_of_that_name_lies_beside_it(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    written(tmp_path, settings)
    with refused("missing", "profile"):
        load_profile(tmp_path / "own")


def test_absolute_folders_and_hub_names_stay(tmp_path: Path, settings: dict[str, Any]) -> None:
    settings["models"] |= {"vlm": "ViT-L-14/openai", "vision": f"local-dir:{tmp_path}/elsewhere"}
    settings["models"]["generator"]["uri"] = "stabilityai/sd-turbo"
    models = load_profile(written(tmp_path, settings)).models
    assert models.vlm == "ViT-L-14/openai"
    assert models.vision == f"local-dir:{tmp_path}/elsewhere"
    assert models.generator.uri == "stabilityai/sd-turbo"


@pytest.mark.parametrize("uri", ["demo/models/generator", "./generator", "../generator"])
def test_a_generator_that_is_no_hub_name_is_a_folder_even_if_it_is_missing(
    tmp_path: Path, settings: dict[str, Any], uri: str
) -> None:
    settings["models"]["generator"]["uri"] = uri
    assert load_profile(written(tmp_path, settings)).models.generator.uri == str(tmp_path / uri)


def test_a_profile_is_called_after_its_file_unless_it_has_a_name(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert load_profile(written(tmp_path, settings)).name == "own"
    assert load_profile(written(tmp_path, settings | {"name": "mine"})).name == "mine"


def test_what_is_left_out_has_a_default(tmp_path: Path, settings: dict[str, Any]) -> None:
    settings["embed"] = {"max_actors": 3, "batch": 8}
    profile = load_profile(written(tmp_path, settings))
    assert (profile.embed.cpus, profile.embed.gpus, profile.embed.min_actors) == (1, 0, 1)
    assert profile.index.factory == "auto"


@pytest.mark.parametrize("what", ["aggregator", "composer"])
def test_what_was_trained_lies_beside_the_profile(tmp_path: Path, settings: dict[str, Any], what: str) -> None:
    for given, found in (
        ("made", str(tmp_path / "made")),
        ("/made", "/made"),
        ("s3://bucket/made", "s3://bucket/made"),
    ):
        settings["models"][what] = given
        file = written(tmp_path, settings)
        assert getattr(load_profile(file).models, what) == found
        assert (f"models.{what}" in relative_paths(file)) == (given == "made")


def test_keys_lie_beside_the_profile(tmp_path: Path, settings: dict[str, Any]) -> None:
    settings["serve"] = {"keys_file": "keys"}
    assert load_profile(written(tmp_path, settings)).serve.keys_file == str(tmp_path / "keys")
    settings["serve"] = {"keys_file": "/etc/keys"}
    assert load_profile(written(tmp_path, settings)).serve.keys_file == "/etc/keys"


def test_further_indexes_lie_beside_the_profile(tmp_path: Path, settings: dict[str, Any]) -> None:
    settings["serve"] = {"indexes": ["other", "/data/index", "s3://bucket/index"]}
    indexes = load_profile(written(tmp_path, settings)).serve.indexes
    assert indexes == [str(tmp_path / "other"), "/data/index", "s3://bucket/index"]


def test_a_generator_that_would_fill_the_ingress_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    settings["serve"] = {
        "ingress": {"ongoing": 32},
        "generator": {"max_replicas": 2, "ongoing": 8, "batch": 4, "queued": 16},
    }
    message = refusal(written(tmp_path, settings), "wrong-setting", "serve")
    assert "accepts 32 requests" in message
    assert "lower generator.ongoing" in message
    settings["serve"]["generator"]["queued"] = 15
    assert load_profile(written(tmp_path, settings)).serve.generator.queued == 15


def test_a_stage_may_have_any_node_unless_it_names_some(profile: Any) -> None:
    assert profile.embed.options() == {"num_cpus": profile.embed.cpus, "num_gpus": 0}
    assert profile.embed.selectors() == [{}]


def test_a_stage_that_names_nodes_prefers_them_and_with_an_empty_fallback_has_no_others() -> None:
    stage = Stage(labels={"pool": "a"}, max_actors=1, batch=1)
    assert stage.options()["label_selector"] == {"pool": "a"}
    assert stage.options()["fallback_strategy"] == [{"label_selector": {}}]
    strict = Stage(labels={"pool": "a"}, fallback=[], max_actors=1, batch=1)
    assert strict.options() == {"num_cpus": 1, "num_gpus": 0, "label_selector": {"pool": "a"}}
    assert strict.selectors() == [{"pool": "a"}]


def test_labels_of_a_shard_hold_its_number() -> None:
    shards = Shards(labels={"shard": "n-{shard}"}, fallback=[{"near": "in(r{shard},all)"}])
    assert shards.selectors(12) == [{"shard": "n-12"}, {"near": "in(r12,all)"}]


@pytest.mark.parametrize("name", ["fast", "paper"])
def test_every_stage_of_the_profiles_of_clusters_names_a_pool_but_runs_without_one(name: str) -> None:
    profile = load_profile(name)
    pools = {"embed": "gpu", "imagine": "gpu", "index": "index", "train": "gpu"}
    served = {"ingress": "cpu", "ranker": "cpu", "vlm": "gpu", "vision": "gpu", "generator": "gpu", "shards": "index"}
    for part, named in ((profile, pools), (profile.serve, served)):
        for stage, pool in named.items():
            assert getattr(part, stage).selectors() == [{"mindseye/pool": pool}, {}], stage


def test_nothing_changes_after_loading(profile: Any) -> None:
    with pytest.raises(ValidationError):
        profile.embed.batch = 5
    assert profile.embed.batch == 8


# Refusals


def test_a_missing_profile_is_named_with_those_there_are(tmp_path: Path) -> None:
    with refused("missing", "profile") as error:
        load_profile("papper")
    for name in ("papper", "fast", "paper", "tiny"):
        assert name in str(error.value)
    with refused("missing", "profile"):
        load_profile(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"models: [", b"a: b: c", b"models:\n\t- x", b"- a\n- b", b"just words", b"", b"models: \xff\xfe"],
)
def test_a_file_that_is_no_settings_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own.yaml").write_bytes(content)
    refusal(tmp_path / "own.yaml", "malformed", "profile")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("embed.max_actor", 2),
        ("colour", "red"),
        ("models.generator.stepz", 4),
        ("embed.batch", "many"),
        ("embed.batch", "8"),
        ("embed.batch", True),
        ("embed.batch", 2.5),
        ("embed.batch", 0),
        ("embed.cpus", -1),
        ("embed.gpus", float("nan")),
        ("models.vlm", 5),
        ("models.device", "gpu"),
        ("models.dtype", "half"),
        ("models.generator.steps", 0),
        ("models.generator.guidance", -1.0),
        ("models.generator", "stabilityai/sd-turbo"),
        ("models.assistant.url", "http://models.example.com/v1"),
        ("models.assistant.url", "https://me:word@models.example.com/v1"),
        ("models.assistant.key", "sk-word"),
        ("models.assistant.key_variable", "sk-word"),
        ("models.assistant.depth", 65),
        ("queries.images", 0),
        ("queries.templates", "imagenett"),
        ("queries.templates", ["a photo"]),
        ("queries.templates", ["{} and {}"]),
        ("queries.templates", []),
        ("index.rows_per_shard", 0),
        ("imagine", None),
        ("embed.labels", {"mindseye/pool": "gpu node"}),
        ("embed.labels", {"mindseye/pool": "{shard}"}),
        ("imagine.labels", {"mind seye/pool": "gpu"}),
        ("imagine.labels", "mindseye/pool=gpu"),
        ("index.fallback", {"mindseye/pool": "gpu"}),
        ("index.fallback", [{"pool": "in(a"}]),
        ("train.labels", {"a/b/c": "gpu"}),
        ("serve.vlm.labels", {"pool": ""}),
        ("serve.shards.node_label", "shard={shard}"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(
    tmp_path: Path, settings: dict[str, Any], field: str, value: Any
) -> None:
    *groups, name = field.split(".")
    place = settings
    if "assistant" in groups:
        settings["models"] = settings["models"] | {"assistant": {"url": "https://models.example.com/v1", "model": "m"}}
    for group in groups:
        place = place.setdefault(group, {})
    place[name] = value
    message = refusal(written(tmp_path, settings), "wrong-setting", field)
    assert "1 wrong setting" in message
    assert "word@" not in message
    assert "sk-word" not in message


def test_there_is_no_assistant_unless_one_is_named() -> None:
    assert all(load_profile(file.stem).models.assistant is None for file in PROFILES.glob("*.yaml"))
    assert load_assistant(load_profile("tiny")) is None


def test_the_key_of_an_assistant_comes_from_the_environment(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"url": "https://models.example.com/v1", "model": "m", "key_variable": "KEY_OF_TESTS"}
    settings["models"] = settings["models"] | {"assistant": named}
    profile = load_profile(written(tmp_path, settings))
    for wrong in (None, " ", "ke\ny", "schlüssel"):
        monkeypatch.setenv("KEY_OF_TESTS", wrong) if wrong else monkeypatch.delenv("KEY_OF_TESTS", raising=False)
        with refused("missing-key", "models.assistant.key_variable") as error:
            load_assistant(profile)
        assert "KEY_OF_TESTS" in str(error.value)
    monkeypatch.setenv("KEY_OF_TESTS", "word\n")
    assistant = load_assistant(profile)
    assert assistant
    assert (assistant.model, assistant.seconds, assistant.depth, assistant.at_once) == ("m", 20, 16, 8)


@pytest.mark.parametrize("field", ["models", "embed", "imagine", "queries", "index", "models.vlm", "embed.max_actors"])
def test_a_missing_setting_is_named(tmp_path: Path, settings: dict[str, Any], field: str) -> None:
    *groups, name = field.split(".")
    place = settings
    for group in groups:
        place = place[group]
    del place[name]
    refusal(written(tmp_path, settings), "wrong-setting", field)


def test_more_actors_at_least_than_at_most_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    settings["imagine"] = settings["imagine"] | {"min_actors": 4, "max_actors": 2}
    message = refusal(written(tmp_path, settings), "wrong-setting", "imagine")
    assert "max_actors (2) is below min_actors (4)" in message


def test_all_wrong_settings_are_listed_at_once(tmp_path: Path, settings: dict[str, Any]) -> None:
    settings["embed"] = settings["embed"] | {"batch": 0}
    settings["index"] = settings["index"] | {"shards": 3}
    message = refusal(written(tmp_path, settings), "wrong-setting", "embed.batch")
    assert "2 wrong setting" in message
    assert "embed.batch" in message
    assert "index.shards" in message


def test_every_setting_says_what_it_is() -> None:
    for line in _undocumented(ast.parse(Path(profile_module.__file__).read_text(encoding="utf-8"))):
        pytest.fail(f"cluster/profile.py, line {line}: a setting without a docstring")


def _undocumented(module: ast.Module) -> Iterator[int]:
    for each in module.body:
        if isinstance(each, ast.ClassDef):
            for field, after in zip(each.body, [*each.body[1:], None], strict=True):
                text = after.value if isinstance(after, ast.Expr) else None
                if isinstance(field, ast.AnnAssign) and not (isinstance(text, ast.Constant) and text.value):
                    yield field.lineno
