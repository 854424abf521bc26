"""A suite of data sets: tables of what each evaluation says, published figures apart, and one whole report."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import Run
from errors import refused
from pictures import saved
from PIL import Image
from synthetic import D1, D2, directions, write_gallery, write_queries

from pipelines.evaluate import evaluate
from pipelines.suite import METHODS, Setting, measure_all, model_name
from pipelines.suite_report import Suite, suite
from pipelines.suite_tables import AVERAGE, as_latex, as_markdown, tables_of
from retrieval.aggregator import Aggregator
from retrieval.artifacts import Gallery, ModelRecord, QuerySet, TrainedAggregator
from retrieval.artifacts.manifests import SpentRecord
from retrieval.datasets.prepare import DatasetRecord
from retrieval.datasets.published import Published, published
from retrieval.datasets.recipe import recipe_names
from retrieval.folder import Folder
from retrieval.metrics import bootstrap_mean, stratified_mean

LABELS = [f"label {i}" for i in range(4)]


def write_target(folder: Path, name: str | None, seed: int, *, whole: bool = True) -> Path:
    """Write a gallery of four labels, queries of two kinds and, if it has a name, the record of a data set."""
    rng = np.random.default_rng(seed)
    labels = [label for label in LABELS for _ in range(6)]
    vlm_ND1, vision_ND2 = directions(24, D1, rng), directions(24, D2, rng)
    write_gallery(folder / "gallery", vlm_ND1, vision_ND2, labels=labels, source=str(folder))
    images = [directions(4, D2, rng) for _ in range(8)]
    kinds = ["name"] * 4 + ["description"] * 4
    records = Gallery.open(folder / "gallery").manifest.models
    records["generator"] = ModelRecord(uri="org/painter", fingerprint="sha256:g")
    query_set = write_queries(
        folder / "queries",
        directions(8, D1, rng),
        images,
        labels=LABELS * 2,
        kinds=kinds,
        thumbnail=saved("JPEG"),
        records=records,
    )
    if name:
        spent = SpentRecord(device="a <GPU>", queries=8, seconds={"text": 0.8, "imagine": 12.0, "embed": 4.0})
        QuerySet.publish(query_set.folder, query_set.manifest.model_copy(update={"spent": spent}))
        record = DatasetRecord(
            name=name,
            title=f"The set <{name}>",
            split="test",
            licence="none",
            layout="",
            source="",
            images=24,
            classes=4,
            expected_images=24 if whole else 48,
            expected_classes=4,
            whole=whole,
        )
        Folder(folder).write_json("dataset.json", record.model_dump(mode="json"))
    return folder


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("suite")
    return [
        write_target(folder / "a", "cifar10", 0),
        write_target(folder / "b", "dtd", 1, whole=False),
        write_target(folder / "own", None, 2),
    ]


@pytest.fixture(scope="module")
def made(targets: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return suite(targets, tmp_path_factory.mktemp("report"), address="none")


def report_of(made: Suite) -> str:
    return Path(made.files[0]).read_text(encoding="utf-8")


def test_cells_are_the_figures_of_each_evaluation(made: Suite, targets: list[Path]) -> None:
    assert [table.kind for table in made.tables] == ["name", "description"]
    for table in made.tables:
        assert table.datasets == ["cifar10", "dtd", "own"]
        for target, dataset in zip(targets, table.datasets, strict=True):
            gallery, queries = Gallery.open(target / "gallery"), QuerySet.open(target / "queries")
            alone = evaluate(gallery, queries, extra={"fixed": 0.1})
            for (_, system), cells in table.rows.items():
                assert cells[dataset].map == alone.mean(system, table.kind)
                assert (cells[dataset].gain is None) == (system == "text")
                if system != "text":
                    assert cells[dataset].gain == alone.gain(system, table.kind)


def test_average_is_of_all_data_sets_with_an_interval_of_all_their_queries(made: Suite) -> None:
    for table in made.tables:
        for cells in table.rows.values():
            means = [cells[name].map.mean for name in table.datasets]
            average = cells[AVERAGE]
            assert average.map.mean == pytest.approx(np.mean(means))
            assert average.map.low < average.map.mean < average.map.high
            assert average.queries == 12


def test_average_of_two_sets_alike_varies_less_than_either_by_the_root_of_two() -> None:
    values = np.random.default_rng(3).uniform(size=200)
    plain = bootstrap_mean(values)
    both = stratified_mean([values, values])
    assert both.high - both.low == pytest.approx((plain.high - plain.low) / np.sqrt(2), rel=0.1)


def test_row_that_lacks_a_data_set_has_no_average(targets: list[Path]) -> None:
    measured = measure_all(targets[:2], sheets=False)
    other = Setting("other/vlm", "other/vision", "other/painter")
    tables = tables_of([*measured, type(measured[0])(**{**vars(measured[0]), "setting": other})])
    cells = tables[0].rows[other, "text"]
    assert set(cells) == {"cifar10"}
    assert re.search(r"\| other/painter \| text \| \S+ \[\S+ \S+ \| – \| – \|", as_markdown(tables, published()))
    assert "& -- & -- " in as_latex(tables)


def test_aggregator_is_measured_where_its_models_are(targets: list[Path], tmp_path: Path) -> None:
    models = QuerySet.open(targets[0] / "queries").manifest.models
    fitting = _aggregator(tmp_path / "fits", models["vision"].fingerprint)
    foreign = _aggregator(tmp_path / "foreign", "sha256:another")
    [one] = measure_all(targets[:1], aggregators=[foreign, fitting], sheets=False)
    assert "trained" in one.evaluation.systems
    [without] = measure_all(targets[:1], aggregators=[foreign], sheets=False)
    assert "trained" not in without.evaluation.systems


def _aggregator(folder: Path, fingerprint: str) -> TrainedAggregator:
    network = Aggregator(D2, heads=1, layers=1)
    models = {"vision": ModelRecord(uri="x", fingerprint=fingerprint, dim=D2)}
    return TrainedAggregator.save(str(folder), network, models, {"labels": []})


# What is written


def test_parquet_has_a_row_for_each_cell_and_each_query(made: Suite) -> None:
    tables, results = (pq.read_table(made.files[i]).to_pylist() for i in (3, 4))
    assert len(tables) == 2 * 4 * 4  # kinds × methods × (data sets and their average)
    assert {row["method"] for row in tables} == {"text", "image mean", "joint", "fixed, λ = 0.1"}
    assert len(results) == 3 * 8 * 4
    assert {row["system"] for row in results} <= set(METHODS)
    assert {row["dataset"] for row in results} == {"cifar10", "dtd", "own"}


def test_published_figures_stand_apart(made: Suite) -> None:
    markdown = Path(made.files[1]).read_text()
    ours, theirs = markdown.split("## Published by others, not measured here")
    assert "2509.00177" in theirs
    assert "2509.00177" not in ours
    assert "| fixed | 0.927 | 0.480 |" in theirs
    html = report_of(made)
    block = html[html.index('<div class="published">') :].partition("</div></div>")[0]
    assert "0.927" in block
    assert "0.927" not in html.replace(block, "")


def test_published_figures_are_of_sets_that_there_are_recipes_of() -> None:
    assert set(published().figures) <= set(recipe_names())
    with pytest.raises(ValueError, match="dtd has 1 figures of 2 methods"):
        Published(source="s", note="n", methods=["a", "b"], figures={"dtd": [0.1]})


def test_report_is_one_file_that_loads_nothing(made: Suite) -> None:
    html = report_of(made)
    assert not re.search(r"""(?:src|href)=["'](?!data:image/(?:png|jpeg);base64,)""", html)
    assert "<script" not in html
    assert html.count("data:image/png;base64,") == 3 * 3  # curves, classes, gap
    assert "The set &lt;cifar10&gt;" in html
    assert "The set <cifar10>" not in html


def test_seconds_are_those_of_the_query_set_where_it_knows_them(made: Suite) -> None:
    first, _, own = made.measured
    assert [first.seconds(count) for count in (0, 1, 4)] == pytest.approx([0.1, 0.6, 2.1])  # K = 4
    assert own.seconds(1) is None
    html = report_of(made)
    assert html.count("took, on a &lt;GPU&gt;: text 0.100 s, imagine 1.500 s, embed 0.500 s; mean of 8 queries") == 2
    assert html.count("does not say what its images took") == 1


def test_sheets_are_of_the_classes_that_gain_and_lose_most(made: Suite) -> None:
    html = report_of(made)
    drawn = 0
    for one in made.measured:
        values = {name: one.evaluation.values(name, "name") for name in ("text", "fused")}
        gains = dict(zip(LABELS, values["fused"] - values["text"], strict=True))
        order = sorted(LABELS, key=gains.__getitem__)
        gained, lost = one.sheets
        assert [change.name for change in gained.changes] == [name for name in order[::-1] if gains[name] > 0][:3]
        assert [change.name for change in lost.changes] == [name for name in order if gains[name] < 0][:3]
        for sheet in filter(lambda sheet: sheet.changes, one.sheets):
            drawn += 1
            assert Image.open(BytesIO(sheet.picture)).format == "JPEG"
            assert [change.gain for change in sheet.changes] == pytest.approx([gains[c.name] for c in sheet.changes])
            assert f'alt="{", ".join(change.name for change in sheet.changes)}" src="data:image/jpeg' in html
    assert html.count("data:image/jpeg;base64,") == drawn > 3


def test_report_says_which_set_is_not_whole(made: Suite) -> None:
    [warning] = re.findall(r'<p class="warning">(.*?)</p>', report_of(made))
    assert "dtd" in warning
    assert "24 images of 4 classes were there, expected 48 images of 4 classes" in warning


def test_latex_has_no_character_that_latex_reads_otherwise(made: Suite) -> None:
    latex = Path(made.files[2]).read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
    assert r"$\lambda$ = 0.1" in latex
    assert not re.search(r"(?<!\\)_", latex)


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("local-dir:/a/b/demo/models/vlm", "demo/models/vlm"),
        ("/a/b/demo/models/generator", "demo/models/generator"),
        ("hf-hub:timm/vit_large?img_size=224", "timm/vit_large"),
        ("ViT-L-14/openai", "ViT-L-14/openai"),
    ],
)
def test_names_of_models(uri: str, name: str) -> None:
    assert model_name(uri) == name


# What is refused


def test_what_a_suite_is_not_made_of(targets: list[Path], tmp_path: Path) -> None:
    with refused("empty", "targets"):
        measure_all([])
    with refused("twice", "targets"):
        measure_all([targets[0], targets[0]], sheets=False)
    with refused("missing", "gallery"):
        measure_all([tmp_path])


def test_command_prints_the_tables(targets: list[Path], run: Run, tmp_path: Path) -> None:
    said = run("suite", str(targets[0]), "--report", str(tmp_path / "report"), "--address", "none")
    assert said.code == 0, said.err
    assert "queries by name" in said.out
    assert "average" not in said.out
    assert str(tmp_path / "report" / "report.html") in said.out
