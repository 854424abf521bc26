"""Evaluation and duplicates on Ray: the rows of a plain loop in this process, to the bit."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from synthetic import D1, D2, directions, write_gallery, write_queries

from cluster.profile import Profile
from cluster.session import session
from pipelines import ranking
from pipelines.duplicates import near_duplicates
from pipelines.evaluate import evaluate
from pipelines.openings import openings_of_set
from pipelines.ranking import best_rows
from pipelines.rounds import User, simulate
from retrieval.artifacts import Gallery
from retrieval.fusion import fused_query
from retrieval.metrics import MEASURES


def test_evaluation_on_ray_is_that_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    folder = tmp_path / "label=dog" / "vlm=x"  # not to be taken for columns
    monkeypatch.setattr(ranking, "BLOCK_ELEMENTS", 1)  # so that the gallery is ranked in several blocks
    rng = np.random.default_rng(0)
    vlm, vision = (directions(300, dim, rng).astype(np.float16) for dim in (D1, D2))
    copies, originals = rng.permutation(300)[:200], rng.integers(0, 15, 200)
    vlm[copies], vision[copies] = vlm[originals], vision[originals]
    labels = ["bee", "cat", None] * 100
    gallery = write_gallery(folder / "gallery", vlm, vision, labels=labels)
    images = [directions(q % 3, D2, rng) for q in range(6)]
    ids = [f"row-{row:05d}" for row in range(300)]
    relevant, junk = ([None, None, ids[at : at + 30]] * 2 for at in (10, 200))  # of the two that have no label
    queries = write_queries(
        folder / "queries", directions(6, D1, rng), images, labels=labels[:6], relevant=relevant, junk=junk
    )
    monkeypatch.setattr(ranking, "POSITIVES_AT_ONCE", 500)  # and in groups of rankings
    joint = fused_query(directions(3, D1, rng), directions(3, D2, rng), 0.4)
    best = best_rows(gallery, joint, 12)
    openings, user = openings_of_set(queries), User(k=4)
    there = evaluate(gallery, queries, weight=0.3)
    rounds = simulate(gallery, openings, 1, weight=0.3, user=user)
    with session("none"):
        here = evaluate(gallery, queries, weight=0.3)
        assert best_rows(gallery, joint, 12) == best
        assert simulate(gallery, openings, 1, weight=0.3, user=user).table.equals(rounds.table)
    assert there.table.equals(here.table)
    assert here.table.num_rows == 3 * 6


def test_what_the_driver_is_given_does_not_grow_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    """Relevant rows by label and by ids; three systems, of which each row ties with others."""
    sizes, get = [], ray.get
    monkeypatch.setattr(Gallery, "tables", None)  # the driver reads none of it
    for rows in (200, 1600):
        rng = np.random.default_rng(0)
        given: list[int] = []

        def noting(*arguments: Any, given: list[int] = given) -> Any:
            found = get(*arguments)
            given.append(0 if isinstance(found, int) else len(pickle.dumps(found)))  # progress is asked for at any time
            return found

        vlm, vision = (directions(rows // 4, dim, rng).repeat(4, axis=0) for dim in (D1, D2))
        gallery = write_gallery(tmp_path / f"gallery-{rows}", vlm, vision, labels=["bee", "cat"] * (rows // 2))
        ids = [f"row-{row:05d}" for row in range(rows)]
        queries = write_queries(
            tmp_path / f"queries-{rows}",
            directions(4, D1, rng),
            [directions(2, D2, rng)] * 4,
            labels=["bee", "cat", None, None],
            relevant=[None, None, ids[::3], ids[: rows // 2]],
            junk=[None, None, ids[1::3], None],
        )
        with monkeypatch.context() as patch:
            patch.setattr(ray, "get", noting)
            there = evaluate(gallery, queries).table
        with session("none"):
            here = evaluate(gallery, queries).table
        for name in MEASURES:
            np.testing.assert_allclose(there[name].to_numpy(), here[name].to_numpy(), rtol=0, atol=1e-9)
        sizes.append(sum(given))
    assert sizes[0] < sizes[1] < sizes[0] + 100  # larger counts, of no more queries


def test_duplicates_on_ray_are_those_of_this_process(collection: Any, profile: Profile, ray_session: None) -> None:
    there = near_duplicates(collection.index, 0.9, profile.index)
    with session("none"):
        here = near_duplicates(collection.index, 0.9, profile.index)
    assert there.equals(here)
    assert here.num_rows > 0
