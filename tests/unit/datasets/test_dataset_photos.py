"""Real photographs: what is at hand of three data sets is recognised, and goes all the way to a report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import job
from pipelines.queries import imagine
from pipelines.suite_report import suite
from pipelines.vocabulary import read_templates
from retrieval.datasets.check import check_counts
from retrieval.datasets.prepare import prepare
from retrieval.datasets.recipe import load_recipe

SETS = {
    "cifar10": ("cifar10_test.parquet", 10_000, 10),
    "caltech101": ("caltech101_25pc.parquet", 2_500, 100),
    "tiny-imagenet": ("tiny_imagenet_val.parquet", 10_000, 200),
}
"""The file, and how many images of how many classes are in it."""


@pytest.mark.parametrize("name", SETS)
def test_what_is_at_hand_is_recognised(name: str, shared_data: Callable[[str], Path]) -> None:
    file, images, classes = SETS[name]
    checked = check_counts(load_recipe(name), shared_data(file))
    assert len(checked.contents.images) == images
    assert sum(count.found > 0 for count in checked.counts) == classes
    assert checked.is_whole == (name != "caltech101")
    missing = [finding.name for finding in checked.findings if finding.kind == "class-missing"]
    assert missing == (["Faces_easy"] if name == "caltech101" else [])


@pytest.mark.long
def test_photographs_go_all_the_way_to_a_report(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    """Of the demo's small models, which know nothing of photographs: that each step reads what the one before wrote."""
    targets = []
    for name, (file, images, _) in SETS.items():
        some = pq.read_table(shared_data(file)).take(pa.array(range(0, images, images // 100)))
        pq.write_table(some, tmp_path / f"{name}.parquet")
        made = prepare(load_recipe(name), tmp_path / f"{name}.parquet", tmp_path / name, partial=True)
        job.index(made.record.source, tmp_path / name, address="none")
        templates = read_templates(made.templates)
        queries = tmp_path / name / "queries"
        imagined = imagine(made.queries, queries, images=1, templates=templates, address="none")
        assert imagined.manifest.templates == templates
        targets.append(tmp_path / name)
    made_of_all = suite(targets, tmp_path / "report", address="none")
    [table] = made_of_all.tables
    assert table.datasets == list(SETS)
    for cells in table.rows.values():
        assert all(0 < cell.map.mean < 1 for cell in cells.values())
    html = Path(made_of_all.files[0]).read_text(encoding="utf-8")
    assert "They have seen nothing but rendered shapes" in html
    assert "Caltech-101 is not whole: 100 images of 100 classes were there" in html
