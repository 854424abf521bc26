"""``mindseye plan``, as a shell would call it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from command_line import Run, one_line_error
from PIL import Image

from pipelines import calibration

BILLION = ("plan", "--images", "1e9", "--profile", "paper", "--vocabulary", "1e5", "--load", 50, "--hits", 0.9)


def test_without_rates_what_depends_on_them_is_not_known(run: Run) -> None:
    said = run(*BILLION)
    assert said.code == 0
    assert "500 shard(s) of 2,000,000 rows, IVF5656,SQ8" in said.out
    assert "give rates.embed_rows_per_s or --calibrate" in said.out
    assert "give rates.source_bytes" in said.out
    assert "assumed:\n  row_bytes = 103 " in said.out
    assert "vlm_dim = 768\n" in said.out


def test_json_has_every_figure_or_what_it_lacks(run: Run, tmp_path: Path) -> None:
    rates = tmp_path / "rates.yaml"
    rates.write_text("embed_rows_per_s: 500\ngpu_hour: 1\nimagine_images_per_s: 2\n")
    said = run(*BILLION, "--rates", rates, "--rate", "gpu_hour=2", "--rate", "train_steps_per_s=10", "--json")
    assert said.code == 0
    report = json.loads(said.out)
    assert report["cut"] == {"shards": 500, "rows": 2_000_000, "dim": 1792, "factory": "IVF5656,SQ8"}
    for figure in report["figures"]:
        assert (figure["value"] is None) == bool(figure["missing"])
        assert figure["value"] is None or math.isfinite(figure["value"])
    figures = {(figure["section"], figure["name"], figure["unit"]): figure["value"] for figure in report["figures"]}
    hours = (1e9 / 500 + 1e5 * 16 / 2 + 400 / 10) / 3600
    assert figures["cost", "jobs, GPUs", ""] == pytest.approx(2 * hours)
    assert figures["storage", "gallery", "B"] == pytest.approx(1e9 * (2 * 1792 + 39))
    assert report["rates"]["gpu_hour"] == {"value": 2, "origin": "given"}
    assert report["rates"]["row_bytes"]["origin"] == "assumed"
    assert report["rates"]["cpu_hour"] == {"value": None, "origin": "not known"}


def test_calibration_measures_what_it_says_it_does(
    run: Run, profile_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "SECONDS", 0.0)
    monkeypatch.setattr(calibration, "SHARD_ROWS", 2000)
    for number in range(3):
        Image.new("RGB", (80, 60), (number * 80, 90, 200)).save(tmp_path / f"{number}.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    options = ("--calibrate", "--source", tmp_path, "--rate", "texts_per_s=1000", "--json")
    said = run("plan", "--images", 5000, "--profile", profile_file, "--vocabulary", 10, "--load", 1, *options)
    assert said.code == 0, said.err
    report = json.loads(said.out)
    measured = {name for name, rate in report["rates"].items() if rate["origin"] == "measured"}
    from cluster.rates import CALIBRATED

    assert measured == CALIBRATED - {"texts_per_s"} | {"source_bytes"}
    assert report["rates"]["texts_per_s"] == {"value": 1000, "origin": "given"}
    for name in measured | {"texts_per_s"}:
        assert f"measured: {name} = " in said.err
    files = [(tmp_path / f"{number}.jpg").stat().st_size for number in range(3)]
    assert report["rates"]["source_bytes"]["value"] == pytest.approx(sum(files) / 3)


def test_a_calibration_of_no_images_is_refused(run: Run, profile_file: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    said = run("plan", "--images", 10, "--profile", profile_file, "--calibrate", "--source", tmp_path)
    one_line_error(said, "none of the first images of", "can be used")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--images", 0), "images must be from 1 to 1e+12"),
        (("--images", 1, "--hits", 2), "hits must be from 0 to 1"),
        (("--images", 1, "--load", -1), "load must be from 0 to"),
        (("--images", "inf"), "images must be from 1"),
        (("--images", 1, "--load", "nan"), "load must be from 0"),
        (("--images", 1, "--rate", "fast"), "NAME=NUMBER"),
        (("--images", 1, "--rate", "fast=1"), "fast"),
    ],
)
def test_what_cannot_be_planned_is_said(run: Run, options: tuple[object, ...], part: str) -> None:
    one_line_error(run("plan", *options), part)
