"""The best rows of a gallery, block by block, against a full sort. Exact ranks: see test_evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import D1, D2, directions, write_gallery

from pipelines import ranking
from pipelines.ranking import best_rows
from retrieval.artifacts import Gallery
from retrieval.fusion import fused_query, products

pytestmark = pytest.mark.usefixtures("in_process")


def noting(read: list[list[str]], function: Callable[..., Any]) -> Callable[..., Any]:
    """A task that notes which parts it is to read."""

    def task(run: Any, *arguments: Any) -> Any:
        read.append(run.parts)
        return function(run, *arguments)

    return task


@pytest.mark.parametrize("different", [25, 1])
def test_best_rows_are_those_of_a_full_sort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, different: int) -> None:
    monkeypatch.setattr(ranking, "ROWS_READ", 70)
    rng = np.random.default_rng(0)
    vlm, vision = (np.resize(directions(different, dim, rng).astype(np.float16), (200, dim)) for dim in (D1, D2))
    ids = [f"{i:04x}" for i in rng.permutation(200)]
    gallery = write_gallery(tmp_path, vlm, vision, ids=ids, labels=[f"label {i}" for i in range(200)], parts=4)
    joint = fused_query(directions(3, D1, rng), directions(3, D2, rng), 0.4)
    scores = products(joint, np.concatenate([vlm, vision], axis=1)).astype(np.float32)
    monkeypatch.setattr(Gallery, "tables", None)  # the driver reads none of it
    read: list[list[str]] = []
    monkeypatch.setattr(ranking, "_best_of_run", noting(read, ranking._best_of_run))
    best = best_rows(gallery, joint, 12)
    assert read == [[part] for part in gallery.parts()]
    for q, found in enumerate(best):
        expected = sorted(range(200), key=lambda n: (-scores[q, n], ids[n]))[:12]
        assert [row["id"] for row in found] == [ids[n] for n in expected]
        assert [row["label"] for row in found] == [f"label {n}" for n in expected]
        assert [row["score"] for row in found] == scores[q, expected].tolist()
