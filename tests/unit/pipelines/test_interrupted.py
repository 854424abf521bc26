"""A job that is interrupted at each of its steps in turn, and run again each time: little is done twice, and the end is
that of one that was not. Real kills, of drivers and workers, are in tests/faults.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import pipelines.embedding
import pipelines.gallery
import pipelines.publication
import pipelines.shards
from cluster.profile import Profile
from demo.grammar import categories
from demo.world import render
from pipelines import job
from pipelines.batches import unfinished_batches
from pipelines.embedding import PartsSink, count_written, rows_per_block
from pipelines.job import IndexReport
from retrieval.artifacts import Index
from retrieval.artifacts.columns import matrix
from retrieval.folder import Folder

pytestmark = pytest.mark.usefixtures("in_process")

INPUTS = 160
BLOCK = rows_per_block(INPUTS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "images"
    for i in range(INPUTS - 1):
        file = folder / f"class {i % 5}" / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        render(categories()[i % 40], i).save(file)
    (folder / "empty.jpg").write_bytes(b"")
    return folder


def interrupt(call: int = 1, function: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A function that does as another until its n-th call, which ends the job."""
    calls = iter(range(1, call + 1))

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        assert function
        return function(*arguments, **options)

    return interrupted


STEPS: dict[str, tuple[Any, str, int]] = {
    "inputs are listed": (pipelines.gallery, "embed", 1),
    "a block is written": (PartsSink, "write", 2),
    "all are embedded": (pipelines.gallery, "commit_batch", 1),
    "a shard is built": (pipelines.shards, "_build_shard", 2),
    "all shards are built": (pipelines.publication, "measure_recall", 1),
    "recall is measured": (Index, "publish", 1),
}
"""What a job is interrupted after, and which call of which function does not return."""


def test_a_job_that_is_interrupted_at_every_step(
    source: Path, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[int] = []
    sound = pipelines.embedding.Embedder.__call__

    def counting(self: Any, table: pa.Table) -> pa.Table:
        embedded.append(table.num_rows)
        return sound(self, table)

    monkeypatch.setattr(pipelines.embedding.Embedder, "__call__", counting)
    target, logged = tmp_path / "target", []

    def run() -> IndexReport:
        embedded.clear()
        logged.clear()
        return job.index(source, target, profile, shards=3, address="none", log=logged.append)

    expected = {"a block is written": 2 * BLOCK, "all are embedded": INPUTS - BLOCK}
    for step, (owner, name, call) in STEPS.items():
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupt(call, getattr(owner, name)))
            with pytest.raises(KeyboardInterrupt):
                run()
        assert sum(embedded) == expected.get(step, 0), step
        assert not (target / "index/000001/manifest.json").exists()
        assert not Folder(target).files(".holds")
        if step == "a block is written":
            [batch] = unfinished_batches(Folder(target / "gallery"))
            assert count_written(batch) == BLOCK
        if step == "all shards are built":
            assert logged == ["resuming index version 000001: 1 of 3 shards are done"]
    resumed = run()
    assert not embedded
    assert logged == ["resuming index version 000001: 3 of 3 shards are done"]
    assert resumed.index.version == "000001"
    check_same(resumed, job.index(source, tmp_path / "undisturbed", profile, shards=3, address="none"))


def check_same(one: IndexReport, other: IndexReport) -> None:
    first, second = (pa.concat_tables(each.gallery.tables()).sort_by("id") for each in (one, other))
    for name in ("id", "path", "label", "width", "height"):
        assert first[name].to_pylist() == second[name].to_pylist()
    assert first.num_rows == len(set(first["id"].to_pylist())) == INPUTS - 1
    for name in ("vlm", "vision"):
        np.testing.assert_allclose(matrix(first[name]), matrix(second[name]), atol=2**-10, rtol=0)
    assert one.gallery.rejected().equals(other.gallery.rejected())
    ids = [sorted(id for shard in each.index.shards() for id in shard.rows["id"].to_pylist()) for each in (one, other)]
    assert ids[0] == ids[1] == first["id"].to_pylist()
