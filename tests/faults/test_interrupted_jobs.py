"""Indexing jobs on Ray that are killed, and resumed: the rows and hits of one that was not, and little done twice.

Each kind of death is met once: of the driver, of workers, of a node. What a job does when it is run again at each of
its steps is in tests/unit/pipelines/test_interrupted.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from demo.grammar import categories
from demo.world import render
from pipelines import job
from pipelines.embedding import count_written, rows_per_block
from retrieval.artifacts import Gallery, Index
from retrieval.artifacts.columns import matrix
from retrieval.folder import Folder
from retrieval.fusion import fused_query
from retrieval.index.hits import merge_topk

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500)]

INPUTS = 260
BLOCK = rows_per_block(INPUTS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "images"
    for i in range(INPUTS - 2):
        file = folder / f"class {i % 5}" / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        render(categories()[i % 40], i).save(file)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"not a picture")
    return folder


class Run:
    """One target, and jobs on it."""

    def __init__(self, source: Path, folder: Path, profile: Path) -> None:
        self.source, self.target, self.profile, self.log = source, folder / "target", profile, folder / "log"
        self.by_last_job = 0
        """Inputs that went through an embedder in the last job."""

    def job(self, *moments: str) -> int:
        """Run the job, killed at these moments; return its exit code, when nothing of it is left."""
        mark = uuid.uuid4().hex
        environment = os.environ | {"MINDSEYE_TEST_RUN": mark, "RAY_health_check_period_ms": "1000"}
        environment |= {"RAY_health_check_failure_threshold": "3", "PYTHONPATH": str(Path(__file__).parents[2])}
        script = Path(__file__).parent / "interrupted_job.py"
        arguments = [self.source, self.target, self.profile, self.log, *moments]
        output = self.log.with_suffix(".output")
        before = self.embedded
        try:
            with output.open("a") as stream:
                command = [sys.executable, *map(str, [script, *arguments])]
                done = subprocess.run(command, env=environment, stderr=stream, check=False, timeout=600)
        finally:
            self._wait_until_gone(mark)
        print(output.read_text())
        self.by_last_job = self.embedded - before
        return done.returncode

    @staticmethod
    def _wait_until_gone(mark: str) -> None:
        begun = time.monotonic()
        while True:
            left = []
            for process in psutil.process_iter():
                try:
                    if process.environ().get("MINDSEYE_TEST_RUN") == mark:
                        left.append(process)
                except psutil.Error:
                    continue
            if not left:
                return
            for process in left if time.monotonic() - begun > 10 else ():
                with suppress(psutil.Error):
                    process.kill()  # Ray's agents ask for a minute where their driver is
            time.sleep(0.2)

    @property
    def embedded(self) -> int:
        """Inputs that went through an embedder, those that did so twice counted twice."""
        return sum(int(line) for line in self.log.read_text().split()) if self.log.exists() else 0

    @property
    def noted(self) -> int:
        """Inputs that are noted as written in a batch that is not complete."""
        return count_written(Folder(self.target / "gallery/batches/000001"))

    @property
    def gallery(self) -> Gallery:
        return Gallery.open(self.target / "gallery")

    @property
    def index(self) -> Index:
        return Index.open(self.target / "index")


@pytest.fixture(scope="module")
def undisturbed(source: Path, profile_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Made in this process, which makes the same as Ray: see tests/ray/test_executor.py."""
    run = Run(source, tmp_path_factory.mktemp("undisturbed"), profile_file)
    job.index(source, run.target, profile_file, shards=3, address="none")
    return run


@pytest.fixture
def run(source: Path, profile_file: Path, tmp_path: Path) -> Run:
    return Run(source, tmp_path, profile_file)


def check_same(run: Run, other: Run) -> None:
    """Check that two runs have made the same rows, vectors and index."""
    one, two = (pa.concat_tables(each.gallery.tables()).sort_by("id") for each in (run, other))
    for name in ("id", "path", "label", "width", "height"):
        assert one[name].to_pylist() == two[name].to_pylist()
    assert one.num_rows == len(set(one["id"].to_pylist())) == INPUTS - 2
    for name in ("vlm", "vision"):
        # One unit in the last place of a float16: batches are cut otherwise, and kernels round otherwise for them.
        np.testing.assert_allclose(matrix(one[name]), matrix(two[name]), atol=2**-10, rtol=0)
    reasons = [{row["path"]: row["reason"] for row in each.gallery.rejected().to_pylist()} for each in (run, other)]
    assert reasons[0] == reasons[1] == {"empty.jpg": "empty", "text.jpg": "not-an-image"}
    assert run.gallery.rejected().num_rows == 2
    queries = fused_query(matrix(one["vlm"])[::40], matrix(one["vision"])[::40], 0.5)
    found = [merge_topk([shard.search(queries, 5) for shard in each.index.shards()], 5) for each in (run, other)]
    np.testing.assert_allclose(found[0].scores, found[1].scores, atol=2**-9, rtol=0)
    assert found[0].ids[:, 0].tolist() == found[1].ids[:, 0].tolist() == one["id"].to_pylist()[::40]
    assert run.index.manifest.rows == INPUTS - 2
    assert run.index.version == "000001"


def test_a_driver_that_is_killed(run: Run, undisturbed: Run) -> None:
    assert run.job("driver", "slowly") == -signal.SIGKILL
    assert 0 < run.noted < INPUTS
    # Each of the three workers that there may be lost a block at most, and the one being gathered for a file.
    assert run.by_last_job <= run.noted + 4 * BLOCK
    assert not (run.target / "gallery/manifest.json").exists()
    left = INPUTS - run.noted
    assert run.job() == 0
    assert run.by_last_job == left
    check_same(run, undisturbed)


def test_workers_that_are_killed(run: Run, undisturbed: Run) -> None:
    moments = ("worker-read", "worker-embed", "worker-write", "worker-written")
    assert run.job(*moments) == 0
    for moment in moments:
        assert Path(f"{run.log}.{moment}").exists(), moment
    check_same(run, undisturbed)
    assert run.embedded <= INPUTS + len(moments) * BLOCK


def test_a_node_that_is_lost(run: Run, undisturbed: Run) -> None:
    assert run.job("node", "slowly") == 0
    assert Path(f"{run.log}.lost").exists()
    check_same(run, undisturbed)
