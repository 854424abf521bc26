"""The jobs of an index as calls from Python, without the command line and without Ray."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from errors import refused

from cluster.hold import HOLDS, hold, holds
from cluster.profile import Profile
from demo.grammar import categories
from demo.world import render
from pipelines import job
from pipelines.inspection import state
from retrieval.artifacts import MANIFEST
from retrieval.folder import Folder


def draw(file: Path, number: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    render(categories()[number], number).save(file)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i in range(6):
        draw(folder / f"class {i % 2}/{i}.png", i)
    shutil.copyfile(folder / "class 0/0.png", folder / "class 1/again.png")
    return folder


def test_a_target_is_built_indexed_again_grown_and_shrunk(
    images: Path, profile: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, logged = tmp_path / "target", list[str]()
    built = job.index(images, target, profile, dedup=1, memory_per_shard="1G", address="none")
    assert built.summary is not None
    assert (built.summary.embedded, built.duplicates, built.index.manifest.rows) == (7, 1, 6)
    again = job.index(images, target, profile, address="none")
    assert (again.summary, again.duplicates, again.index.version) == (None, None, "000003")
    draw(tmp_path / "more/new.png", 9)
    added = job.add(tmp_path / "more", target, profile, address="none")
    assert added.summary is not None
    assert (added.summary.read, added.index.manifest.rows, len(added.gallery.manifest.batches)) == (1, 7, 2)
    removed = job.remove(target, profile, paths=["new.png", "no such"], address="none")
    assert (removed.rows, removed.unknown, removed.index.manifest.rows) == (1, ["no such"], 6)
    assert job.duplicates(target, profile, cosine=0.999999, address="none").rows == 6
    compacted = job.compact(target, profile, shards=2, address="none")
    assert (len(compacted.index.manifest.shards), compacted.index.manifest.removed) == (2, 0)
    logged.clear()
    capsys.readouterr()
    findings = job.verify(target, profile, sample=2, address="none", log=logged.append)
    assert not any(finding.trouble for finding in findings)
    assert logged == [f"ok   {finding.what}" for finding in findings]
    shown = capsys.readouterr().err.splitlines()
    for line in ("checking rows of shards: 6", "checking rows of the gallery: 6", "embedding a sample again: 2"):
        assert any(each.startswith(f"{line} in") for each in shown), shown
    assert "index/000001" in job.prune(target, keep=1)
    assert holds(Folder(target)) == state(Folder(target)).jobs == []


def test_what_cannot_be_done_is_refused_before_anything_is_written(
    images: Path, profile: Profile, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    with refused("out-of-range", "cosine"):
        job.index(images, target, profile, dedup=2, address="none")
    with refused("shard-count", "shards"):
        job.index(images, target, profile, shards=0, address="none")
    with refused("not-a-size", "memory_per_shard"):
        job.index(images, target, profile, memory_per_shard="much", address="none")
    with refused("bad-sample", "sample"):
        job.verify(target, profile, sample=-1, address="none")
    for call in (job.compact, job.remove):
        with refused("no-target", "target"):
            call(target, profile, address="none")
    assert not target.exists()
    with refused("unsupported", "factory"):
        job.index(images, target, profile, factory="IVF9,Nonsense", address="none")
    assert not (target / "gallery").exists()
    (target / "gallery").mkdir()
    with refused("nothing-selected"):
        job.remove(target, profile, address="none")
    with hold(Folder(target), "another"), refused("locked"):
        job.index(images, target, profile, address="none")


def test_a_job_that_has_lost_its_lock_publishes_nothing(
    images: Path, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"

    @contextmanager
    def lost_before(step: str) -> Iterator[None]:
        """Break the job's lock as another would that takes over, just before a step."""
        module, _, name = step.rpartition(".")
        function = getattr(importlib.import_module(module), name)

        def late(*arguments: Any, **named: Any) -> Any:
            Folder(target).delete(HOLDS)
            return function(*arguments, **named)

        with monkeypatch.context() as patch, refused("lock-lost", "target"):
            patch.setattr(step, late)
            yield

    def published() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in sorted(target.rglob(MANIFEST))}

    with lost_before("pipelines.gallery.contents"):
        job.index(images, target, profile, address="none")
    assert not published()
    with lost_before("pipelines.publication.measure_recall"):
        job.index(images, target, profile, address="none")
    assert list(published()) == [target / "gallery" / MANIFEST]
    job.index(images, target, profile, address="none")
    before = published()
    assert list(before) == [target / "gallery" / MANIFEST, target / "index/000001" / MANIFEST]
    draw(tmp_path / "more/new.png", 9)
    with lost_before("pipelines.growth.parts_without"):
        job.remove(target, profile, paths=["class 0/0.png"], address="none")
    with lost_before("pipelines.publication.measure_recall"):
        job.add(tmp_path / "more", target, profile, address="none")
    with lost_before("pipelines.pruning.published_versions"):
        job.prune(target, keep=1)
    assert published() == before
    job.add(tmp_path / "more", target, profile, address="none")
    assert len(published()) == 3
