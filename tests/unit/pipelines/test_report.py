"""What an evaluation leaves for people: files, a plot, and a table for the terminal."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from synthetic import directions, write_queries

from commands.results import results_table
from pipelines.evaluate import Evaluation
from pipelines.report import measure, summary, write_report
from pipelines.truth import LeftOut
from retrieval.aggregator import Aggregator
from retrieval.artifacts import TrainedAggregator
from retrieval.metrics import MEASURES

SYSTEMS = ("text", "visual", "fused")
KINDS = ("name", "description")
LEFT_OUT = LeftOut(2, ["no such label"], ["nothing"], ["row a", "row b"], ["row c"])


def evaluation(values: np.ndarray) -> Evaluation:
    """A result of these APs, (systems, kinds, queries), and of other measures that follow from them."""
    rows = [
        {
            "query": f"{kind}-{q}",
            "text": f"text {q}",
            "kind": kind,
            "label": f"label {q}",
            "system": system,
            "positives": 3,
            "ap": values[s, k, q],
            "ap_step": values[s, k, q] / 2,
            **{name: 0.3 for name in MEASURES if name not in ("ap", "ap_step")},
        }
        for s, system in enumerate(SYSTEMS)
        for k, kind in enumerate(KINDS)
        for q in range(values.shape[2])
    ]
    weights = {"text": 0.0, "visual": 1.0, "fused": 0.25}
    return Evaluation(pa.Table.from_pylist(rows), weights, 1234, LEFT_OUT)


SHEET = b"a contact sheet"
VALUES = np.random.default_rng(0).uniform(size=(3, 2, 5))


def picture(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    assert image.format == "PNG"
    return image.convert("RGB")


def encoded(colour: tuple[int, int, int]) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (30, 20), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_files_are_written_and_hold_the_figures(tmp_path: Path) -> None:
    result = evaluation(VALUES)
    files = [Path(name) for name in write_report(result, lambda: SHEET, tmp_path / "new" / "report")]
    assert [file.name for file in files] == ["results.parquet", "summary.json", "gains.png", "contact-sheet.png"]
    assert pq.read_table(files[0]).equals(result.table)
    assert files[3].read_bytes() == SHEET
    content = json.loads(files[1].read_text())
    assert content == json.loads(json.dumps(summary(result)))
    assert (content["gallery_rows"], content["weights"]["fused"], content["unlabelled"]) == (1234, 0.25, 2)
    assert content["labels_without_image"] == ["no such label"]
    assert content["queries_without_relevant"] == ["nothing"]
    assert (content["relevant_not_in_gallery"], content["junk_not_in_gallery"]) == (["row a", "row b"], ["row c"])
    fused = content["kinds"]["description"]["systems"]["fused"]
    assert content["kinds"]["description"]["queries"] == 5
    assert fused["ap"]["mean"] == pytest.approx(VALUES[2, 1].mean())
    assert fused["ap_step"]["mean"] == pytest.approx(VALUES[2, 1].mean() / 2)
    assert set(fused) == {*MEASURES, "gain_over_text"}
    assert fused["ap_at_50"] == {"mean": pytest.approx(0.3)}
    assert fused["gain_over_text"]["mean"] == pytest.approx((VALUES[2, 1] - VALUES[0, 1]).mean())
    assert fused["gain_over_text"]["low"] <= fused["gain_over_text"]["mean"] <= fused["gain_over_text"]["high"]
    plot = picture(files[2].read_bytes())
    assert min(plot.size) > 300
    assert len(plot.getcolors(maxcolors=2**24) or []) > 10


def test_results_are_written_before_a_picture_is_read(tmp_path: Path) -> None:
    def unreadable() -> bytes:
        raise OSError("the source is away")

    with pytest.raises(OSError, match="away"):
        write_report(evaluation(VALUES), unreadable, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"results.parquet", "summary.json", "gains.png"}


@pytest.mark.parametrize("queries", [1, 3, 7])
def test_report_of_queries_that_all_do_alike(tmp_path: Path, queries: int) -> None:
    for value in (0.1, 1 / 3, 0.7, 1.0):
        write_report(evaluation(np.full((3, 2, queries), value)), lambda: SHEET, tmp_path)


def test_table_has_a_line_for_each_kind_and_system() -> None:
    result = evaluation(VALUES)
    table = results_table(result, "the title")
    assert table.row_count == len(SYSTEMS) * len(KINDS)
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(table)
    lines = console.export_text().splitlines()
    assert "the title" in lines[0]
    fused = [line for line in lines if "fused" in line]
    for line, kind in zip(fused, range(2), strict=True):
        assert f"{VALUES[2, kind].mean():.3f}" in line
        assert f"{(VALUES[2, kind] - VALUES[0, kind]).mean():+.3f}" in line


@pytest.mark.parametrize("trained", [False, True])
def test_measuring_is_one_call(collection: Any, tmp_path: Path, trained: bool) -> None:
    dims = collection.vlm_ND1.shape[1], collection.vision_ND2.shape[1]
    rng = np.random.default_rng(0)
    category = next(collection.gallery.tables(["label"]))["label"][0].as_py()
    records = collection.gallery.manifest.models
    images = [directions(2, dims[1], rng) for _ in range(3)]
    labels = [category, None, "no such label"]
    thumbnail = encoded((10, 20, 200))
    queries = write_queries(
        tmp_path / "q", directions(3, dims[0], rng), images, labels=labels, thumbnail=thumbnail, records=records
    )
    aggregator = None
    if trained:
        network = Aggregator(dims[1]).eval()
        aggregator = TrainedAggregator.save(tmp_path / "a", network, {"vision": records["vision"]}, {})
    report = tmp_path / "report"
    measured = measure(collection.gallery.uri, queries.uri, report, aggregator=aggregator, weight=0.3, address="none")
    result = measured.evaluation
    assert result.systems == ["text", "visual", "fused"] + ["trained"] * trained
    assert result.weights["fused"] == 0.3
    assert (result.left_out, result.gallery_rows) == (LeftOut(1, ["no such label"], [], [], []), 24)
    assert measured.files == [
        str(report / name) for name in ("results.parquet", "summary.json", "gains.png", "contact-sheet.png")
    ]
    assert pq.read_table(measured.files[0]).equals(result.table)
    picture(Path(measured.files[3]).read_bytes())
