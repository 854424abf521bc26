"""The whole demo, small and in this process, and what it does with the folder that it is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from errors import refused
from PIL import Image

from cluster.profile import Profile
from demo.collection import FIRST_IMAGE, vocabulary
from demo.run import WEIGHTS, Size, run_demo
from demo.world import render, split
from retrieval.artifacts import Gallery, Index, QuerySet, TrainedAggregator
from retrieval.prompts import KINDS

SIZE = Size(unseen_categories=3, unseen_images=4, fitting_categories=4, fitting_images=3, shards=2)


@pytest.mark.slow
def test_demo_runs_from_nothing_and_over_an_earlier_one(tmp_path: Path, profile: Profile) -> None:
    folder = tmp_path / "demo-out"
    for leftover in (".mindseye-demo", "gallery/manifest.json", "queries/manifest.json", "images/unseen/old/1.jpg"):
        (folder / leftover).parent.mkdir(parents=True, exist_ok=True)
        (folder / leftover).write_text("of an earlier demo")
    logged: list[str] = []
    result = run_demo(folder, profile, logged.append, SIZE)

    names = sorted(category.name for category in split("unseen")[:3])
    gallery, queries = Gallery.open(folder / "gallery"), QuerySet.open(folder / "queries")
    assert sorted(path.name for path in (folder / "images/unseen").iterdir()) == names
    assert (gallery.manifest.rows, gallery.manifest.rejected) == (12, {})
    assert (queries.manifest.queries, queries.manifest.images) == (9, profile.queries.images)
    assert sorted(set(queries.table(["id", "label"])["label"].to_pylist())) == names
    assert Gallery.open(folder / "fitting/gallery").manifest.rows == 12

    words = QuerySet.open(folder / "words")
    assert (words.manifest.queries, words.manifest.aspects) == (30, ["colour", "pattern", "shape"])
    assert not set(words.table(["id", "text"])["text"].to_pylist()) & set(names)

    index = Index.open(folder / "index")
    assert index.mean() is not None
    assert (index.uri, index.version, index.manifest.rows) == (result.index.uri, "000001", 12)
    assert sum(len(shard) for shard in index.shards()) == 12

    evaluation = result.evaluation
    assert evaluation.weights["fused"] in WEIGHTS
    assert f"λ = {evaluation.weights['fused']}" in logged
    assert evaluation.kinds == list(KINDS)
    assert evaluation.systems == ["text", "visual", "fused", "trained"]
    assert evaluation.table.num_rows == 9 * 4
    assert set(evaluation.table["positives"].to_pylist()) == {4}

    reports = {Path(file).name: Path(file) for file in result.made}
    assert set(reports) == {"results.parquet", "summary.json", "gains.png", "contact-sheet.png", "aggregator"}
    learned = set(TrainedAggregator.open(reports["aggregator"]).learned_labels)
    assert learned == {category.name for category in split("fitting")[:4]}
    assert pq.read_table(reports["results.parquet"]).equals(evaluation.table)
    Image.open(reports["contact-sheet.png"]).load()

    category = split("unseen")[0]
    rendered = np.asarray(Image.open(folder / "images/unseen" / category.name / "0000.jpg"), int)
    assert np.abs(rendered - np.asarray(render(category, FIRST_IMAGE), int)).mean() < 12  # JPEG


def test_folder_of_something_else_is_left_alone(tmp_path: Path, profile: Profile) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with refused("not-empty", "folder"):
        run_demo(tmp_path, profile, print, SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_vocabulary_has_every_kind_of_every_category() -> None:
    categories = split("unseen")[:4]
    entries = vocabulary(categories, KINDS)
    assert [(entry.kind, entry.label) for entry in entries] == [(kind, c.name) for c in categories for kind in KINDS]
    for name, description, both in zip(entries[::3], entries[1::3], entries[2::3], strict=True):
        assert name.text == name.label
        assert name.text not in description.text
        assert both.text == f"{name.text}, {description.text}"
    assert vocabulary(categories, KINDS) == entries
