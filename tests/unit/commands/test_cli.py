"""The command line, called in this process as a shell would: what it prints, and what it says of mistakes."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import Run, Said, one_line_error
from PIL import Image
from synthetic import D1, D2, directions, write_gallery, write_queries
from tiny_artifacts import Collection, write_words

from cluster import doctor
from retrieval.aggregator import Aggregator
from retrieval.query import QueryEncoder

COMMANDS = (
    *("demo", "dataset", "index", "queries", "benchmark", "evaluate", "suite", "train", "import-aggregator"),
    *("import-features", "search", "train-composer"),
    *("plan", "submit", "status", "doctor"),
)


@pytest.fixture
def settings(profile_settings: dict[str, Any], models_folder: Path) -> dict[str, Any]:
    """Settings of a profile that may lie anywhere; change them as you like."""
    settings = copy.deepcopy(profile_settings)
    for role in ("vlm", "vision"):
        settings["models"][role] = f"local-dir:{models_folder / role}"
    settings["models"]["generator"]["uri"] = str(models_folder / "generator")
    return settings


def saved(tmp_path: Path, settings: Any) -> Path:
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


# Help


def test_help_lists_the_commands_with_a_line_each(run: Run) -> None:
    said = run("--help")
    assert said.code == 0
    assert "Find every image of a category from words." in said.out
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b +[A-Z]\w+ .*[a-z]", said.out), command
    assert "Traceback" not in said.out


@pytest.mark.parametrize(
    "command", [*(name for name in COMMANDS if name != "dataset"), "dataset check", "dataset prepare"]
)
def test_each_command_explains_all_that_it_takes(run: Run, command: str) -> None:
    said = run(*command.split(), "--help")
    assert said.code == 0
    rows = [re.sub(r"[│┃|]", "", row).strip() for row in said.out.splitlines()]
    options = [row for row in rows if re.match(r"^\*?\s*(-{2}[a-z]|[A-Z][A-Z-]+ --)", row)]
    assert options
    for row in options:
        explained = re.sub(r"\[(default|required|choices).*", "", row)
        assert re.search(r" [A-Zλ][\w-]* ?.* [a-z]+", explained), f"no help for {row}"


def test_help_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from commands.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'ray', 'faiss', 'diffusers'} & set(sys.modules), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr.strip() == "set()"
    assert "search" in ended.stdout


def test_an_unknown_command_or_option_is_named(run: Run, collection: Collection) -> None:
    for arguments, named in ((["serach"], "serach"), (["search", "x", collection.folder, "--kk", "3"], "--kk")):
        said = run(*arguments)
        assert said.code == 2
        assert named in said.out + said.err
        assert "Traceback" not in said.out + said.err


def test_a_missing_argument_is_named(run: Run) -> None:
    said = run("search", "star")
    assert said.code == 2
    assert "target" in (said.out + said.err).lower()


# Mistakes


def test_a_profile_that_is_not_there_is_one_message(run: Run, collection: Collection) -> None:
    said = run("search", "star", collection.folder, "--profile", "papper")
    one_line_error(said, "there is no profile 'papper'", "tiny")
    assert len(said.err.strip().splitlines()) == 1


def test_a_wrong_setting_is_named(run: Run, collection: Collection, tmp_path: Path, settings: dict[str, Any]) -> None:
    settings["embed"]["batch"] = "many"
    file = saved(tmp_path, settings)
    one_line_error(run("search", "star", collection.folder, "--profile", file), str(file), "embed.batch", "'many'")


def test_brackets_in_a_message_are_printed_as_they_are(run: Run) -> None:
    one_line_error(run("search", "star", "out", "--profile", "[red]x[/]"), "'[red]x[/]'")


def test_the_demo_is_refused_without_ray_before_it_begins(run: Run, tmp_path: Path) -> None:
    one_line_error(run("demo", tmp_path / "demo-out", "--address", "none"), "service", "none")
    assert not (tmp_path / "demo-out").exists()


@pytest.mark.parametrize("command", ["demo", "index", "queries", "search"])
def test_every_command_that_takes_a_profile_refuses_a_wrong_one(run: Run, command: str, tmp_path: Path) -> None:
    arguments = {"demo": [], "search": ["a", "b"]}.get(command, [tmp_path / "a", tmp_path / "b"])
    one_line_error(run(command, *arguments, "--profile", "nothing"), "there is no profile 'nothing'")
    assert list(tmp_path.iterdir()) == []


def test_searching_what_is_not_there(run: Run, tmp_path: Path, profile_file: Path) -> None:
    said = run("search", "star", tmp_path / "nothing", "--profile", profile_file)
    one_line_error(said, "there is no index at", str(tmp_path / "nothing"), "mindseye index makes one")


def test_searching_with_other_models_than_the_index_was_made_with(
    run: Run, collection: Collection, tmp_path: Path, settings: dict[str, Any]
) -> None:
    from tiny_models import write_vision

    settings["models"]["vision"] = f"local-dir:{write_vision(tmp_path / 'other', seed=1)}"
    said = run("search", "star", collection.folder, "--profile", saved(tmp_path, settings))
    one_line_error(said, "vision model", "sha256:", str(tmp_path / "other"), "Use the profile")


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [("--weight", "1.5", "λ"), ("--k", "0", "k must be at least 1"), ("--images", "0", "at least 1")],
)
def test_a_setting_out_of_range(
    run: Run, collection: Collection, profile_file: Path, option: str, value: str, reason: str
) -> None:
    one_line_error(run("search", "star", collection.folder, "--profile", profile_file, option, value), reason)


def test_evaluating_what_is_not_there(run: Run, collection: Collection, tmp_path: Path) -> None:
    one_line_error(run("evaluate", tmp_path / "a", tmp_path / "b", tmp_path / "c"), "there is no gallery at")
    said = run("evaluate", collection.folder / "gallery", tmp_path / "b", tmp_path / "c")
    one_line_error(said, "there is no queryset at", "mindseye queries makes one")
    assert not (tmp_path / "c").exists()


def test_a_vocabulary_that_is_not_there(run: Run, tmp_path: Path, profile_file: Path) -> None:
    said = run("queries", tmp_path / "names.txt", tmp_path / "q", "--profile", profile_file)
    one_line_error(said, "there is no vocabulary", "names.txt")


# Search


def rows(said: Said) -> list[list[str]]:
    """The rows of the printed table, cells stripped."""
    table = [re.split("[│┃]", line)[1:-1] for line in said.out.splitlines() if "│" in line]
    return [[cell.strip() for cell in row] for row in table]


@pytest.mark.parametrize("mode", ["text", "visual", "fused"])
def test_search_prints_ranked_results(run: Run, collection: Collection, profile_file: Path, mode: str) -> None:
    said = run("search", "red striped star", collection.folder, "--k", 5, "--profile", profile_file, "--mode", mode)
    assert said.code == 0
    assert said.out.lstrip().startswith("red striped star")
    found = rows(said)
    assert [row[0] for row in found] == ["1", "2", "3", "4", "5"]
    scores = [float(row[1]) for row in found]
    assert scores == sorted(scores, reverse=True)
    for row in found:
        score, text, visual = map(float, row[1:4])
        assert score == pytest.approx(text + visual, abs=2e-4)
        assert (text == 0, visual == 0) == (mode == "visual", mode == "text")
        assert (collection.folder / "images" / row[5]).exists()
        assert row[5].startswith(f"{row[4]}/")
    assert "λ = " + {"text": "0.00", "visual": "1.00", "fused": "0.50"}[mode] in said.out
    assert "next:" in said.out


def test_search_for_and_against_texts_pictures_and_rows(run: Run, collection: Collection, profile_file: Path) -> None:
    image = next((collection.folder / "images").glob("*/2.png"))
    wanted, unwanted = collection.ids[4], collection.ids[0]
    options = ["--profile", profile_file, "--k", 24, "--images", 1]
    said = run(
        "search", "a star", collection.folder, "--image", image, "--like", wanted, "--without", "blue", "--unlike",
        unwanted, *options,
    )  # fmt: skip
    assert said.code == 0, said.err
    for name in ("a star", f"image {image.name}", f"like {wanted}", "without blue", f"unlike {unwanted}"):
        assert name in said.out
    ranked = [row for row in rows(said) if row[0]]  # the others go on with long cells
    assert len(ranked) == 24
    for row in ranked:
        assert float(row[1]) == pytest.approx(sum(float(cell) for cell in row[2:7]), abs=5e-4)
    alone = run("search", collection.folder, "--like", wanted, *options)
    assert rows(alone)[0][-1] == wanted
    assert f"mindseye search {collection.folder} --like" in alone.out


def test_search_by_a_dictionary(
    run: Run, collection: Collection, profile_file: Path, query_encoder: QueryEncoder, tmp_path: Path
) -> None:
    words = write_words(tmp_path, query_encoder).uri
    options = ["--profile", profile_file, "--k", 6, "--images", 1, "--like", collection.ids[4]]
    read = run("search", "blue", collection.folder, "--words", words, *options)
    assert read.code == 0, read.err
    assert "read as: " in read.out
    assert "blue" in read.out.split("searched for: ")[1].splitlines()[0]
    assert "to refine: " in read.out
    seen = run("search", collection.folder, "--words", words, "--focus", "colour", "--ignore", "shape", *options)
    assert seen.code == 0, seen.err
    unknown = run("search", collection.folder, "--words", words, "--ignore", "background", *options)
    assert unknown.code == 2
    assert "pattern, shape, colour" in unknown.err


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([], "TARGET"),
        (["--without", "blue"], "TARGET"),
        (["--like", "id-999"], "id-999"),
        (["--image", "nowhere.png"], "nowhere.png"),
    ],
)
def test_a_search_without_anything_to_find(
    run: Run, collection: Collection, profile_file: Path, given: list[str], named: str
) -> None:
    one_line_error(run("search", collection.folder, *given, "--profile", profile_file), named)


def test_an_index_itself_and_one_version_of_it_can_be_searched(
    run: Run, collection: Collection, profile_file: Path
) -> None:
    places = (collection.folder, collection.folder / "index", collection.folder / "index" / "000001")
    answers = [rows(run("search", "star", place, "--mode", "text", "--profile", profile_file)) for place in places]
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]) == 10


def test_search_saves_a_contact_sheet(run: Run, collection: Collection, profile_file: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    said = run("search", "star", collection.folder, "--profile", profile_file, "--k", 4, "--sheet", sheet)
    assert said.code == 0
    assert f"  {sheet}" in said.out.splitlines()
    with Image.open(sheet) as image:
        colours = image.convert("RGB").getcolors(10**6)
    assert image.format == "PNG"
    assert colours is not None
    assert len(colours) > 1000  # four photos, not four grey squares


def test_a_contact_sheet_that_cannot_be_written_is_one_message(
    run: Run, collection: Collection, profile_file: Path, tmp_path: Path
) -> None:
    sheet = tmp_path / "nowhere" / "sheet.png"
    said = run("search", "star", collection.folder, "--profile", profile_file, "--mode", "text", "--sheet", sheet)
    one_line_error(said, str(sheet))


@pytest.mark.parametrize("text", ["[bold]star[/bold]", "a [/] b", "star 'n' \"stripe\"", "étoile ★"])
def test_a_text_is_taken_as_it_is(run: Run, collection: Collection, profile_file: Path, text: str) -> None:
    said = run("search", text, collection.folder, "--mode", "text", "--profile", profile_file)
    assert said.code == 0
    assert text in said.out


def test_a_degraded_answer_says_so(
    run: Run, collection: Collection, tmp_path: Path, settings: dict[str, Any], models_folder: Path
) -> None:
    from tiny_models import write_generator

    settings["models"]["generator"]["uri"] = str(write_generator(tmp_path / "prudish", prudish=True))
    said = run("search", "star", collection.folder, "--profile", saved(tmp_path, settings))
    assert said.code == 0
    assert "ranked with real images of the gallery: no image could be imagined (safety)" in said.out
    assert len(rows(said)) == 10


def test_without_a_generator_a_search_has_real_images_and_queries_have_none(
    run: Run, collection: Collection, tmp_path: Path, settings: dict[str, Any]
) -> None:
    settings["models"]["generator"] = None
    nothing = saved(tmp_path, settings)
    one_line_error(run("search", "star", collection.folder, "--profile", nothing), "serve.generator must be")
    settings["serve"] = settings.get("serve", {}) | {"generator": {"min_replicas": 0, "max_replicas": 0}}
    profile = saved(tmp_path, settings)
    ranked_again = ("--fuse", "rrf", "--rerank", "neighbours", "--depth", "5")
    said = run("search", "star", collection.folder, "--profile", profile, *ranked_again)
    assert said.code == 0
    assert "ranked with real images of the gallery: no image could be imagined (there is no generator)" in said.out
    assert "second stage" in said.out
    (tmp_path / "words.txt").write_text("star\n")
    said = run("queries", tmp_path / "words.txt", tmp_path / "queries", "--profile", profile)
    one_line_error(said, "models.generator")


# Training


@pytest.mark.ray
@pytest.mark.slow
def test_training_ends_with_what_was_made_and_evaluation_refuses_the_same_labels(
    run: Run, tmp_path: Path, profile_file: Path, ray_session: None
) -> None:
    rng = np.random.default_rng(0)
    labels = [f"label {i}" for i in range(8)]
    gallery = write_gallery(tmp_path / "gallery", directions(40, D1, rng), directions(40, D2, rng), labels=labels * 5)
    text, images = directions(10, D1, rng), [directions(3, D2, rng) for _ in range(10)]
    queries = write_queries(tmp_path / "queries", text, images, labels=[*labels, None, "no such"])
    target = tmp_path / "aggregator"
    said = run("train", gallery.uri, queries.uri, target, "--profile", profile_file)
    assert said.code == 0, said.err
    assert "left out: 1 queries without a label, 0 without an image" in said.out
    assert "left out: 1 labels without a gallery image: no such" in said.out
    assert re.search(r"mAP on held-out labels: 0\.\d{3} before training, 0\.\d{3} at step \d+; λ = 0\.\d{3}", said.out)
    for made in (target, target / "metrics.jsonl", target / "curves.png"):
        assert f"  {made}" in said.out.splitlines()
        assert made.exists()
    refused = run("evaluate", gallery.uri, queries.uri, tmp_path / "report", "--aggregator", target)
    one_line_error(refused, "8 labels of the training set are also in the evaluation set", "label 0, label 1")


def test_import_aggregator_says_what_it_took_over(run: Run, collection: Collection, tmp_path: Path) -> None:
    network = Aggregator(collection.vision_ND2.shape[1])
    state = {f"self_attn.{name}": tensor for name, tensor in network.state_dict().items() if name != "lamda"}
    torch.save(state | {"lamda": torch.zeros(1)}, tmp_path / "released.pth")
    target = tmp_path / "aggregator"
    said = run("import-aggregator", tmp_path / "released.pth", target, collection.gallery.uri)
    assert said.code == 0
    assert f"2 layers of {network.dim} dimensions, λ = 0.500" in said.out
    assert f"  {target}" in said.out.splitlines()


# Doctor


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with space, whatever this one has."""
    usage = SimpleNamespace(free=100 * 2**30, total=100 * 2**30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)


@pytest.mark.usefixtures("roomy")
def test_doctor_finds_a_good_machine_and_profile_in_order(run: Run, profile_file: Path) -> None:
    said = run("doctor", "--profile", profile_file)
    assert said.code == 0
    assert "FAIL" not in said.out
    for what in ("Python", "ray", "torch", "faiss", "device", "disk", "shared memory", "vlm", "vision", "generator"):
        assert re.search(rf"^ok   {what}: .+", said.out, re.MULTILINE), what
    assert "mindseye demo" in said.out.split("next:")[1]


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize("role", ["vlm", "vision", "generator"])
def test_doctor_names_a_missing_model_and_a_remedy(
    run: Run, tmp_path: Path, settings: dict[str, Any], role: str
) -> None:
    gone = tmp_path / "gone"
    if role == "generator":
        settings["models"]["generator"]["uri"] = str(gone)
    else:
        settings["models"][role] = f"local-dir:{gone}"
    said = run("doctor", "--profile", saved(tmp_path, settings))
    assert said.code == 1
    failures = [line for line in said.out.splitlines() if line.startswith("FAIL")]
    assert len(failures) == 1
    assert failures[0].startswith(f"FAIL {role}: ")
    assert str(gone) in said.out
    assert f"correct models.{role} in the profile" in said.out
    assert "next:" not in said.out
    assert "Traceback" not in said.out + said.err


@pytest.mark.usefixtures("roomy")
def test_doctor_names_a_damaged_model(run: Run, tmp_path: Path, settings: dict[str, Any], models_folder: Path) -> None:
    shutil.copytree(models_folder / "vision", tmp_path / "vision")
    weights = tmp_path / "vision" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    settings["models"]["vision"] = f"local-dir:{tmp_path / 'vision'}"
    said = run("doctor", "--profile", saved(tmp_path, settings))
    assert said.code == 1
    assert re.findall(r"^FAIL (\w+)", said.out, re.MULTILINE) == ["vision"]


@pytest.mark.usefixtures("roomy")
def test_doctor_names_a_wrong_profile(run: Run, tmp_path: Path, settings: dict[str, Any]) -> None:
    settings["queries"]["templates"] = "imagenett"
    said = run("doctor", "--profile", saved(tmp_path, settings))
    assert said.code == 1
    assert "FAIL profile" in said.out
    assert "queries.templates" in said.out
    assert "correct the profile, or give another" in said.out


def test_doctor_says_what_is_missing_of_the_machine(
    run: Run, profile_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=2**20, total=64 * 2**20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(doctor, "SHARED_MEMORY", Path("/"))
    version = doctor.importlib.metadata.version

    def without_timm(package: str) -> str:
        if package == "timm":
            raise doctor.importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(doctor.importlib.metadata, "version", without_timm)
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(doctor, "_models", lambda _: iter(()))
    said = run("doctor", "--profile", profile_file)
    assert said.code == 1
    assert re.findall(r"^FAIL ([\w ]+):", said.out, re.MULTILINE) == ["timm", "faiss", "disk", "shared memory"]
    for remedy in ("make install", "pip install -e .", "free some space", "--shm-size"):
        assert remedy in said.out
