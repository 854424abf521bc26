"""A vocabulary whose imagining is interrupted, and run again: in this process."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from errors import refused

from cluster.hold import hold
from cluster.profile import Profile
from pipelines import queries
from pipelines.queries import Imaginer, QueriesSink, build_queries
from pipelines.vocabulary import VocabularyEntry
from retrieval.artifacts import QuerySet
from retrieval.artifacts.queryset import text_vectors, vision_vectors
from retrieval.errors import UserError
from retrieval.folder import Folder

pytestmark = pytest.mark.usefixtures("in_process")

VOCABULARY = [VocabularyEntry(f"{colour} star", label=colour) for colour in ("red", "blue", "green", "grey", "pink")]
BATCH = 2


@pytest.fixture
def small(profile: Profile) -> Profile:
    return profile.model_copy(update={"imagine": profile.imagine.model_copy(update={"batch": BATCH})})


@pytest.fixture
def imagined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that have been imagined, one after the other."""
    texts: list[str] = []
    sound = Imaginer.__call__

    def noting(self: Any, batch: pa.Table) -> pa.Table:
        texts.extend(batch["text"].to_pylist())
        return sound(self, batch)

    monkeypatch.setattr(Imaginer, "__call__", noting)
    return texts


def interrupted(monkeypatch: pytest.MonkeyPatch, run: Callable[[], QuerySet]) -> None:
    """Run until the second block is about to be written; then it is half written."""
    calls = []
    sound = QueriesSink.write

    def write(self: QueriesSink, rows: pa.Table, name: str) -> None:
        sound(self, rows, name)
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(QueriesSink, "write", write)
        with pytest.raises(KeyboardInterrupt):
            run()


def test_an_interrupted_job_is_resumed_and_nothing_is_imagined_twice(
    small: Profile, imagined: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, logged = tmp_path / "queries", []
    interrupted(monkeypatch, lambda: build_queries(VOCABULARY, target, small, images=2, seed=5))
    assert len(imagined) == 2 * BATCH
    written = imagined[:BATCH]
    del imagined[:]

    resumed = build_queries(VOCABULARY[::-1], target, small, images=2, seed=5, log=logged.append)
    assert logged == ["resuming: 2 of 5 queries are done"]
    assert sorted(written + imagined) == sorted(entry.text for entry in VOCABULARY)
    assert {file.name for file in target.iterdir()} - {".holds"} == {"manifest.json", "queries"}

    undisturbed = build_queries(VOCABULARY, tmp_path / "undisturbed", small, images=2, seed=5)
    one, other = resumed.table(), undisturbed.table()
    assert one.schema == other.schema
    for column in ("id", "text", "kind", "label", "seeds", "rejected"):
        assert one[column].to_pylist() == other[column].to_pylist()
    np.testing.assert_allclose(text_vectors(one), text_vectors(other), atol=1e-5)
    np.testing.assert_allclose(vision_vectors(one)[0], vision_vectors(other)[0], atol=1e-2)
    differing = {"created", "spent"}
    assert resumed.manifest.model_dump(exclude=differing) == undisturbed.manifest.model_dump(exclude=differing)
    assert resumed.manifest.spent is not None
    assert resumed.manifest.spent.queries == len(VOCABULARY) - BATCH


def test_a_job_file_that_is_damaged_is_named(small: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, lambda: build_queries(VOCABULARY, tmp_path, small, images=1))
    (tmp_path / "job/job.json").write_bytes(b'{"images": 1')
    with refused("damaged", f"{tmp_path}/job/job.json") as caught:
        build_queries(VOCABULARY, tmp_path, small, images=1)
    assert f"delete {tmp_path} to start over" in str(caught.value)


def test_a_job_that_was_interrupted_before_it_published_imagines_nothing_again(
    small: Profile, imagined: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(QuerySet, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_queries(VOCABULARY, tmp_path, small, images=1)
    assert len(imagined) == len(VOCABULARY)
    build_queries(VOCABULARY, tmp_path, small, images=1)
    assert len(imagined) == len(VOCABULARY)


def test_other_inputs_are_refused_by_name_and_what_is_done_stays(
    small: Profile, imagined: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, lambda: build_queries(VOCABULARY, tmp_path, small, images=2, seed=5))
    with refused("unfinished-queries", "seed"):
        build_queries(VOCABULARY, tmp_path, small, images=2, seed=6)
    with refused("unfinished-queries", "images"):
        build_queries(VOCABULARY, tmp_path, small, images=3, seed=5)
    generator = small.models.generator.model_copy(update={"steps": small.models.generator.steps + 1})
    other = small.model_copy(update={"models": small.models.model_copy(update={"generator": generator})})
    with refused("unfinished-queries", "generator"):
        build_queries(VOCABULARY, tmp_path, other, images=2, seed=5)
    with refused("unfinished-queries", "vocabulary") as error:
        build_queries([*VOCABULARY[1:], VocabularyEntry("black hole")], tmp_path, small, images=2, seed=5)
    assert "'black hole' is new; 'red star' is gone" in str(error.value)
    del imagined[:]
    build_queries(VOCABULARY, tmp_path, small, images=2, seed=5)
    assert len(imagined) == len(VOCABULARY) - BATCH


def test_one_job_at_a_time(small: Profile, imagined: list[str], tmp_path: Path) -> None:
    with hold(Folder(tmp_path), "another"), refused("locked", "target"):
        build_queries(VOCABULARY, tmp_path, small, images=1)
    another, elsewhere = hold(Folder(tmp_path), "another"), contextvars.copy_context()
    elsewhere.run(another.__enter__)
    build_queries(VOCABULARY[:1], tmp_path, small, images=1, take_over=True)
    elsewhere.run(another.__exit__, None, None, None)
    assert imagined == [VOCABULARY[0].text]
    assert not Folder(tmp_path).files(".holds")


def test_a_job_that_lost_its_lock_publishes_nothing_and_what_is_imagined_stays(
    small: Profile, imagined: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = QueriesSink.write

    def taken_over(self: QueriesSink, rows: pa.Table, name: str) -> None:
        sound(self, rows, name)
        with hold(Folder(tmp_path), "another", take_over=True):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(QueriesSink, "write", taken_over)
        with refused("lock-lost", "target"):
            build_queries(VOCABULARY, tmp_path, small, images=1)
    assert not (tmp_path / "manifest.json").exists()
    build_queries(VOCABULARY, tmp_path, small, images=1)
    assert len(imagined) == len(VOCABULARY)


def test_a_target_that_a_node_does_not_see_is_refused_before_anything_is_imagined(
    small: Profile, imagined: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_seen(folder: Folder, name: str) -> None:
        assert folder.exists(name)
        raise UserError("not seen", code="not-shared", field="target")

    monkeypatch.setattr(queries, "check_shared", not_seen)
    with refused("not-shared", "target"):
        build_queries(VOCABULARY, tmp_path, small)
    assert not imagined
