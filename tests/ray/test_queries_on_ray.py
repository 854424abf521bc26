"""Queries on Ray: the rows of a plain loop, and errors of workers as they were raised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from errors import refused

from cluster.profile import Profile
from cluster.session import session
from pipelines.executor import TableFiles
from pipelines.queries import QueriesSink, imagine
from pipelines.vocabulary import VocabularyEntry
from retrieval.artifacts.queryset import text_vectors, vision_vectors

VOCABULARY = [VocabularyEntry(text) for text in ("red star", "blue ring", "ünï {} 😀")]


def test_queries_on_ray_are_those_of_this_process(tmp_path: Path, profile: Profile, ray_session: None) -> None:
    small = profile.model_copy(update={"imagine": profile.imagine.model_copy(update={"batch": 2})})
    there = imagine(VOCABULARY, tmp_path / "ray", small, images=2, seed=5)
    here = imagine(VOCABULARY, tmp_path / "here", small, images=2, seed=5, address="none")
    differing = {"created", "spent"}
    assert here.manifest.model_dump(exclude=differing) == there.manifest.model_dump(exclude=differing)
    for spent in (here.manifest.spent, there.manifest.spent):
        assert spent is not None
        assert spent.queries == len(VOCABULARY)
        assert min(spent.seconds[step] for step in ("text", "imagine", "embed")) > 0
    one, other = here.table(), there.table()
    assert one.schema == other.schema
    for column in ("id", "text", "kind", "label", "seeds", "rejected"):
        assert one[column].to_pylist() == other[column].to_pylist()
    # A worker of Ray has other numbers of threads, and sums in another order.
    np.testing.assert_allclose(text_vectors(one), text_vectors(other), atol=1e-5)
    for vectors, others in zip(vision_vectors(one), vision_vectors(other), strict=True):
        np.testing.assert_allclose(vectors, others, atol=1e-2)


def test_queries_that_were_begun_in_this_process_are_resumed_on_ray(
    tmp_path: Path, profile: Profile, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = profile.model_copy(update={"imagine": profile.imagine.model_copy(update={"batch": 1})})
    calls = iter([True])

    def write(self: QueriesSink, rows: pa.Table, name: str) -> None:
        if not next(calls, False):
            raise KeyboardInterrupt
        TableFiles.write(self, rows.drop_columns(["entry"]), name)

    with monkeypatch.context() as patch:
        patch.setattr(QueriesSink, "write", write)
        with pytest.raises(KeyboardInterrupt):
            imagine(VOCABULARY, tmp_path, one, images=1, address="none")
    [kept] = (tmp_path / "queries").iterdir()
    logged: list[str] = []
    made = imagine(VOCABULARY, tmp_path, one, images=1, log=logged.append)
    assert logged == ["resuming: 1 of 3 queries are done"]
    assert len(made.folder.files("queries")) == 3
    assert kept.exists()
    assert sorted(made.table(["id"])["id"].to_pylist()) == sorted(entry.id for entry in VOCABULARY)


def test_model_that_cannot_be_loaded_is_one_plain_error(tmp_path: Path, profile: Profile, ray_session: None) -> None:
    models = profile.models.model_copy(update={"vision": f"local-dir:{tmp_path / 'missing'}"})
    with refused("not-loadable", "vision") as error, session():
        imagine(VOCABULARY, tmp_path / "q", profile.model_copy(update={"models": models}))
    assert str(tmp_path / "missing") in str(error.value)
    assert "\x1b" not in str(error.value)
